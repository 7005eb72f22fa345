"""Checkpoints that are damaged, or anyone's: one line from every command, and nothing in them runs."""

import copy
import gc
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import CoEError
from vision.checkpoints import LAST, load_checkpoint
from vision.recipe import load_recipe
from vision.run import load_run
from vision.training.module import CoETraining


@pytest.fixture(scope="module")
def content():
    """Of a checkpoint of small networks: it is written and read some hundred times."""
    small = "{name: small_resnet, options: {width: 2, stages: 1}}"
    words = ["num_experts=3", f"delegator={small}", f"experts={small}", "controls={}"]
    recipe = load_recipe("digits", words)
    classes = [str(digit) for digit in range(10)]
    module = CoETraining(recipe.to_dict(), classes, recipe.data.preprocess().to_dict(), 9)
    return {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}


def test_what_the_others_damage_is_whole(content, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    assert load_run(tmp_path / "x.ckpt").networks.team.num_experts == 3


def in_file(tensor, path):
    """Whether a tensor lies in this process's map of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, last = (int(word, 16) for word in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_mapped_weights_stay_in_the_file(content, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(content, path)
    stored = path.read_bytes()
    mapped, own = (load_run(path, mapped=flag).networks for flag in (True, False))
    images = torch.zeros(2, *own.preprocess.shape, dtype=torch.uint8)
    for ours, theirs in zip(mapped.parameters(), own.parameters(), strict=True):
        assert in_file(ours, path)
        assert not in_file(theirs, path)
        assert ours.stride() == theirs.stride()
    with torch.inference_mode():
        answers = [networks.team(networks.prepare(images)) for networks in (mapped, own)]
    assert torch.equal(answers[0].expert_logits, answers[1].expert_logits)
    with torch.no_grad():
        next(mapped.parameters()).fill_(7.0)
    assert path.read_bytes() == stored


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_weights_of_another_type_are_converted_not_mapped(content, tmp_path):
    half = {name: value.half() for name, value in content["state_dict"].items()}
    torch.save({**content, "state_dict": half}, tmp_path / "x.ckpt")
    weight = next(load_run(tmp_path / "x.ckpt", mapped=True).networks.parameters())
    assert weight.dtype == torch.float32
    assert not in_file(weight, tmp_path / "x.ckpt")


def refused(path):
    """The message, in one line."""
    with pytest.raises((CoEError, ValueError), match=r".") as error:
        load_run(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.cfloat)])
def test_weights_that_are_no_dense_real_numbers(content, tmp_path, tensor, recwarn):
    name = next(iter(content["state_dict"]))
    damaged = {**content, "state_dict": {**content["state_dict"], name: tensor}}
    torch.save(damaged, tmp_path / "x.ckpt")
    gc.collect()  # what another test left open says so now, not below
    recwarn.clear()
    assert "its state_dict is not of the expected kind" in refused(tmp_path / "x.ckpt")
    assert not recwarn.list


def test_networks_that_are_larger_than_their_weights_are_not_built(content, tmp_path):
    """A few kilobytes may not ask for gigabytes; of these networks one expert alone has 1.8."""
    large = {"name": "timm/vit_giant_patch14_clip_224", "options": {"img_size": 8, "patch_size": 2}}
    for change, message in (
        ({"num_experts": 1000}, "its recipe has 1000 experts, its weights are of 3"),
        ({"experts": [large]}, "it has far more weights than the [0-9,]+ values that are stored"),
        ({"delegator": large}, "it has far more weights than the [0-9,]+ values that are stored"),
    ):
        changed = copy.deepcopy(content)
        changed["hyper_parameters"]["recipe"].update(change)
        torch.save(changed, tmp_path / "x.ckpt")
        assert re.search(message, refused(tmp_path / "x.ckpt"))
    changed = copy.deepcopy(content)
    changed["hyper_parameters"]["preprocess"]["size"] = 16384  # an image of 3 GB
    torch.save(changed, tmp_path / "x.ckpt")
    assert "its recipe's data.size is 8, that of preprocess 16384" in refused(tmp_path / "x.ckpt")


def with_pickle(path, target, payload):
    """The checkpoint with another pickle in it, its checksum right."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as changed:
        for record in source.infolist():
            is_pickle = record.filename.endswith("/data.pkl")
            changed.writestr(record.filename, payload if is_pickle else source.read(record))


def test_flipped_bits_in_the_weights_are_found_by_every_command(cli, trained, tmp_path, capsys):
    flipped = bytearray((trained / LAST).read_bytes())
    with zipfile.ZipFile(
        trained / LAST
    ) as archive:  # between its records are bytes that mean nothing
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    name_length, extra_length = struct.unpack_from("<HH", flipped, largest.header_offset + 26)
    data = largest.header_offset + 30 + name_length + extra_length
    flipped[data + largest.file_size // 2] ^= 4
    path = tmp_path / "run" / LAST
    path.parent.mkdir(parents=True)
    path.write_bytes(flipped)
    run = tmp_path / "run"
    commands = [["evaluate", run], ["calibrate", run, "best"], ["predict", run, "x.png"]]
    commands += [["inspect", run], ["export", run, "--to", "onnx"], ["serve", run]]
    commands += [["train", trained / "recipe.yaml", "--out", run, "--resume"]]
    for command in commands:
        assert cli(*command) == 2
        error = capsys.readouterr().err
        assert re.search(rf"{path} is damaged: .*' in it does not match its checksum", error)
        assert error.count("\n") == 1
    assert path.read_bytes() == flipped


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_something_runs_nothing(trained, tmp_path):
    path = tmp_path / "x.ckpt"
    with_pickle(trained / LAST, path, pickle.dumps(Payload(tmp_path / "made"), protocol=2))
    assert "cannot be read as a checkpoint (UnpicklingError)" in refused(path)
    assert not (tmp_path / "made").exists()


def test_values_that_name_each_other_take_no_memory(trained, content, tmp_path):
    """Forty lists, each twice in the next: 2 ** 40 values in a kilobyte."""
    nested = ["x"]
    for _ in range(40):
        nested = [nested, nested]
    for place in ("recipe", "classes", "preprocess"):
        changed = copy.copy(content)
        changed["hyper_parameters"] = {**content["hyper_parameters"], place: {"a": nested}}
        torch.save(changed, tmp_path / "x.ckpt")
        assert "not plain values, or too many" in refused(tmp_path / "x.ckpt")


WRONG = [None, 3, -1.5, "text", [], {}, [1], ["a", 2], {"a": None}, True, float("nan"), 10**400]
WRONG += ["x" * 999, ["a"] * 3, {"size": "large"}, 0, 10**9]


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["hyper_parameters", "recipe", "classes", "preprocess", "state_dict"]
)
def test_other_types_in_one_line(content, tmp_path, place):
    path = tmp_path / "x.ckpt"
    messages = set()
    for value in [*WRONG, "missing"]:
        changed = copy.copy(content)
        changed["hyper_parameters"] = dict(content["hyper_parameters"])
        inner = changed if place in changed else changed["hyper_parameters"]
        inner[place] = value
        if value == "missing":
            del inner[place]
        torch.save(changed, path)
        messages.add(refused(path))
    assert all(str(path) in message for message in messages)


# What `Networks` reads off the stored values.
PLACES = [("recipe", "delegator"), ("recipe", "experts"), ("recipe", "num_experts")]
PLACES += [("recipe", "data"), ("recipe", "train"), ("recipe", "objective"), ("recipe", "controls")]
PLACES += [("recipe", "ensembles"), ("recipe", "seed"), ("recipe", "budget"), ("recipe", "unknown")]
PLACES += [
    ("preprocess", name) for name in ("size", "channels", "mean", "std", "resize", "unknown")
]


@pytest.mark.fuzz
@given(place=st.sampled_from(PLACES), value=st.sampled_from(WRONG))
def test_stored_values_of_any_kind_in_one_line(content, tmp_path_factory, place, value):
    changed = copy.deepcopy(content)
    changed["hyper_parameters"][place[0]][place[1]] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.ckpt"
    torch.save(changed, path)
    try:
        load_run(path)
    except (CoEError, ValueError) as error:
        assert "\n" not in str(error)  # noqa: PT017  some values are as good as what was there


@pytest.mark.fuzz
@given(data=st.data())
def test_damaged_bytes_in_one_line_or_the_same_weights(trained, tmp_path_factory, same, data):
    stored = bytearray((trained / LAST).read_bytes())
    at = data.draw(st.integers(0, len(stored) - 1))
    if data.draw(st.booleans()):
        stored[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del stored[at:]
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(stored)
    try:
        loaded = load_checkpoint(path)
    except CoEError as error:
        assert str(path) in str(error)  # noqa: PT017  a flipped bit between records harms nothing
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert same(loaded["state_dict"], load_checkpoint(trained / LAST)["state_dict"])


def test_what_is_no_file(cli, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.ckpt")
    for path, message in (
        (tmp_path / "pipe.ckpt", "is a pipe or a device, not a checkpoint"),
        ("/dev/zero", "is a pipe or a device, not a checkpoint"),
        (tmp_path, r"is not a run folder: it has no checkpoints/last\.ckpt"),
        (tmp_path / "missing.ckpt", "there is no checkpoint"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        assert cli("predict", path, "x.png") == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.count("\n") == 1


STORED = [
    "[]",
    "null",
    "3",
    '"x"',
    "{}",
    "[[]]",
    '{"best": 3}',
    '{"best": {}}',
    "{",
    "",
    "\xff",
    "NaN",
    "[" * 9999,
]
STORED += [
    '{"format": 1}',
    '{"task": 3}',
    '{"points": {"best": [1]}}',
    '{"points": 5, "task": "vision"}',
]
STORED += ['{"task": "vision", "format": "2", "points": [{"name": null, "threshold": "high"}]}']


@pytest.mark.parametrize("name", ["operating_points.json", "trade_off_curve.json"])
def test_stored_json_of_other_types_in_one_line(trained, tmp_path, monkeypatch, name):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    networks = load_run(folder).networks
    content = load_checkpoint(folder / LAST)
    monkeypatch.setattr("vision.run.load_checkpoint", lambda *_: content)  # once
    monkeypatch.setattr("vision.run._build", lambda *_: networks)
    whole = json.loads((folder / name).read_text())
    changed = [
        json.dumps({**whole, key: value}) for key in whole for value in (None, [1], "x", {"a": 1})
    ]
    refusals = 0
    for text in [*STORED, *changed]:
        (folder / name).write_bytes(text.encode("latin-1"))
        try:
            load_run(folder)
        except (CoEError, ValueError) as error:
            assert str(folder / name) in str(error)  # noqa: PT017  some values mean the same
            assert "\n" not in str(error)  # noqa: PT017
            refusals += 1
    assert refusals > len(changed) // 2
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "it is no regular file" in refused(folder)  # and is not waited for
