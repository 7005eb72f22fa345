"""decode, calibrate and curve: one translation by every network, and all that is computed from it."""

import csv
import json
import shutil

import pytest
import torch
from sacrebleu import corpus_bleu, corpus_chrf

from coe_core import AimNotReachableError
from coe_core.support.aims import parse_aim
from translation.evaluation.calibrate import KINDS, calibrate, load_points
from translation.evaluation.systems import routed_systems, single_systems
from translation.evaluation.translations import OfNetwork, Selection, Translations


def texts(done):
    return [done.table("D")[number][1] for number in range(24)]


def test_every_network_translates_as_in_generation(translations, printed, corpus):
    assert translations.reference == (corpus.text / "test.en").read_text().splitlines()
    assert translations.source == (corpus.text / "test.de").read_text().splitlines()
    assert translations.networks["delegator"].text == texts(printed("--threshold", "0"))
    assert translations.networks["ensemble"].text == texts(printed("--router", "ensemble"))
    learned = printed()
    assert routed_systems(translations)["CoE"].at(float("inf")).text == texts(learned)
    for number, (network, confidence) in learned.table("R").items():
        if number == 5:
            assert (network, confidence) == ("empty", "1.0000")
        else:
            assert (
                network == f"expert-{torch.tensor(translations.selection.logits[number]).argmax()}"
            )
            assert confidence == "nan"  # the delegator did not translate
    for number, (_, confidence) in printed("--threshold", "1").table("R").items():
        assert translations.networks["delegator"].confidence[number] == pytest.approx(
            float(confidence), abs=2e-4
        )
    assert translations.networks["expert-alone"].text == translations.networks["expert-0"].text
    assert translations.networks["expert-alone"].macs == translations.networks["expert-0"].macs
    assert translations.networks["delegator"].text[5] == ""
    assert translations.networks["delegator"].macs[5] == 0


def test_a_system_at_a_threshold_is_what_generation_does(translations, printed):
    ours = routed_systems(translations)["CoE"].at(0.14)
    theirs = printed("--threshold", "0.14")
    assert ours.text == texts(theirs)
    early = sum(row[0] in ("delegator", "empty") for row in theirs.table("R").values())
    assert ours.exit_rate == pytest.approx(early / 24)


def test_without_exits_the_delegator_only_selects(translations):
    systems = routed_systems(translations)
    by_expert = systems["CoE"].second.macs
    whole = systems["CoE"].at(float("inf"))
    selection = sum(translations.selection.macs) / 24
    assert 0 < selection < sum(translations.networks["delegator"].macs) / 24 / 3
    assert translations.selection.macs[5] == 0
    assert whole.macs == pytest.approx(sum(by_expert) / 24 + selection)
    twice = systems["CoE"].at(1.0).macs  # none exits either, but all are translated twice
    assert whole.macs < twice
    alone = sum(translations.networks["expert-alone"].macs) / 24
    assert systems["cascade"].at(float("inf")).macs == pytest.approx(alone)


def test_what_a_sentence_costs_does_not_depend_on_its_batch(translations, decode, tmp_path, said):
    status, out, _ = said(*decode(tmp_path / "alone.json", "--batch-size", "1"))
    assert status == 0
    assert "MMACs" in out
    alone = Translations.load(tmp_path / "alone.json")
    for name, one in alone.networks.items():
        assert one.macs == translations.networks[name].macs, name
        assert one.text == translations.networks[name].text, name


def test_curves_are_sacrebleus_scores_at_every_threshold(translations):
    systems = routed_systems(translations)
    assert set(systems) == {"CoE", "random", "oracle", "cascade"}
    for metric, score in (("BLEU", corpus_bleu), ("chrF", corpus_chrf)):
        for name, system in systems.items():
            curve = system.stages.curve(metric, "macs")
            for place in range(0, len(curve.threshold), 5):
                mixture = system.at(float(curve.threshold[place]))
                wanted = score(mixture.text, [translations.reference]).score
                assert float(curve.quality[place]) == pytest.approx(wanted, abs=1e-9), (
                    name,
                    metric,
                )
                assert float(curve.cost[place]) == pytest.approx(mixture.macs)
                assert float(curve.exit_rate[place]) == pytest.approx(mixture.exit_rate)


