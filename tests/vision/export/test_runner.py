"""runner.py as users call it: one JSON line an image, one line for whatever is wrong."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from coe_core.support.exports import write_routing
from coe_core.support.routing_file import DamagedExportError, read_routing
from vision.export import runner as module
from vision.export.runner import Runner
from vision.export.sessions import load_programs, team_session


@pytest.fixture
def folder(small_export, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(small_export, tmp_path / "export"))


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(240, dtype=np.uint8).reshape(12, 20)).save(path)
    return path


@pytest.fixture
def call(folder, capsys):
    """Exit status, records and what is said on stderr."""

    def run(*arguments: object) -> tuple[int, list[dict], str]:
        try:
            status = module.main([*map(str, arguments), "--folder", str(folder)])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


def rewrite(folder: Path, **values: object) -> None:
    """The same export with other values, as if it had been exported so."""
    routing = json.loads((folder / "routing.json").read_text())
    kept = {name: routing[name] for name in routing if name not in ("files", "sha256", "format")}
    write_routing(folder, {**kept, **values}, None)


def test_images_that_cannot_be_read_are_said_and_the_others_predicted(call, picture, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.eps")
    (tmp_path / "b.png").write_text("no image")
    names = [tmp_path / "missing.png", tmp_path / "pipe", tmp_path, tmp_path / "a.eps"]
    names += [tmp_path / "b.png", tmp_path / "odd\udcff\n.png"]
    shutil.copy(picture, names[-1])
    status, records, said = call(*names, picture)
    assert (status, said) == (1, "")
    reasons = [
        "no such file",
        "it is a pipe or a device",
        "it is a folder",
        "cannot identify image",
    ]
    for record, reason in zip(records, [*reasons, "cannot identify image"], strict=False):
        assert reason in record["error"]
    assert records[-1]["file"] == str(picture)
    assert records[-1]["label"] == records[-2]["label"]
    assert records[-2]["file"] == str(names[-1])


@pytest.mark.parametrize("name", ["delegator.onnx", "expert_1.onnx"])
def test_a_flipped_bit_names_the_file(call, folder, picture, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    status, records, said = call(picture)
    assert (status, records) == (2, [])
    assert said.startswith(f"runner.py: {path} is damaged: its sha256 begins ")
    assert said.count("\n") == 1
    assert call(picture, "--no-verify")[0] in (0, 2)  # as it comes, but no traceback


@pytest.mark.parametrize("content", [b"", b"PK", b"\x08\x0a" * 40])
def test_another_file_in_the_place_of_a_network(call, folder, picture, content):
    (folder / "expert_0.onnx").write_bytes(content)
    status, _, said = call(picture)
    assert status == 2
    assert f"{folder / 'expert_0.onnx'} is damaged: it has {len(content)} bytes" in said
    status, _, said = call(picture, "--no-verify")
    assert status == 2
    assert said.startswith(f"runner.py: onnxruntime does not load {folder / 'expert_0.onnx'}: ")
    assert said.count("\n") == 1


def test_missing_files_are_named(call, folder, picture):
    (folder / "expert_0.onnx").unlink()
    for more in ((), ("--no-verify",)):
        status, _, said = call(picture, *more)
        assert status == 2
        assert said == f"runner.py: {folder / 'expert_0.onnx'} is missing: copy the whole export\n"
    (folder / "routing.json").unlink()
    status, _, said = call(picture)
    assert (status, said) == (
        2,
        f"runner.py: {folder} is not an export: it has no file routing.json\n",
    )


def test_the_single_file_is_compared_too(folder):
    team_session(folder)
    path = folder / "team.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedExportError, match=r"team\.onnx is damaged: its sha256 begins"):
        team_session(folder)
    Runner(folder, threads=1)  # which does not need it


@pytest.mark.slow
def test_programs_are_compared_too(small, saves, tmp_path, monkeypatch):
    from vision.export import export as export_module

    monkeypatch.setattr(export_module, "converted", lambda kind, *_: saves[kind])
    export_module.export_run(small, tmp_path / "pt2", "pt2", threshold=0.5)
    load_programs(tmp_path / "pt2")
    path = tmp_path / "pt2/expert_1.pt2"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedExportError, match=r"expert_1\.pt2 is damaged: its sha256 begins"):
        load_programs(tmp_path / "pt2")
    path.write_text("no program")
    write_routing(tmp_path / "pt2", read_routing(tmp_path / "pt2", "vision"), None)
    with pytest.raises(
        DamagedExportError, match=r"expert_1\.pt2 cannot be loaded as a torch.export"
    ):
        load_programs(tmp_path / "pt2")


def test_settings(call, picture):
    for arguments, message in [
        (("--at", "fast"), "runner.py: no operating point 'fast'; stored: none\n"),
        (("--threshold", "nan"), "runner.py: threshold must be at least 0, got nan: 0 ends all"),
        (("--threshold", -1), "runner.py: threshold must be at least 0, got -1"),
        (("--threshold", 1, "--at", "x"), "runner.py: give an operating point or a threshold, not"),
        (("--threshold", "x"), "runner.py: argument --threshold: invalid float value: 'x'; see"),
    ]:
        status, records, said = call(picture, *arguments)
        assert (status, records) == (2, [])
        assert said.startswith(message)
        assert said.count("\n") == 1
    assert call(picture, "--threshold", 0)[1][0]["exited"]
    assert call(picture, "--threshold", "inf")[1][0]["expert"] in (0, 1)


def test_names_of_classes_may_be_long_and_hold_line_ends(call, folder, picture):
    names = [f"{'é' * 125}\r\n\u2028{number}" for number in range(10)]
    rewrite(folder, classes=names)
    status, records, _ = call(picture)
    assert status == 0
    assert records[0]["label"] in names


def test_an_export_of_format_1_is_read(folder, picture):
    new = json.loads((folder / "routing.json").read_text())
    kept = ("classes", "preprocess", "confidence", "delegator", "experts", "curve", "opset")
    old = {"format": 1, **{name: new[name] for name in kept}, "default": new["default"]}
    old |= {"operating_points": {}, "packages": {}, "checkpoint": "last.ckpt"}
    expected = Runner(folder, threads=1)([picture])
    (folder / "routing.json").write_text(json.dumps(old))
    assert Runner(folder, threads=1)([picture]) == expected


class Always:
    """A delegator that is never confident and always selects the same expert."""

    def __init__(self, expert: int):
        self.expert = expert

    def run(self, _, given):
        n = len(given["images"])
        return np.zeros((n, 10), np.float32), np.zeros(n), np.full(n, self.expert)


def test_fewer_experts_than_the_delegator_selects(folder, small_export):
    runner = Runner(small_export, threads=1)
    rewrite(folder, experts=runner.routing["experts"][:1])
    runner = Runner(folder, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
    runner.delegator = Always(1)
    with pytest.raises(
        DamagedExportError, match=r"the delegator selects expert 1, routing.json names"
    ):
        runner.infer(pixels, np.inf)


class Answers:
    """In place of a network."""

    def __init__(self, *outputs):
        self.outputs = outputs

    def run(self, names, inputs):
        if not self.outputs:
            raise RuntimeError("images: Got 8\nExpected: 9")
        return list(self.outputs)

    def get_inputs(self):
        return [SimpleNamespace(name="images")]


def test_networks_that_do_not_fit_routing_json(small_export):
    runner = Runner(small_export, threads=1)
    pixels, delegator = np.zeros((2, 1, 8, 8), np.uint8), runner.delegator
    for network, message in [
        (Answers(), "the delegator does not fit routing.json: images: Got 8 Expected: 9"),
        (
            Answers(np.zeros((2, 10))),
            r"has 1 outputs, of them the first of shape \(2, 10\), not 3 and",
        ),
        (Answers(np.zeros((2, 3)), 0, 0), r"first of shape \(2, 3\), not 3 and \(2, 10\)"),
    ]:
        runner.delegator = network
        with pytest.raises(DamagedExportError, match=message):
            runner.infer(pixels, np.inf)
    runner.delegator, runner.experts = delegator, [Answers(np.zeros((2, 9)))] * 2
    with pytest.raises(DamagedExportError, match=r"expert \d does not fit routing.json"):
        runner.infer(pixels, np.inf)


def test_arrays_of_other_shapes(small_export):
    runner = Runner(small_export, threads=1)
    with pytest.raises(
        ValueError, match=r"uint8 of shape n x 1 x 8 x 8, got float64 of shape 2 x 3"
    ):
        runner.infer(np.zeros((2, 3)), 0.5)
    assert runner([]) == []
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Runner(small_export, batch_size=0)


@pytest.mark.process
def test_a_reader_that_goes_away(small_export, picture):
    """As `runner.py ... | head -1`: in a process of its own, because the pipe is the process's."""
    process = subprocess.Popen(
        [sys.executable, small_export / "runner.py", *[picture] * 40],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=small_export,
    )
    assert json.loads(process.stdout.readline())["file"] == str(picture)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() in (0, 1)


