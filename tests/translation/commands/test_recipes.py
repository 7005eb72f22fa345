"""Recipes through sh, on corpora of a few sentences: whole runs, runs that were stopped, wrong input."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from translation.corpora.numbers import number_pairs

ROOT = Path(__file__).parents[3]
SMALL = {
    "VOCABULARY": "200",
    "EXPERTS": "2",
    "EXPERT": "16 16 1 1 1",
    "DELEGATOR": "8 8 1 1 1",
    "UPDATES": "10",
    "HELD_OUT": "4",
    "PAIRS": "150",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
SMALL_BATCHES = "--required-batch-size-multiple 1"  # or fairseq drops a last batch of less than 8


@pytest.fixture(scope="module")
def start(warm):
    """Start a recipe in a process group of its own."""
    commands = warm("translation")

    def call(recipe, *arguments, **environment):
        return subprocess.Popen(
            ["sh", f"recipes/translation/{recipe}.sh", *map(str, arguments)],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL},
            env={**os.environ, **SMALL, "COE_BIN": str(commands), **environment},
            cwd=ROOT,
            text=True,
            process_group=0,
        )

    return call


@pytest.fixture(scope="module")
def run(start):
    """Run a recipe; what it said."""

    def call(recipe, *arguments, fails=False, **environment):
        process = start(recipe, *arguments, **environment)
        out, error = process.communicate()
        assert (process.returncode != 0) == fails, out[-2000:] + error[-2000:]
        return error if fails else out

    return call


def write(folder, name, languages, pairs):
    folder.mkdir(exist_ok=True)
    for side, language in enumerate(languages):
        text = "".join(pair[side] + "\n" for pair in pairs)
        (folder / f"{name}.{language}").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def multi30k(tmp_path_factory):
    """A folder as the recipe of Multi30k wants it, of numbers."""
    folder, pairs = tmp_path_factory.mktemp("data"), number_pairs(170, seed=3)
    for name in ("val", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco"):
        write(folder, name, ("de", "en"), [pairs.pop() for _ in range(4)])
    write(folder, "train", ("de", "en"), pairs)
    return folder


def table(out):
    """Rows of the last table that a recipe showed, by system."""
    lines = out.rpartition(" BLEU")[2].splitlines()[1:]
    rows = (re.match(r"(\S.*?)  +(\d.*)", line) for line in lines)
    return {row[1]: [float(cell) for cell in row[2].split()] for row in rows if row}


def test_demo(run, tmp_path):
    out = run("demo", tmp_path / "run")
    rows = table(out)
    aims = ("no exits", "bleu_drop=0.5", "macs=80%", "macs=60%")
    assert {"delegator", "single", *(f"CoE, {aim}" for aim in aims)} <= rows.keys()
    assert rows["CoE, macs=60%"][2] <= rows["CoE, macs=80%"][2] <= rows["CoE, no exits"][2]
    assert len(re.findall(r"\n    -> .*\[(?:delegator|expert-\d), confidence [\d.]+\]", out)) == 6
    assert "\n14:05\n    -> " in out
    assert "BLEU: nrefs:1|case:mixed" in out
    assert (tmp_path / "run/curve/test/trade_off.png").is_file()


def stop_at(process, folder, pattern):
    """Kill a recipe as soon as there is such a file."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_stopped_recipe_goes_on(start, run, multi30k, tmp_path):
    out = tmp_path / "run"
    stop_at(
        start("multi30k", multi30k, out, UPDATES="70", ROUTED="best macs=1"),
        out,
        "team/checkpoint_*_14.pt",
    )
    assert not (out / "stages/train-team").exists()
    (out / "team/checkpoint_last.pt").write_bytes(b"PK a copy cut short")
    error = run("multi30k", multi30k, out, UPDATES="60", fails=True)
    assert "was made with other settings" in error
    assert "< updates 70, 3 averaged" in error
    going_on = start("multi30k", multi30k, out, UPDATES="70", ROUTED="best macs=1")
    stop_at(going_on, out, "expert-alone/checkpoint_*_14.pt")
    said = run("multi30k", multi30k, out, UPDATES="70", ROUTED="best macs=1")
    for stopped in ("team", "expert-alone"):
        log = (out / stopped / "log").read_text()
        assert re.search(
            r"Loaded checkpoint .*\(epoch \d+ @ (7|14|21|28|35|42|49|56|63) updates\)", log
        ), stopped
    assert "of 70 updates" in said
    assert "training team" not in said
    rows = table(said)
    systems = ("expert-alone", "delegator-alone", "single-sum", "ensemble")
    assert {*systems, "random, no exits", "oracle, no exits"} <= rows.keys()
    assert {"cascade, no exits", "CoE, best"} <= rows.keys()
    assert (out / "generated/test_2017_mscoco.best").read_text().count("D-") == 4
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    assert len(before) == 4
    again = run("multi30k", multi30k, out, UPDATES="70", ROUTED="best macs=1")
    assert "training" not in again
    assert table(again) == rows
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.pt")} == before


