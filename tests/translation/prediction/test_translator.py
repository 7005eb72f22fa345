"""The translator beside fairseq-generate and the export: the same sentences, the same texts and routes."""

import contextlib
import io
import itertools
import math
import re
import shutil
import threading

import pytest
import torch

from coe_core import AimNotReachableError
from coe_core.threads import FIXED_BY
from translation.commands.cli import main
from translation.evaluation.translations import Translations
from translation.prediction.engine import Search, TranslatorError
from translation.prediction.translator import Translator

AT = ("beam", 2), ("max_len", 40)


@pytest.fixture(scope="module")
def translator(trained_run):
    return Translator(trained_run, device="cpu", max_tokens=200)


@pytest.fixture(scope="module")
def lines(corpus):
    return (corpus.text / "test.de").read_text(encoding="utf-8").split("\n")[:24]


@pytest.fixture(scope="module")
def generated(trained_run, shell):
    """fairseq-generate's texts and routes at a threshold, by sentence."""

    def call(threshold, *more):
        done = shell(
            *("fairseq-generate", trained_run / "data", *shell.PLUGIN, "--cpu", "--num-workers", 0),
            *("--path", trained_run / "networks/team.pt", "--beam", 2, "--max-len-b", 40),
            *("--remove-bpe", "sentencepiece", "--threshold", threshold, *more),
        )
        texts = {number: row[1] for number, row in done.table("H").items()}
        return texts, {number: row for number, row in done.table("R").items()}

    return call


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "numbers"
    words = ["export", trained_run / "networks/team.pt", trained_run / "data", "--out", folder]
    words += ["--points", trained_run / "operating_points.json", "--at", "macs=70%", "--check", 0]
    words += ["--sentencepiece", trained_run / "vocabulary/joint.model", "--max-len-b", 40]
    assert main([str(word) for word in words]) == 0
    return folder


def threshold_between(translator, lines):
    """One that about half of the sentences reach, in the middle of a gap."""
    values = sorted(t.confidence for t in translator(lines, threshold=0.0) if t.text)
    gaps = [(b - a, (a + b) / 2) for a, b in itertools.pairwise(values)]
    return max(gaps)[1]


def test_parity_with_fairseq_generate_and_the_export(translator, lines, generated, exported):
    threshold = threshold_between(translator, lines)
    ours = translator(lines, threshold=threshold)
    texts, routes = generated(threshold)
    assert [t.text for t in ours] == [texts[row] for row in range(len(lines))]
    assert [t.route for t in ours] == [routes[row][0] for row in range(len(lines))]
    for row, translation in enumerate(ours):
        assert translation.confidence == pytest.approx(float(routes[row][1]), abs=2e-4)
    assert {t.route for t in ours} >= {"delegator", "empty"}
    assert any(t.route.startswith("expert-") for t in ours)
    greedy = translator(lines, threshold=threshold, beam=1)
    theirs = Translator(exported, device="cpu")(lines, threshold=threshold, beam=1)
    assert [t.route for t in theirs] == [t.route for t in greedy]
    assert [t.text for t in theirs] == [t.text for t in greedy]
    assert [t.confidence for t in theirs] == pytest.approx([t.confidence for t in greedy], abs=1e-5)
    for a, b in zip(greedy, theirs, strict=True):
        assert b.macs == pytest.approx(a.macs, rel=1e-9 if a.exited else 0.1)  # encodes once more


def test_no_exits_and_their_cost(translator, lines, generated):
    ours = translator(lines, threshold=math.inf)
    texts, _ = generated("inf")
    assert [t.text for t in ours] == [texts[row] for row in range(len(lines))]
    assert all(math.isnan(t.confidence) for t in ours if t.text)
    full = translator(lines, threshold=1.0)  # the delegator translates, and none ends with it
    for without, selecting in zip(ours, full, strict=True):
        assert (without.macs < selecting.macs) == bool(selecting.pieces)


def test_multiply_adds_are_those_of_decode(translator, trained_run, corpus):
    from translation.evaluation.translations import Translations

    decoded = Translations.load(trained_run / "decoded/valid.json")
    texts = (corpus.text / "valid.de").read_text(encoding="utf-8").split("\n")[:24]
    ours = translator(texts, threshold=0.0)
    assert [t.macs for t in ours] == pytest.approx(decoded.networks["delegator"].macs)
    assert [t.text for t in ours] == decoded.networks["delegator"].text
    single = translator(texts, system="single:expert-alone")
    assert [t.macs for t in single] == pytest.approx(decoded.networks["expert-alone"].macs)
    assert [t.text for t in single] == decoded.networks["expert-alone"].text
    assert {t.route for t in single} == {"expert-alone"}
    cascade = translator(texts, system="cascade", threshold=1.0)
    parts = zip(
        decoded.networks["delegator-alone"].macs, decoded.networks["expert-alone"].macs, strict=True
    )
    assert [t.macs for t in cascade] == pytest.approx([sum(pair) for pair in parts])
    assert {t.route for t in cascade} == {"cascade"}


