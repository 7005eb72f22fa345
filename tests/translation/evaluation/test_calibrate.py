"""The system that is deployed: of those that are not worse than the best the simplest. No network runs."""

import json
import random

import pytest

from coe_core.stored_points import COE
from translation.evaluation.calibrate import calibrate, find_system, load_points
from translation.evaluation.held_out import held_out_systems
from translation.evaluation.translations import OfNetwork, Selection, Translations

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "we", "are", "here"]
N = 80


@pytest.fixture(scope="module")
def references():
    draw = random.Random(0)
    return [draw.choices(WORDS, k=12) for _ in range(N)]


@pytest.fixture(scope="module")
def decoded(references):
    """Translations by a delegator and two experts, and by controls, each with so many wrong words."""

    def call(delegator, experts, **controls):
        draw = random.Random(1)

        def network(errors, macs):
            texts, sure = [], []
            for words in references:
                other = [draw.choice(WORDS) if draw.random() < errors else w for w in words]
                texts.append(" ".join(other))
                sure.append(sum(a == b for a, b in zip(words, other, strict=True)) / len(words))
            return OfNetwork(texts, sure, [macs * 1e6] * N, [macs / 1e3] * N)

        networks = {"delegator": network(delegator, 2.0)}
        networks |= {f"expert-{j}": network(errors, 10.0) for j, errors in enumerate(experts)}
        digests = {}
        for name, (errors, macs, count) in controls.items():
            networks[name.replace("_", "-")] = network(errors, macs)
            digests[name.replace("_", "-")] = ":".join(["3" * 64] * count)
        provenance = {"confidence": "probability", "beam": 3, "lenpen": 1.0, "direction": "de-en"}
        provenance |= {"checkpoint_sha256": "1" * 64, "controls_sha256": digests}
        logits = [[1.0, 0.0], [0.0, 1.0]] * (N // 2)
        source = [f"s {row}" for row in range(N)]
        reference = [" ".join(words) for words in references]
        selection = Selection(logits, [1e5] * N, [1e-5] * N)
        return Translations(provenance, source, reference, selection, networks)

    return call


def test_where_the_collaboration_loses_the_control_is_deployed(decoded, tmp_path, said):
    loses = decoded(0.5, (0.3, 0.3), large=(0.05, 20.0, 1), seeds=(0.05, 40.0, 2))
    loses.save(tmp_path / "valid.json")
    out = tmp_path / "points.json"
    status, shown, left = said(
        *("calibrate", tmp_path / "valid.json", "best", "macs=60%", "bleu_drop=5", "--out", out)
    )
    assert status == 0
    stored = load_points(out)
    assert (stored.deployed("best"), stored.deployed("bleu_drop=5")) == ("single:large",) * 2
    assert stored.deployed("macs=60%") == COE  # the control costs more than that
    choice = stored.choices["best"]
    gap = choice.rivals[COE].difference
    assert choice.rivals[COE].is_worse
    assert gap.low < gap.mean < gap.high < -20
    assert gap.p_value < 0.01
    assert not choice.rivals["ensemble:seeds"].is_worse
    assert (choice.rivals["ensemble:seeds"].parts, choice.rivals[COE].parts) == (2, 3)
    point = stored.used("best")
    assert (point.threshold, point.cost, point.exit_rate) == (float("inf"), 20e6, 0.0)
    assert point.fitted_with == {
        "beam": 3,
        "lenpen": 1.0,
        "direction": "de-en",
        "checkpoint": "3" * 64,
    }
    assert "best: single:large (1 network), " in shown
    assert "macs=60%: CoE is the only system that reaches it" in shown
    assert "left out: CoE, bleu_drop=5: reached by single:large, not by CoE" in left


def test_where_it_wins_it_is_deployed(decoded):
    wins = decoded(0.3, (0.02, 0.02), large=(0.2, 20.0, 1), expert_alone=(0.2, 10.0, 1))
    calibration = calibrate(wins, ["best"], "valid")
    assert calibration.choices["best"].deployed == COE
    assert calibration.choices["best"].rivals["single:large"].is_worse


def test_of_equals_the_simplest_is_deployed(decoded):
    equal = decoded(0.5, (0.1, 0.1), large=(0.1, 10.0, 1))
    calibration = calibrate(equal, ["best"], "valid")
    assert calibration.choices["best"].deployed == "single:large"
    whichever = calibrate(equal, ["best"], "valid", level=1)
    assert whichever.choices["best"].deployed == whichever.choices["best"].best


@pytest.mark.slow
def test_one_system_alone(decoded):
    loses = decoded(0.5, (0.3, 0.3), large=(0.05, 20.0, 1))
    calibration = calibrate(loses, ["best", "latency=60%", "chrf_drop=1"], "valid", system="coe")
    assert {choice.deployed for choice in calibration.choices.values()} == {COE}
    assert list(calibration.points) == [COE]
    assert [point.cost_unit for point in calibration.points[COE]] == ["macs", "ms", "macs"]
    with pytest.raises(
        ValueError, match=r"no system 'larg'; there are: CoE, single:large; nearest"
    ):
        calibrate(loses, ["best"], "valid", system="larg")


def test_systems_and_their_costs(decoded):
    made = decoded(
        0.5, (0.3, 0.3), delegator_alone=(0.5, 2.0, 1), expert_alone=(0.3, 10.0, 1), two=(0, 5.0, 2)
    )
    made.provenance["controls_sha256"] |= {"each@de-en": "4" * 64, "each@fr-en": "5" * 64}
    made.networks["each"] = made.networks["two"]
    systems = held_out_systems(made)
    assert {name: candidate.parts for name, candidate in systems.items()} == {
        "CoE": 3,
        "cascade": 2,
        "single:delegator-alone": 1,
        "single:expert-alone": 1,
        "ensemble:two": 2,
    }  # not "each", which has to be told the direction of a sentence
    whole = {name: c.stage.at(float("inf")).cost for name, c in systems.items()}
    assert whole["CoE"] == pytest.approx({"macs": 10.1e6, "ms": 10.01})
    assert whole["ensemble:two"] == {"macs": 5e6, "ms": 5.0}
    assert find_system("TWO", list(systems)) == "ensemble:two"


def test_a_file_without_choices_is_the_collaborations(decoded, tmp_path, said):
    decoded(0.5, (0.3, 0.3), large=(0.05, 20.0, 1)).save(tmp_path / "valid.json")
    out = tmp_path / "points.json"
    assert said("calibrate", tmp_path / "valid.json", "best", "--out", out)[0] == 0
    older = json.loads(out.read_text())
    del older["choices"]
    out.write_text(json.dumps(older))
    assert load_points(out).deployed("best") == COE
    status, _, error = said(
        *("calibrate", tmp_path / "valid.json", "best", "--level", "0", "--out", out)
    )
    assert (status, "must be in (0, 1], got 0" in error) == (2, True)
