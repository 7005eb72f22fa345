"""The export's settings and its runner.py as users call it: one line for whatever is wrong."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coe_core import OperatingPoint, StoredPoints
from coe_core.support.exports import write_routing
from coe_core.support.routing_file import DamagedExportError
from translation.commands.cli import main
from translation.evaluation.calibrate import save_points
from translation.export import runner as module
from translation.export.runner import Runner
from translation.prediction.translator import Translator


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(exported[0], tmp_path / "export"))


@pytest.fixture
def call(folder, capfd, monkeypatch):
    """Exit status, lines, and what is said on stderr."""

    def run(text: bytes, *arguments: object) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        try:
            status = module.main([*map(str, arguments), "--folder", str(folder)])
        except SystemExit as stop:
            status = stop.code
        said = capfd.readouterr()
        return status, said.out.split("\n")[:-1], said.err

    return run


def rewrite(folder: Path, **values: object) -> None:
    """The same export with other values, as if it had been exported so."""
    routing = json.loads((folder / "routing.json").read_text())
    kept = {name: routing[name] for name in routing if name not in ("files", "sha256", "format")}
    write_routing(folder, {**kept, **values}, None)


def points_file(path: Path, **values: object) -> Path:
    fields = {"name": "some", "threshold": 0.14, "aim": "best", "value": None, "exit_rate": 0.5}
    fields |= {"quality": 9.0, "cost": 1e5, "cost_unit": "macs", "num_samples": 9, "data": "x"}
    point = OperatingPoint(**{**fields, "date": "2026-01-01", **values})
    save_points(path, StoredPoints({"CoE": [point]}, {}))
    return path


def export(team, corpus, *options: object, checkpoint: object = None) -> int:
    path = checkpoint or team / "checkpoint_last.pt"
    words = ["export", path, corpus.binary, *options]
    return main([str(word) for word in words])


def test_one_line_that_is_too_long(call, tmp_path):
    text = b"eins Meter\n" + b"eins " * 2000 + b"\n\n \nzwei Tage\r\ndrei Euro"
    status, lines, said = call(text, "--routes", tmp_path / "routes")
    assert status == 1
    assert len(lines) == 6
    assert [bool(line) for line in lines] == [True, False, False, False, True, True]
    assert "runner.py: line 2 has 2000 pieces, the networks take 1023; left empty\n" in said
    routes = [line.split("\t") for line in (tmp_path / "routes").read_text().splitlines()]
    assert [route for _, route, _ in routes][1:4] == ["too-long", "empty", "empty"]
    assert call(b"zwei Tage\n")[1] == lines[4:5]
    assert call(b"")[:2] == (0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--at", "fast"), "no operating point 'fast'; stored: some, none"),
        (("--threshold", "nan"), "threshold must be at least 0, got nan"),
        (("--beam", 0), "beam must be at least 1, got 0"),
        (("--max-length", -3), "max_length must be at least 1, got -3"),
        (("--lenpen", "inf"), "lenpen must be a finite number, got inf"),
        (("--batch-size", 0), "batch_size must be at least 1, got 0"),
        (("--threads", -1), "threads must be at least 0, got -1"),
        (("--beam", 10**12), "beam must be at most 1000, got 1000000000000"),
        (("--batch-size", 10**12), "batch_size must be at most 1000000, got 1000000000000"),
        (("--threads", 10**6), "threads must be at most 1024, got 1000000"),
        (("--at", "some", "--threshold", 0.5), "give an operating point or a threshold, not both"),
        (("--beam", "three"), "argument --beam: invalid int value: 'three'; see runner.py --help"),
        (("--thresh", 1), "unrecognized arguments: --thresh 1; see"),
        (("--compute-type", "int3"), "int3"),
        (("--routes", "/nowhere/routes"), "No such file or directory"),
    ],
)
def test_wrong_settings(call, arguments, message):
    status, lines, said = call(b"eins\n", *arguments)
    assert (status, lines) == (2, [])
    assert said.startswith("runner.py: ")
    assert message in said
    assert said.count("\n") == 1


def test_an_export_into_several_languages_is_told_which(call, folder):
    rewrite(folder, targets=["en", "fr"])
    status, lines, said = call(b"eins Meter\n")
    assert (status, lines) == (2, [])
    assert "say into which language; the export translates into en, fr" in said
    assert "no language 'de'; the export" in call(b"eins\n", "--target", "de")[2]
    assert call(b"eins Meter\n\n", "--target", "fr")[0] == 0
    runner = Runner(folder)
    assert runner.cut(["eins Meter", ""], "fr") == [["<2fr>", "eins", "Meter"], []]
    assert runner(["eins Meter"], target="fr") == runner.decode([["<2fr>", "eins", "Meter"]])
    translator = Translator(folder, device="cpu")
    assert translator.engine.targets == ["en", "fr"]
    assert translator.cut("eins Meter", "fr").pieces == ["<2fr>", "eins", "Meter"]
    rewrite(folder, targets="en")
    assert 'routing.json is damaged: targets is "en", not a list of languages' in call(b"")[2]


@pytest.mark.parametrize(
    "name", ["delegator/model.bin", "selection/head.npz", "expert_1/config.json"]
)
def test_a_flipped_bit_names_the_file(call, folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(content)
    status, lines, said = call(b"eins\n")
    assert (status, lines) == (2, [])
    assert said.startswith(f"runner.py: {folder / name} is damaged: its sha256 begins ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("delegator/model.bin", b"", "CTranslate2 does not load"),
        ("delegator/model.bin", bytes(99), "CTranslate2 does not load"),
        ("selection/head.npz", b"PK", "head.npz is damaged: "),
        ("selection/head.npz", None, "head.npz is damaged: FileNotFoundError"),
        ("expert_0/model.bin", None, "CTranslate2 does not load"),
    ],
)
def test_other_files_without_digests(call, folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    status, _, said = call(b"eins\n", "--no-verify")
    assert status == 2
    assert message in said
    assert said.count("\n") == 1
    assert call(b"eins\n")[2].startswith(f"runner.py: {folder / name} is ")


def test_a_missing_network(call, folder):
    shutil.rmtree(folder / "expert_1")
    for more in ((), ("--no-verify",)):
        status, _, said = call(b"eins\n", *more)
        assert status == 2
        assert "is missing: copy the whole export" in said


def test_an_export_of_format_1_is_read(folder, corpus):
    text = (corpus.text / "test.de").read_text(encoding="utf-8").splitlines()
    expected = Runner(folder, threads=1)(text, at="some")
    new = json.loads((folder / "routing.json").read_text())
    old = {name: new[name] for name in ("confidence", "search", "end", "max_source_tokens")}
    old |= {"format": 1, "num_experts": 2, "thresholds": {"some": 0.14, "none": "inf"}}
    old |= {"default": 0.14, "sentencepiece": None, "weights": "float32", "provenance": {}}
    (folder / "routing.json").write_text(json.dumps(old))
    assert Runner(folder, threads=1)(text) == expected


def test_a_head_of_other_experts(folder):
    import numpy as np

    np.savez(folder / "selection/head.npz", weight=np.zeros((3, 4)), bias=np.zeros(3))
    with pytest.raises(DamagedExportError, match=r"weight \(3, 4\), bias \(3,\) for 2 experts"):
        Runner(folder, verify=False)


@pytest.mark.process
def test_a_reader_that_goes_away(exported):
    """As `runner.py | head -1`: in a process of its own, because the pipe is the process's."""
    process = subprocess.Popen(
        [sys.executable, exported[0] / "runner.py", "--threads", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.stdout.close()
    process.stdin.write(b"eins Meter\n" * 2000)
    process.stdin.close()
    said = process.stderr.read().decode()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert process.wait() == 1


def test_a_stored_threshold_is_refused_with_another_search(folder):
    point = {"threshold": 0.14, "rough_weight": 0.0, "fitted_with": {"beam": 1, "lenpen": 1.0}}
    rewrite(folder, operating_points={"some": point}, default={**point, "name": "some"})
    runner = Runner(folder, threads=1)
    runner(["eins"], at="some")
    for at in ("some", None):
        with pytest.raises(
            ValueError, match="threshold 'some' was fitted with beam 1, not 5: give a"
        ):
            runner(["eins"], at=at, beam=5)
    runner(["eins"], threshold=0.2, beam=5)


def test_networks_of_few_positions(team, corpus, tmp_path, capsys):
    """Searches end where the networks do, as fairseq's do; CTranslate2 would go on."""
    state = torch.load(team / "checkpoint_last.pt", weights_only=True)
    for part in ("model", "task"):
        state["cfg"][part]["max_target_positions"] = 6
    torch.save(state, tmp_path / "few.pt")
    out = tmp_path / "out"
    done = export(team, corpus, "--out", out, "--beam", 1, checkpoint=tmp_path / "few.pt")
    assert done == 0
    said = capsys.readouterr().out
    assert "translations end after 5 pieces: the networks have no more positions" in said
    assert "24 of 24 take the same route" in said
    runner = Runner(out, threads=1)
    assert runner.routing["search"]["max_length"] == 5
    assert runner.search(max_length=200)["max_length"] == 5
    answers = runner(["eins Meter und zwei Tage und drei Euro und vier Jahre"], max_length=99)
    assert len(answers[0].text.split()) <= 5


def test_thresholds_of_log_probability(team, corpus, tmp_path, capsys):
    fitted = {"confidence": "log_probability", "beam": 1, "lenpen": 1.0, "direction": "de-en"}
    points = points_file(tmp_path / "p.json", threshold=-1.9, fitted_with=fitted)
    out = tmp_path / "out"
    assert export(team, corpus, "--out", out, "--points", points, "--at", "some") == 0
    assert "24 of 24 take the same route" in capsys.readouterr().out
    runner = Runner(out, threads=1)
    assert runner.routing["confidence"] == "log_probability"
    assert runner.routing["search"]["beam"] == 1  # that of the threshold
    text = (corpus.text / "test.de").read_text(encoding="utf-8").splitlines()
    answers = runner(text)  # its own default
    assert {answer.network for answer in answers} >= {"delegator"}
    assert all(answer.confidence <= 0 for answer in answers)


@pytest.mark.parametrize(
    ("fitted", "options", "message"),
    [
        ({"beam": 4}, ("--beam", 5), "'some' of CoE was fitted with beam 4, not 5: translate with"),
        ({"lenpen": 0.6}, ("--lenpen", 1), "was fitted with lenpen 0.6, not 1.0"),
        ({"direction": "en-de"}, (), "was fitted with direction en-de, not de-en"),
        ({"checkpoint": "0" * 64}, (), "was fitted with checkpoint 000000000000..., not "),
    ],
)
def test_thresholds_fitted_with_something_else(
    team, corpus, tmp_path, capsys, fitted, options, message
):
    points = points_file(tmp_path / "p.json", fitted_with=fitted)
    given = ("--out", tmp_path / "out", "--points", points, "--at", "some", *options)
    assert export(team, corpus, *given) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_that_cannot_be_compared_does_not_stay(team, corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(team, corpus, "--out", out, "--subset", "other") == 2
    assert "other" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "take", "average"])
def test_a_full_disk_leaves_nothing(team, corpus, tmp_path, capsys, command):
    import resource

    last, out = team / "checkpoint_last.pt", ("--out", tmp_path / "out")
    words = {"export": (corpus.binary, *out, "--check", 0), "take": ("expert-0", *out)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status = main([str(word) for word in (command, last, *words.get(command, out))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    said = capsys.readouterr().err
    assert said.startswith(f"coe-translation {command}: ")
    assert "File too large" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