def test_calibrate_stores_thresholds_that_generation_reads(
    said, file, translations, printed, tmp_path
):
    out = tmp_path / "thresholds.json"
    aims = ("best", "bleu_drop=0.5", "macs=60%", "latency=90%", "chrf_drop=1")
    status, shown, _ = said("calibrate", file, *aims, "--system", "coe", "--out", out)
    assert status == 0
    assert shown.count("MMACs") == 4
    assert shown.count(" ms") == 1
    assert shown.count("CoE is the only system that reaches it") == 5
    points = load_points(out).named()
    assert list(points) == list(aims)
    whole = routed_systems(translations)["CoE"].at(float("inf"))
    reached = routed_systems(translations)["CoE"].at(points["macs=60%"].threshold)
    assert reached.macs <= 0.6 * whole.macs
    assert reached.macs == pytest.approx(points["macs=60%"].cost)
    loss = corpus_bleu(whole.text, [translations.reference]).score - points["bleu_drop=0.5"].quality
    assert loss <= 0.5 + 1e-9
    stored = json.loads(out.read_text())
    assert stored["provenance"]["beam"] == 3
    assert stored["points"]["CoE"][0]["num_samples"] == 24
    assert texts(printed("--threshold", f"{out}:macs=60%")) == reached.text
    assert "it has: best, bleu_drop" in printed_error(printed, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--confidence", "log_probability"), "with confidence probability, not log_probability"),
        (("--beam", "2"), "with beam 3, not 2"),
        (("--lenpen", "0.5"), "with lenpen 1.0, not 0.5"),
        (("--router", "always-1"), "with router learned, not always"),
        (("--source-lang", "en", "--target-lang", "de"), "with direction de-en, not en-de"),
    ],
)
def test_thresholds_are_refused_with_other_settings(
    said, file, generate, tmp_path, options, message
):
    out = tmp_path / "thresholds.json"
    assert said("calibrate", file, "best", "--out", out)[0] == 0
    log = generate("--threshold", f"{out}:best", *options, fails=True).log
    assert message in log
    assert "decode and calibrate with these settings" in log


def test_thresholds_are_refused_with_another_checkpoint(
    said, file, generate, team, shell, corpus, tmp_path
):
    out, other = tmp_path / "thresholds.json", tmp_path / "other.pt"
    assert said("calibrate", file, "best", "--out", out)[0] == 0
    assert said("average", team / "checkpoint_last.pt", "--out", other)[0] == 0
    log = generate("--threshold", f"{out}:best", path=other, fails=True).log
    assert "was fitted with checkpoint " in log
    words = (corpus.binary, *shell.PLUGIN, "--cpu", "--beam", "2", "--threshold", f"{out}:best")
    log = shell(
        "fairseq-interactive", *words, "--path", team / "checkpoint_last.pt", fails=True
    ).log
    assert "with beam 3, not 2" in log


def test_a_cascade_has_thresholds_of_its_own(said, file, generate, team, parts, tmp_path):
    out = tmp_path / "thresholds.json"
    assert said("calibrate", file, "macs=90%", "--out", out)[0] == 0
    threshold = ("--router", "cascade", "--threshold", f"{out}:macs=90%")
    both = f"{team / 'checkpoint_last.pt'}:{parts / 'expert-0.pt'}"
    assert len(generate(*threshold, path=both).table("H")) == 24
    both = f"{team / 'checkpoint_last.pt'}:{parts / 'delegator.pt'}"
    assert "was fitted with expert-alone " in generate(*threshold, path=both, fails=True).log


def printed_error(printed, out):
    return printed_fails(printed, "--threshold", f"{out}:macs=1%")


def printed_fails(printed, *options):
    with pytest.raises(ValueError, match="has no threshold named") as caught:
        printed(*options)
    return str(caught.value)


