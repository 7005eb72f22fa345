"""`coe-translation train`: a whole run, stopped ones that go on, several directions, wrong input.

Programs are copies of this process, which has imported fairseq once: a run of the smallest networks takes
seconds.
"""

import contextlib
import csv
import gzip
import io
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch

from translation.commands.cli import main
from translation.corpora.numbers import number_pairs
from translation.plugin.checkpoints import load_state
from translation.recipe import load_recipe
from translation.run import Run, load_run
from translation.training import train, watch

pytestmark = [pytest.mark.process, pytest.mark.slow]

SIZES = "embed_dim: 8, ffn_embed_dim: 8, encoder_layers: 1, decoder_layers: 1, attention_heads: 1"
RECIPE = f"""# The smallest
languages: {{source: de, target: en}}
texts: {{corpus: numbers, pairs: 100, held_out: 4}}
vocabulary: {{size: 110}}
delegator: {{{SIZES}}}
experts: {{{SIZES.replace("8", "16")}}}
num_experts: 2
controls: {{expert-alone: {{{SIZES}}}, delegator-alone: {{{SIZES}}}}}
training:
  {{updates: 6, max_tokens: 700, lr: 5.0e-3, warmup_updates: 2, dropout: 0.1, device: cpu,
    validate: bleu, save_interval: 2}}
generation: {{max_len: 12, beam: 2, timed: best}}
aims: [best, macs=60%]
"""


@pytest.fixture(scope="module", autouse=True)
def _used_process():
    """This process has translated and trained before: quiet logs, and a best loss that fairseq keeps."""
    from fairseq.checkpoint_utils import save_checkpoint

    save_checkpoint.best = -1.0
    logger = logging.getLogger("fairseq")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)
    del save_checkpoint.best


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "smallest.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def call():
    """`coe-translation` in this process; its status and what it said on both streams."""

    def run(*words):
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as error,
        ):
            status = main([str(word) for word in words])
        return status, out.getvalue(), error.getvalue()

    with pytest.MonkeyPatch.context() as patch:  # the order of sums depends on the threads
        patch.setenv("OMP_NUM_THREADS", "1")
        yield run