def test_budgets(translator, trained_run):
    from coe_core import load_points

    stored = load_points(trained_run / "operating_points.json", "translation")
    assert translator.resolve().name == "best"
    point = stored.named()["macs=70%"]
    for name in ("macs=70%", "70%"):
        assert translator.resolve(name).threshold == point.threshold
    half, more = translator.resolve("75%"), translator.resolve("99%")
    assert half.exit_rate >= more.exit_rate
    assert half.num_samples == 24
    cascade = stored.named("cascade")["best"]
    assert translator.resolve("best", system="CASCADE").threshold == cascade.threshold
    assert translator.resolve(system="single:expert-alone").threshold == math.inf


@pytest.fixture(scope="module")
def chosen(trained_run, tmp_path_factory):
    """The run, calibrated so that a control is deployed: one with nothing in common with the team."""
    folder = tmp_path_factory.mktemp("chosen") / "numbers"
    shutil.copytree(trained_run, folder)
    decoded = Translations.load(folder / "decoded/valid.json")
    decoded.networks["expert-alone"].text = list(decoded.reference)
    decoded.save(folder / "decoded/valid.json")
    words = ["calibrate", folder / "decoded/valid.json", "best", "macs=50%", "bleu_drop=0.5"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(w) for w in (*words, "--out", folder / "operating_points.json")]) == 0
    return Translator(folder, device="cpu")


def test_the_system_that_calibration_chose_translates(chosen, translator, lines, said):
    setting = chosen.resolve()
    assert (setting.name, setting.system) == ("best", "single:expert-alone")
    assert (setting.threshold, setting.exit_rate) == (math.inf, None)
    translations, single = chosen(lines), translator(lines, system="single:expert-alone")
    assert [(t.text, t.route, t.macs) for t in translations] == [
        (t.text, t.route, t.macs) for t in single
    ]
    assert {t.route for t in translations} == {"expert-alone", "empty"}
    assert chosen.resolve("bleu_drop=0.5").system == "single:expert-alone"
    assert chosen.resolve("50%").system == chosen.resolve("macs=50%").system
    assert chosen.resolve("1G").system == "single:expert-alone"  # the best that is deployed
    assert chosen.resolve(system="CoE").system == "CoE"  # at its own point "best"
    assert chosen.resolve("99%", system="coe").system == "CoE"
    assert chosen.resolve(threshold=0.5).system == "CoE"
    with pytest.raises(
        ValueError, match="'best' of single:expert-alone was fitted with beam 2, no"
    ):
        chosen(lines, beam=1)
    assert chosen(["eins"], beam=1, system="single:expert-alone")[0].route == "expert-alone"
    with pytest.raises(AimNotReachableError, match="is below that of single:expert-alone, "):
        chosen.resolve("1%", system="single:expert-alone")
    facts = chosen.engine.facts()
    assert facts["operating_points"]["best"]["system"] == "single:expert-alone"
    assert facts["slider"] == "CoE"
    assert chosen.engine.facts("single:expert-alone")["slider"] is None
    words = ["export", chosen.source / "networks/team.pt", chosen.source / "data", "--at", "best"]
    words += ["--points", chosen.source / "operating_points.json", "--out", chosen.source / "x"]
    status, _, error = said(*words)
    assert (status, "best is served by single:expert-alone, which calibrate" in error) == (2, True)
    status, told, _ = said("export", chosen.source, "--at", "best", "--check", 8)
    assert (status, "exported single:expert-alone, at best\n" in told) == (0, True)
    export = Translator(chosen.source / "export", device="cpu")
    assert export.resolve() == setting
    greedy = translator(lines, system="single:expert-alone", beam=1)
    assert [(t.text, t.route) for t in export(lines, beam=1)] == [(t.text, t.route) for t in greedy]
    (chosen.source / "networks/expert-alone.pt").unlink()
    with pytest.raises(TranslatorError, match=r"no such file; expert-alone was not trained"):
        Translator(chosen.source, device="cpu")(["eins"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"budget": "bset"},
            "no operating point 'bset'; stored: best, macs=70%; nearest: best",
        ),
        (
            {"budget": "1"},
            "below that of every system; the cheapest that exists is single:delegator",
        ),
        ({"budget": "best", "threshold": 0.5}, "give a budget or a threshold, not both"),
        ({"threshold": -1.0}, "outside the range of a probability"),
        ({"threshold": math.nan}, "outside the range of a probability"),
        ({"budget": "best", "beam": 3}, "threshold 'best' of CoE was fitted with beam 2, not 3"),
        (
            {"system": "tripple"},
            "no system 'tripple'; there are: CoE, cascade, single:delegator",
        ),
        ({"system": "single:expert-alone", "threshold": 0.5}, "always runs whole"),
        ({"beam": 0, "threshold": 0.5}, r"beam must be in \[1, 1000\], got 0"),
        ({"lenpen": math.nan, "threshold": 0.5}, r"lenpen must be in \[-100, 100\]"),
        ({"max_len": 0, "threshold": 0.5}, r"max_len must be in \[1, 100000\], got 0"),
        ({"nbest": 3}, r"nbest must be in \[1, 2\], the beam, got 3"),
        ({"over_long": "stop"}, "over_long must be cut, skip or refuse, got 'stop'"),
    ],
)
def test_refused(translator, options, message):
    with pytest.raises(Exception, match=message):
        translator(["eins Meter"], **options)