def test_a_package_that_is_missing(call, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, said = call(picture)
    assert status == 2
    assert said == "runner.py: needs onnxruntime: pip install onnxruntime\n"


def test_images_in_memory(small_export, picture):
    runner = Runner(small_export, threads=1)
    image = Image.open(picture)
    assert runner(image) == runner([picture]) == runner(picture)
    with pytest.raises(
        module.UnreadableImageError, match="cannot read the image in memory: ValueE"
    ):
        runner(Image.new("F", (3, 3)))


def test_batches_are_answered_as_single_images_are(small_export, tmp_path):
    """Decoded ahead in parts, by several threads: in order, each error in the place of its image."""
    names = []
    for i in range(30):
        names.append(tmp_path / f"{i}.png")
        pixels = np.random.default_rng(i).integers(0, 256, (9, 11), dtype=np.uint8)
        Image.fromarray(pixels).save(names[-1])
    names[3].write_text("no image")
    names[29].unlink()
    for batch_size in (1, 7, 64):
        runner = Runner(small_export, threads=1, batch_size=batch_size)
        answers = list(runner.answers(names, threshold=0.3))
        assert [i for i, answer in enumerate(answers) if isinstance(answer, Exception)] == [3, 29]
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, Exception):
                assert str(name) in str(answer)
                continue
            (alone,) = runner([name], threshold=0.3)
            numbers = [(a.pop("probability"), a.pop("confidence")) for a in (answer, alone)]
            assert answer == alone
            np.testing.assert_allclose(*numbers, rtol=1e-4)
    with pytest.raises(module.UnreadableImageError, match=r"3\.png"):
        runner(names)


class RunsWhenUnpickled:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.slow
def test_a_program_of_torch_export_can_run_code(tmp_path):
    """Why docs/deployment.md says to load one's own programs only; if it fails, torch has mended it."""
    path, changed, marker = (tmp_path / name for name in ("a.pt2", "b.pt2", "ran"))
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), path)
    weight = io.BytesIO()
    torch.save(RunsWhenUnpickled(marker), weight)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(changed, "w") as evil:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif "/weights/weight_" in name:
                content = weight.getvalue()
            evil.writestr(name, content)
    with contextlib.suppress(Exception):  # what it loaded is no tensor
        torch.export.load(changed)
    assert marker.exists()