def test_curve_writes_the_table_and_the_pictures(said, file, translations, tmp_path):
    points, out = tmp_path / "points.json", tmp_path / "curve"
    assert said("calibrate", file, "macs=60%", "--out", points)[0] == 0
    assert "is given twice, as if it were two seeds" in said("curve", file, file, "--out", out)[2]
    second = shutil.copy(file, out.with_name("second.json"))
    status, shown, _ = said("curve", file, second, "--points", points, "--out", out)
    assert status == 0
    assert "nrefs:1|case:mixed" in shown
    assert "load of the experts" in shown
    with open(out / "table.csv", encoding="utf-8", newline="") as opened:
        table = {row["system"]: row for row in csv.DictReader(opened)}
    assert set(table) >= {
        *("delegator", "expert-0", "expert-1", "mean of one expert", "ensemble", "expert-alone"),
        *("CoE, no exits", "CoE, macs=60%", "cascade, no exits", "cascade, macs=60%"),
        *("random, no exits", "oracle, no exits"),
    }
    for name, system in single_systems(translations).items():
        assert float(table[name]["BLEU"]) == pytest.approx(
            corpus_bleu(system.text, [translations.reference]).score, abs=1e-3
        )
        assert float(table[name]["MMACs"]) == pytest.approx(system.macs / 1e6, abs=1e-3)
    assert {row["seeds"] for row in table.values()} == {"2"}
    assert float(table["CoE, no exits"]["BLEU spread"]) == 0
    for number in range(2):
        rows = (out / f"trade_off-{number}.csv").read_text().splitlines()
        assert rows[1].startswith("CoE,inf,0,")
        assert (out / f"trade_off-{number}.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "translations-0" / "CoE_macs=60%").read_text().splitlines()
    assert len(text) == 24


def test_aims():
    assert parse_aim("macs=2G", KINDS)[:2] == ("macs", 2e9)
    assert parse_aim("bleu_drop=0", KINDS)[:2] == ("bleu_drop", 0)
    for wrong in ("fast", "best=1", "macs", "macs=0", "macs=-3", "latency=x", "bleu_drop=nan"):
        with pytest.raises(ValueError, match="aim"):
            parse_aim(wrong, KINDS)


def test_a_budget_below_the_delegator(translations, said, file, tmp_path):
    with pytest.raises(AimNotReachableError, match="is below that of every system; the cheapest"):
        calibrate(translations, ["macs=1"], "x")
    status, _, error = said("calibrate", file, "macs=1", "--out", tmp_path / "x")
    assert (status, "the cheapest that exists is single:delegator-alone at" in error) == (2, True)
    assert not (tmp_path / "x").exists()
    status, _, error = said("calibrate", file, "best", "macs=1", "--out", tmp_path / "x")
    assert (status, "left out: macs=1: a mean cost of 1 is below" in error) == (0, True)
    assert list(load_points(tmp_path / "x").named()) == ["best"]


def test_files_that_are_not_what_they_should_be(said, file, translations, tmp_path):
    junk = tmp_path / "junk.json"
    junk.write_text("{}")
    for words, message in (
        (("calibrate", junk, "best", "--out", tmp_path / "x"), "not what coe-translation decode"),
        (("calibrate", tmp_path / "no", "best", "--out", tmp_path / "x"), "no: no such file"),
        (
            ("curve", file, "--points", junk, "--out", tmp_path / "x"),
            "no operating points of ours: it has no points",
        ),
        (("curve", file, *("--points", junk) * 2, "--out", tmp_path / "x"), "no operating points"),
    ):
        status, _, error = said(*words)
        assert (status, message in error) == (2, True), error
    other = json.loads(file.read_text())
    other["reference"][0] = "another"
    junk.write_text(json.dumps(other))
    assert "of different test sets" in said("curve", file, junk, "--out", tmp_path / "x")[2]
    other["networks"]["delegator"]["text"].pop()
    junk.write_text(json.dumps(other))
    assert (
        "23 text of delegator for 24 sentences" in said("curve", junk, "--out", tmp_path / "x")[2]
    )


def test_translations_need_every_expert():
    network = OfNetwork(["a"], [0.5], [1.0], [1.0])
    two = Selection([[0.0, 1.0]], [1.0], [1.0])
    translations = Translations({}, ["a"], ["a"], two, {"delegator": network, "expert-0": network})
    with pytest.raises(ValueError, match="file: no translations by expert-1"):
        translations.check("file")
    broken = OfNetwork(["a"], [0.5], [float("nan")], [1.0])
    translations = Translations(
        {},
        ["a"],
        ["a"],
        Selection([[0.0]], [1.0], [1.0]),
        {"delegator": network, "expert-0": broken},
    )
    with pytest.raises(ValueError, match="costs of expert-0 that are not finite"):
        translations.check("file")