def test_long_and_empty_lines(translator):
    long = "eins Meter und " * 60
    empty, blank, cut, short = translator(["", "  ", long, "zwei Tage"])
    assert (empty.text, empty.route, empty.macs) == ("", "empty", 0.0)
    assert blank.route == "empty"
    assert cut.cut > 0
    assert cut.pieces == cut.cut + translator.engine.longest
    assert cut.text
    skipped, same = translator([long, "zwei Tage"], over_long="skip")
    assert (skipped.text, skipped.route, skipped.macs) == ("", "over-long", 0.0)
    assert (same.text, same.route, same.macs) == (short.text, short.route, short.macs)
    with pytest.raises(ValueError, match=r"text 1 has \d+ pieces, the networks take 59"):
        translator([long], over_long="refuse")


def test_nbest(translator, generated, lines):
    texts = {}
    for translation in translator(lines[:3], threshold=0.0, nbest=2):
        assert len(translation.hypotheses) == 2
        assert translation.text == translation.hypotheses[0]
        texts[translation.text] = translation.hypotheses[1]
    assert len(texts) == 3


def test_a_translation_does_not_depend_on_its_batch(translator, lines):
    together = translator(lines[:8])
    one_by_one = [translator(line)[0] for line in lines[:8]]
    assert [(t.text, t.route) for t in together] == [(t.text, t.route) for t in one_by_one]


