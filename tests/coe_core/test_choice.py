"""The choice of a system: by hand, by what an aim asks for, and without flattering fitted thresholds."""

import pytest
import torch

from coe_core import (
    AimNotReachableError,
    Candidate,
    StageCost,
    StageQuality,
    TwoStage,
    choose,
    fit_systems,
    mean_quality,
)
from coe_core.chosen import Choice, Rival, reason
from coe_core.paired import PairedDifference


def right(count, n=1000, first=0):
    """The samples from ``first`` on, so many of them, are right."""
    answers = torch.zeros(n)
    answers[first : first + count] = 1
    return answers


def single(answers, macs, parts=1):
    kinds = {"accuracy": mean_quality(answers, answers)}
    return Candidate(TwoStage.alone(kinds, {"macs": float(macs)}), parts)


def exits(rough, final, first=10.0, second=90.0, confidence=None, parts=2):
    n = len(rough)
    return Candidate(
        TwoStage(
            torch.linspace(0, 1, n) if confidence is None else confidence,
            {"accuracy": mean_quality(rough, final)},
            {"macs": StageCost(first, torch.full((n,), second, dtype=torch.float64))},
        ),
        parts,
    )


def test_the_best_and_the_simplest_that_is_not_worse():
    systems = {
        "small": single(right(800), 10),
        "large": single(right(896), 100),
        "coe": exits(right(850), right(900), parts=5),
    }
    chosen = choose(systems, "best")
    assert (chosen.best, chosen.deployed) == ("coe", "large")  # 4 of 1000 more is chance
    assert chosen.rivals["large"].difference.mean == pytest.approx(-0.004)
    assert chosen.rivals["large"].difference.p_value == pytest.approx(0.0625)
    assert chosen.rivals["small"].is_worse
    assert choose(systems, "best", level=1).deployed == "coe"
    assert choose(systems, "macs", 50.0).deployed == "coe"
    assert choose(systems, "macs", 10.0).deployed in ("small", "coe")
    assert list(choose(systems, "macs", 50.0).rivals) == ["small", "coe"]  # all within the budget


def test_the_level_decides():
    systems = {"simple": single(right(890), 10), "best": single(right(900), 10, parts=4)}
    assert choose(systems, "best").deployed == "best"  # 10 to 0: p = 0.001
    assert choose(systems, "best", level=1e-4).deployed == "simple"


def test_equal_systems_are_never_worse_and_the_simplest_is_taken():
    systems = {name: single(right(900), 10, parts) for name, parts in (("a", 4), ("b", 1))}
    for level in (0.05, 1):
        chosen = choose(systems, "best", level=level)
        assert chosen.deployed == chosen.best == "b"
        assert not any(rival.is_worse for rival in chosen.rivals.values())


def test_a_cost_is_compared_by_cost():
    systems = {
        "large": single(right(900), 100),
        "middle": single(right(899), 60),
        "coe": exits(right(1000), right(1000), parts=5),  # exits all without a loss
    }
    chosen = choose(systems, "accuracy", 0.85)
    assert (chosen.criterion, chosen.best, chosen.deployed) == ("cost", "coe", "coe")
    assert chosen.rivals["middle"].difference.mean == pytest.approx(50, abs=0.2)
    assert chosen.rivals["middle"].is_worse
    del systems["coe"]
    assert choose(systems, "accuracy_drop", 0.005).deployed == "middle"
    assert choose(systems, "accuracy_drop", 0.0).deployed == "large"


def test_a_choice_by_cost_in_words():
    """What is dearer is dearer than something."""
    close = PairedDifference(2e6, -1e6, 5e6, 0.2)
    rivals = {
        "CoE": Rival(5, 0.9, 1e7, PairedDifference(0.0, 0.0, 0.0, 1.0), False),
        "single:large": Rival(1, 0.9, 1.2e7, close, False),
    }
    said = reason(Choice("single:large", "CoE", "cost", 0.05, 500, rivals), "macs")
    assert " dearer than CoE (5 networks): not worse at level 0.05" in said
    said = reason(Choice("CoE", "CoE", "cost", 0.05, 500, rivals), "macs")
    assert said.startswith("CoE (5 networks), the best; single:large is 2 MMACs (95% interval")
    assert said.endswith(") dearer")


def test_a_drop_is_from_the_best_system_without_exits():
    systems = {"poor": exits(right(700), right(701)), "good": single(right(900), 1000)}
    assert choose(systems, "accuracy_drop", 0.01).deployed == "good"
    assert list(choose(systems, "accuracy_drop", 0.01).rivals) == ["good"]


@pytest.mark.slow
def test_fitted_thresholds_are_not_flattered():
    """Where confidence says nothing, the best of a thousand thresholds looks better than it is."""
    generator = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(20):
        rough, final, confidence = torch.rand(3, 100, generator=generator)
        noise = exits((rough < 0.5).float(), (final < 0.5).float(), confidence=confidence)
        fitted = noise.stage.curve().quality.max()
        chosen = choose({"noise": noise}, "best")
        kept.append((float(fitted), chosen.rivals["noise"].quality))
    fitted, held_out = torch.tensor(kept).mean(0).tolist()
    assert fitted > 0.55
    assert held_out == pytest.approx(0.5, abs=0.03)


def test_a_quality_of_the_corpus():
    def corpus(words):
        statistics = torch.stack([words, torch.full_like(words, 10.0)], 1)
        kind = StageQuality(statistics, statistics, lambda sums: 100 * sums[:, 0] / sums[:, 1])
        return Candidate(TwoStage.alone({"precision": kind}, {"ms": 1.0}), 1)

    words = torch.arange(200) % 10.0
    systems = {
        "a": corpus(words),
        "b": corpus(words + (torch.arange(200) % 4 == 0) * 1.0)._replace(parts=3),
    }
    chosen = choose(systems, "best")
    assert chosen.deployed == "b"
    assert chosen.rivals["a"].difference.mean == pytest.approx(-2.5)
    assert chosen.rivals["a"].difference.high < 0
    assert choose(systems, "best", level=1e-6).deployed == "a"


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_few_samples(n):
    chosen = choose({"s": single(right(n, n), 1), "e": exits(right(n, n), right(n, n))}, "best")
    assert chosen.num_samples == n
    assert chosen.deployed == "s"


def test_out_of_reach():
    systems = {"small": single(right(800), 12), "coe": exits(right(850), right(900), 15.0)}
    with pytest.raises(
        AimNotReachableError,
        match=r"^a mean cost of 5 is below .*; the cheapest that exists is small at 12",
    ):
        choose(systems, "macs", 5.0)
    with pytest.raises(
        AimNotReachableError,
        match=r"^quality 0.95 is reached by no system at any threshold; the best on this data is 0.9, of coe",
    ):
        fit_systems({name: system.stage for name, system in systems.items()}, "accuracy", 0.95)


def test_refused():
    with pytest.raises(ValueError, match="there are no systems to choose from"):
        choose({}, "best")
    with pytest.raises(ValueError, match=r"on the same samples, but they have \{'a': 2, 'b': 3\}"):
        choose({"a": single(right(1, 2), 1), "b": single(right(1, 3), 1)}, "best")
    with pytest.raises(ValueError, match="the level of a test is in"):
        choose({"a": single(right(1, 2), 1)}, "best", level=5)
    with pytest.raises(ValueError, match="aim 'macs' needs a value"):
        choose({"a": single(right(1, 2), 1)}, "macs")