@pytest.fixture(scope="module")
def finished(recipe, call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    status, out, error = call("train", recipe, "--out", folder, "--parallel", "2")
    assert status == 0, out[-3000:] + error[-3000:]
    return folder, out


def test_everything_from_text_to_table(finished):
    folder, out = finished
    run = load_run(folder)
    assert "de-en: 100 train, 4 valid, 4 test pairs" in out
    for program in (
        "coe-translation vocabulary",
        "fairseq-preprocess --source-lang de",
        "fairseq-train",
        "coe-translation average",
        "coe-translation decode",
        "coe-translation calibrate",
        "fairseq-generate",
        "coe-translation curve",
    ):
        assert f"$ {program} " in out, program
    assert "--user-dir $(coe-translation user-dir) --task coe_translation" in out
    for row in ("delegator ", "expert-alone ", "cascade, no exits ", "CoE, macs=60% "):
        assert f"\n{row}" in out, row
    assert "BLEU: nrefs:1|case:mixed" in out
    files = ("table.csv", "trade_off.csv", "trade_off.png", "translations/CoE_best")
    for file in files:
        assert (run.evaluation("test") / file).is_file(), file
    assert (folder / "generated/test.best").read_text().count("\nD-") == 4
    assert json.loads(run.provenance.read_text())["packages"].keys() >= {"torch", "fairseq-fixed"}
    assert load_recipe(str(run.recipe_file)) == run.recipe
    assert "$ fairseq-train" in run.log("train-team").read_text()


def test_metrics_and_picture(finished):
    folder, out = finished
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    team = [row for row in rows if row["system"] == "team"]
    assert [int(row["updates"]) for row in team if row["set"] == "valid"] == [2, 4, 6]
    assert [int(row["updates"]) for row in team if row["set"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert all(float(r["load_0"]) + float(r["load_1"]) == pytest.approx(100, abs=0.2) for r in team)
    assert all(row["bleu"] for row in team if row["set"] == "valid")
    assert {row["system"] for row in rows} == {"team", "expert-alone", "delegator-alone"}
    assert (folder / "training.png").stat().st_size > 10_000
    assert "team 6, loss" in out
    assert "validation loss" in out


def test_a_finished_run_does_nothing_again(finished, recipe, call):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    status, out, _ = call("train", recipe, "--out", folder, "--resume")
    assert status == 0
    assert "$ " not in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")} == before
    resumed = json.loads((folder / "provenance.json").read_text())["resumed"]
    assert len(resumed) >= 1


def test_other_aims_make_the_results_alone_again(finished, recipe, call):
    folder, _ = finished
    status, out, _ = call("train", recipe, "aims=[best, macs=90%]", "--out", folder, "--resume")
    assert status == 0
    assert "\nCoE, macs=90% " in out
    assert "$ fairseq-train" not in out
    assert call("train", recipe, "--out", folder, "--resume")[0] == 0


def test_a_run_is_not_touched_without_resume_or_with_other_settings(finished, recipe, call):
    folder, _ = finished
    status, _, error = call("train", recipe, "--out", folder)
    assert status == 2
    assert "already holds a run; continue it with --resume, or choose another --out" in error
    words = ("training.updates=7", "seed=3", "--out", folder, "--resume")
    status, _, error = call("train", recipe, *words)
    assert status == 2
    assert "was made with other settings: training.updates was 6, now 7; seed was 1, now 3" in error


def test_evaluate_two_runs(finished, call, tmp_path):
    folder, _ = finished
    status, out, _ = call("evaluate", folder, folder, "--out", tmp_path)
    assert status == 0
    assert "± 0.00" in out
    assert "difference in BLEU, 95% interval, p (paired bootstrap over sentences)" in out
    assert "CoE, best - expert-alone" in out
    assert "CoE, best - cascade, best" in out
    files = ("table.csv", "table.md", "comparisons.csv", "trade_off-a.png")
    assert all((tmp_path / "test" / file).is_file() for file in files)


def networks(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.name: load_state(path)["model"] for path in sorted((folder / "networks").glob("*.pt"))
    }


def stop_at(monkeypatch, system: str, updates: int, number: signal.Signals) -> None:
    """A signal to the run at that figure of that training's log."""
    line_of_log = watch.Trainings.told

    def stopping(self, name, line):
        line_of_log(self, name, line)
        logged = watch.parse(line)
        if name == system and logged is not None and logged.updates == updates:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(watch.Trainings, "told", stopping)


def test_a_stopped_run_goes_on_and_ends_the_same(finished, recipe, call, tmp_path, monkeypatch):
    folder = tmp_path / "b"
    with monkeypatch.context() as patch:
        stop_at(patch, "team", 5, signal.SIGTERM)
        status, _, error = call("train", recipe, "--out", folder)
    assert status == 128 + signal.SIGTERM
    assert "stopped; what was saved is kept, and --resume continues from there" in error
    run = Run(folder, load_recipe(str(recipe)))
    assert not run.team.exists()
    (run.training("team") / "checkpoint_last.pt").write_bytes(b"PK a copy cut short")
    with monkeypatch.context() as patch:
        stop_at(patch, "expert-alone", 3, signal.SIGINT)
        status, out, _ = call("train", recipe, "--out", folder, "--resume")
    assert status == 130
    assert "$ coe-translation vocabulary" not in out
    monkeypatch.setattr(train._Stages, "results", lambda self: None)  # networks are enough here
    status, out, _ = call("train", recipe, "--out", folder, "--resume")
    assert status == 0
    assert "Loaded checkpoint" in run.log("train-team").read_text()
    assert "Loaded checkpoint" in run.log("train-expert-alone").read_text()
    first, second = networks(finished[0]), networks(folder)
    assert first.keys() == second.keys() == {"team.pt", "expert-alone.pt", "delegator-alone.pt"}
    for name, parameters in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in parameters.items()), name


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """German and French (upside down) into English; the German training text is packed."""
    folder = tmp_path_factory.mktemp("texts")
    pairs = number_pairs(70, seed=5)
    for direction, take in (("de-en", 60), ("fr-en", 30)):
        place = folder / direction
        place.mkdir()
        source = direction[:2]
        for name, some in (
            ("train", pairs[8 : 8 + take]),
            ("valid", pairs[:4]),
            ("test", pairs[4:8]),
        ):
            if source == "fr":
                some = [(a[::-1], b) for a, b in some]
            for side, language in enumerate((source, "en")):
                text = "".join(pair[side] + "\n" for pair in some)
                if direction == "de-en" and name == "train":
                    (place / f"{name}.{language}.gz").write_bytes(gzip.compress(text.encode()))
                else:
                    (place / f"{name}.{language}").write_text(text)
    return folder


def test_several_directions(recipe, call, texts, tmp_path):
    folder = tmp_path / "many"
    words = (
        *("texts.corpus=files", f"texts.path={texts}", "languages.source=[de, fr]"),
        *("languages.temperature=2", f"controls={{each: {{one_per: direction, {SIZES}}}}}"),
        *(f"ensembles={{two: {{network: {{{SIZES}}}}}}}", "aims=best", "training.updates=2"),
        "generation.timed=[]",
        *("training.save_interval=1", "training.validate=loss", "training.select=best"),
        *("objective.groups=source", "training.patience=5"),
    )
    status, out, error = call("train", recipe, *words, "--out", folder)
    assert status == 0, out[-3000:] + error[-3000:]
    run = load_run(folder)
    of_line = run.directions("train").read_text().split()
    assert (of_line.count("de-en"), of_line.count("fr-en")) == (60, 42)  # 60 * sqrt(30 / 60)
    assert run.text("train", "groups").read_text().split() == [d[:2] for d in of_line]
    assert run.text("test", "src").read_text().count("\n") == 8
    trained = {path.stem for path in (folder / "networks").glob("*.pt")}
    assert trained == {"team", "each.de-en", "each.fr-en", "two.0", "two.1"}
    checkpoint = torch.load(run.training("each.fr-en") / "checkpoint_last.pt", weights_only=True)
    assert checkpoint["cfg"]["dataset"]["max_tokens"] == round(
        700 * 42 / 102
    )  # its part of the team's
    assert "checkpoint_best.pt" in run.log("average-team").read_text()
    first, second = (networks(folder)[f"two.{member}.pt"] for member in range(2))
    assert not all(torch.equal(value, second[key]) for key, value in first.items())
    status, out, _ = call("evaluate", folder)
    assert status == 0
    assert "CoE, best - each" in out
    assert "CoE, best - two" in out
    assert "BLEU of each: de-en " in out
    assert "experts of fr-en: " in out
    assert (run.evaluation("test") / "directions_per_expert.png").is_file()
    assert (
        (run.evaluation("test") / "directions.csv").read_text().startswith("system,de-en,fr-en\n")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["multi30k"], "this recipe's texts are yours: say where they are, texts.path=FOLDER"),
        (["multi30k", "texts.path=/nowhere"], "no folder /nowhere: give the folder of the texts"),
        (["mutli30k"], "no shipped recipe is called 'mutli30k'; nearest: multi30k"),
        (["demo", "training.fp16=true"], "training.fp16 needs a GPU; on a CPU give"),
        (["demo", "training.updates=0"], "training.updates must be in"),
    ],
)
def test_refused_before_any_work(call, tmp_path, words, message):
    status, _, error = call("train", *words, "--out", tmp_path / "run")
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_texts_that_do_not_serve(recipe, call, texts, tmp_path):
    words = [
        "train",
        recipe,
        "texts.corpus=files",
        f"texts.path={tmp_path}",
        "--out",
        tmp_path / "r",
    ]
    status, _, error = call(*words)
    assert status == 2
    assert "language de has no text: " in error
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            (tmp_path / f"{name}.{language}").write_text("eins\nzwei\ndrei\n")
    assert "valid and train overlap: 3 of 3 pairs of valid (de-en)" in call(*words)[2]
    (tmp_path / "valid.de").write_text("один\nдва\nтри\n", encoding="utf-8")
    assert (
        "valid (de) is written in CYRILLIC, the training text in LATIN: are the" in call(*words)[2]
    )
    (tmp_path / "valid.de").write_text("eins\nzwei\ndrei\n")
    (tmp_path / "valid.en").write_text("one\n")
    assert "line counts differ" in call(*words)[2]
    (tmp_path / "valid.en").write_text(" \n\n\n")
    assert "language en has no text: all 3 lines of " in call(*words)[2]
    assert not (tmp_path / "r").exists()