def test_tatoeba(run, tmp_path):
    pairs = number_pairs(150, seed=4)
    (tmp_path / "deu.txt").write_text("".join(f"{b}\t{a}\tCC-BY\n" for a, b in pairs))
    out = run("tatoeba", tmp_path, tmp_path / "run", "7", MORE=SMALL_BATCHES)
    assert "CoE, best" in table(out)
    assert len((tmp_path / "run/text/valid.de").read_text().splitlines()) == 4
    other = run("tatoeba", tmp_path, tmp_path / "run", "8", fails=True)
    assert "was made of another corpus" in other


def iwslt(folder, sentences=200):
    """The files of de-en.tgz."""
    pairs = number_pairs(sentences, seed=5)
    for side, language in enumerate(("de", "en")):
        lines = ["<url>http://x</url>", "<talkid>1</talkid>", "<keywords>a, b</keywords>"]
        lines += [f"<title>{pairs[0][side]}</title>", *(f" {pair[side]} " for pair in pairs[1:])]
        (folder / f"train.tags.de-en.{language}").write_text("\n".join(lines) + "\n")
        for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            text = f'<doc>\n<seg id="1"> {pairs[0][side]} </seg>\n</doc>\n'
            (folder / f"IWSLT14.{name}.de-en.{language}.xml").write_text(text)


def test_iwslt14(run, tmp_path):
    iwslt(tmp_path)
    out = run(
        "iwslt14",
        tmp_path,
        tmp_path / "run",
        LOWERCASE="yes",
        MORE=SMALL_BATCHES,
    )
    assert {"expert-alone", "cascade, best", "CoE, best"} <= table(out).keys()
    assert len((tmp_path / "run/text/test.en").read_text().splitlines()) == 5
    (tmp_path / "train.tags.de-en.en").unlink()
    error = run("iwslt14", tmp_path, tmp_path / "other", fails=True)
    assert "train.tags.de-en.en missing" in error


def test_wmt14(run, tmp_path):
    pairs = number_pairs(150, seed=6)
    write(tmp_path, "newstest2013", ("de", "en"), pairs[:4])
    write(tmp_path, "newstest2014", ("de", "en"), pairs[4:8])
    write(tmp_path, "train", ("de", "en"), pairs[8:])
    out = run("wmt14", tmp_path, tmp_path / "run", EXPERTS="1", MORE=SMALL_BATCHES)
    assert {"expert-alone", "cascade, best", "CoE, best"} <= table(out).keys()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "usage: multi30k.sh DATA OUT [SEED]"),
        (["nowhere", "{out}"], {}, "no folder nowhere; usage: multi30k.sh DATA OUT [SEED]"),
        (["{data}", "{out}", "one"], {}, "SEED must be a whole number, got 'one'"),
        (["{data}", "{out}"], {"UPDATES": "0"}, "UPDATES must be a whole number above 0, got '0'"),
        (["{data}", "{out}"], {"COE_BIN": "/none"}, "no command /none/coe-translation; install"),
        (
            ["{lacks}", "{out}"],
            {},
            "val.de is missing or empty; needed: train val test_2016_flickr",
        ),
        (["{uneven}", "{out}"], {}, "line counts differ: "),
    ],
)
def test_wrong_input_is_an_error_before_any_work(
    run, multi30k, tmp_path, arguments, environment, message
):
    places = {"data": multi30k, "out": tmp_path / "run"}
    for name in ("lacks", "uneven"):
        places[name] = shutil.copytree(multi30k, tmp_path / name)
    places["lacks"].joinpath("val.de").unlink()
    places["uneven"].joinpath("val.de").write_text("eins\n")
    words = [word.format(**places) for word in arguments]
    assert message in run("multi30k", *words, fails=True, **environment)
    assert not (tmp_path / "run").exists()