def test_threads_get_their_own_answers(translator, lines):
    expected = {row: translator(line)[0] for row, line in enumerate(lines[:4])}
    by_row = {}

    def work(row):
        by_row[row] = translator(lines[row])[0]

    threads = [threading.Thread(target=work, args=[row]) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {row: (t.text, t.route, t.macs) for row, t in by_row.items()} == {
        row: (t.text, t.route, t.macs) for row, t in expected.items()
    }


def test_threads_are_chosen(translator, exported, monkeypatch):
    for variable in FIXED_BY:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("coe_core.threads.allowed_processors", lambda: 4.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    small = translator.engine.choose_threads(1024)
    assert (small.count, torch.get_num_threads()) == (1, 4)  # the second is the test's
    assert re.search(r"a batch of 16 sentences of \S+ G multiply-adds is too short", str(small))
    monkeypatch.setattr("coe_core.threads.WORTH_MEASURING", 0)
    measured = translator.engine.choose_threads(40)
    assert measured.measured
    assert re.search(r"a batch of 2 sentences takes \S+ ms with 1 and \S+ ms with 4", str(measured))
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert translator.engine.choose_threads(1024).reason == ""  # the user has chosen
    assert Translator(exported, device="cpu").engine.choose_threads(1024) is None


def test_a_bare_checkpoint(trained_run, translator, lines):
    parts = {"data": trained_run / "data", "vocabulary": trained_run / "vocabulary/joint.model"}
    parts |= {"device": "cpu"}
    bare = Translator(trained_run / "networks/team.pt", **parts)
    assert bare.resolve().name == "no exits"
    changed = {"threshold": 0.2, "beam": 2, "max_len": 40}
    ours = bare(lines, **changed)
    assert [t.text for t in ours] == [t.text for t in translator(lines, threshold=0.2)]
    points = trained_run / "operating_points.json"
    fitted = Translator(trained_run / "networks/team.pt", points=points, **parts)
    assert fitted.search == Search(2, 1.0, 200)  # beam and length penalty are those of the points
    assert fitted.resolve().threshold == translator.resolve().threshold
    with pytest.raises(ValueError, match="fitted with beam 2, not 5"):
        fitted(lines, beam=5)
    plain = Translator(trained_run / "networks/expert-alone.pt", **parts)
    assert plain.engine.systems == ["single:expert-alone"]
    single = translator(lines, system="single:expert-alone")
    assert [t.text for t in plain(lines, beam=2, max_len=40)] == [t.text for t in single]


def test_a_run_into_several_languages_is_told_which(translator, monkeypatch):
    with pytest.raises(
        ValueError, match=r"no language 'fr'; .* translates into one language: name"
    ):
        translator(["eins"], target="fr")
    monkeypatch.setattr(translator.engine, "targets", ["en", "fr"])
    with pytest.raises(ValueError, match=r"say into which language; .* translates into en, fr"):
        translator(["eins"])
    assert translator.cut("eins", "fr").pieces == translator.engine.cut("<2fr> eins")
    assert translator.cut(" ", "fr").pieces == []


def test_networks_of_one_direction_each(trained_run, translator, lines, monkeypatch):
    control = [trained_run / "networks/expert-alone.pt"]
    monkeypatch.setitem(translator.engine.controls, "each.de-en", control)
    monkeypatch.setitem(translator.engine.controls, "each.fr-en", control)
    monkeypatch.setattr(translator.engine.budgets, "systems", translator.engine.systems)
    with pytest.raises(
        ValueError, match=r"each is one network for each .*, single:each.de-en, sin"
    ):
        translator(["eins"], system="each")
    translations = translator(lines[:3], system="single:each.de-en")
    assert {t.route for t in translations} == {"each.de-en"}
    single = translator(lines[:3], system="single:expert-alone")
    assert [t.text for t in translations] == [t.text for t in single]


def test_what_cannot_be_loaded(trained_run, tmp_path, exported):
    for source, options, message in (
        (tmp_path / "no", {}, "no: no such run, export or checkpoint"),
        (tmp_path, {}, "neither a run nor an export"),
        (trained_run / "networks/team.pt", {}, "a checkpoint alone has no dictionaries"),
        (trained_run / "networks/team.pt", {"data": tmp_path / "d"}, r"no such folder \(data\)"),
        (trained_run, {"data": tmp_path}, "has its own data: leave data out"),
        (exported, {"vocabulary": tmp_path}, "has its own vocabulary"),
    ):
        with pytest.raises(TranslatorError, match=message):
            Translator(source, **options)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        Translator(trained_run, max_tokens=0)
    with pytest.raises(ValueError, match="no operating point 'fast'"):
        Translator(trained_run, budget="fast", device="cpu")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tpu'"):
        Translator(trained_run, device="tpu")


@pytest.mark.parametrize(
    ("system", "parts"),
    [("single:expert-alone", ["network"]), ("cascade", ["delegator", "expert_0"])],
)
def test_an_export_of_another_system(translator, trained_run, lines, said, tmp_path, system, parts):
    """Holds its own parts only, and translates as the run does."""
    out = tmp_path / "x"
    status, told, _ = said("export", trained_run, "--system", system, "--out", out, "--check", 12)
    assert status == 0
    assert f"exported {system}{', at best' if system == 'cascade' else ''}\n" in told
    assert "12 of 12 take the same route" in told
    others = ["routing.json", "runner.py", "sentencepiece.model"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*parts, *others])
    export = Translator(out, device="cpu")
    assert export.engine.systems == [system]
    assert export.resolve() == translator.resolve(system=system)
    how = {"beam": 1}
    if system == "cascade":
        cascade = sorted(t.confidence for t in translator(lines, None, 0.0, system=system, **how))
        how["threshold"] = (cascade[11] + cascade[12]) / 2
    theirs, ours = translator(lines, system=system, **how), export(lines, **how)
    assert [(t.text, t.route) for t in ours] == [(t.text, t.route) for t in theirs]
    assert [t.confidence for t in ours] == pytest.approx([t.confidence for t in theirs], abs=1e-5)
    for own, other in zip(ours, theirs, strict=True):
        assert own.macs == pytest.approx(other.macs, rel=0.1)
    facts = export.engine.facts()
    assert facts["operating_points"]["best"]["system"] == system
    assert facts["slider"] == ("cascade" if system == "cascade" else None)
    with pytest.raises(ValueError, match=f"no system 'CoE': this export is of {system} alone"):
        export(["eins"], system="CoE")
    if system != "cascade":
        with pytest.raises(ValueError, match="single:expert-alone always runs whole: it takes no"):
            export(["eins"], threshold=0.5)


def test_an_exports_points(exported, trained_run, translator):
    export = Translator(exported, device="cpu")
    assert export.search == Search(2, 1.0, 40)
    assert export.resolve().name == "macs=70%"
    assert export.resolve("70%") == export.resolve("macs=70%")
    assert export.resolve().threshold == translator.resolve("70%").threshold
    for options, message in (
        ({"system": "cascade"}, "no system 'cascade': this export is of CoE alone"),
        ({"budget": "x"}, "no operating point 'x'; stored: best, macs=70%"),
        ({"budget": "best", "threshold": 1.0}, "a budget or a threshold, not both"),
        ({"beam": 1}, "fitted with beam 2, not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            export(["eins"], **options)