def test_a_stage_that_fails_says_why_in_one_line(recipe, call, tmp_path):
    folder = tmp_path / "run"
    status, _, error = call("train", recipe, "vocabulary.size=5000", "--out", folder)
    assert status == 2
    assert (
        "vocabulary: coe-translation vocabulary: no vocabulary of 5000 pieces from 200 lines: "
        in error
    )
    assert "Please set it to a value <= " in error
    assert error.count("\n") == 1
    status, _, error = call("train", recipe, "training.max_tokens=3", "--out", tmp_path / "other")
    assert status == 2
    assert "training: fairseq-train: --max-tokens 3 is less than the longest sentence has" in error
    assert error.count("\n") == 1


def test_recipes_are_listed_and_copied(call, tmp_path):
    status, out, _ = call("recipes")
    assert status == 0
    assert "multi30k Multi30k English-German" in " ".join(out.split())
    assert call("recipes", "copy", "demo", tmp_path)[0] == 0
    assert load_recipe(str(tmp_path / "demo.yaml")) == load_recipe("demo")
    assert "exists already and is left as it is" in call("recipes", "copy", "demo", tmp_path)[2]
    assert "copy which recipe" in call("recipes", "copy")[2]
    assert "list takes no name" in call("recipes", "list", "demo")[2]
