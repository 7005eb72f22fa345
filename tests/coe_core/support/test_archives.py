"""Damaged zip archives are refused, whatever wrote them."""

import contextlib
import os
import random
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core.support.archives import check_archive, check_saved


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model": {"weight": torch.arange(4000.0)}}, path)
    return path


def test_whole_files_pass(checkpoint, tmp_path):
    check_archive(checkpoint)
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    check_archive(tmp_path / "x.npz")
    (tmp_path / "no-archive").write_bytes(b"PK is how its text begins")
    check_archive(tmp_path / "no-archive")


def test_a_flipped_bit_in_any_weight_is_found(checkpoint):
    content = checkpoint.read_bytes()
    first = content.index(torch.arange(4000.0).numpy().tobytes())
    draw = random.Random(0)
    for _ in range(100):
        place = first + draw.randrange(16000)
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights\.pt is damaged: '.*/data/0' in it does not"):
            check_archive(checkpoint)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(checkpoint):
    content = checkpoint.read_bytes()
    draw = random.Random(1)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        checkpoint.write_bytes(damaged)
        with contextlib.suppress(
            ValueError, RuntimeError
        ):  # ours, and what torch's own reader refuses
            check_archive(checkpoint)
            weight = torch.load(checkpoint, weights_only=True)["model"]["weight"]
            assert weight.equal(torch.arange(4000.0))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short(checkpoint, part):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ValueError, match=r"weights\.pt is damaged: it is cut short"):
        check_archive(checkpoint)


# What only torch.save can have written


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.ckpt"
    torch.save({"weight": torch.arange(300.0), "bias": torch.ones(3)}, path)
    return path


def test_whole(saved):
    check_saved(saved)


def test_every_record_is_compared(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    names = []
    with zipfile.ZipFile(saved) as archive:
        for record in archive.infolist():
            start = record.header_offset + 30
            start += sum(
                int.from_bytes(content[record.header_offset + at :][:2], "little")
                for at in (26, 28)
            )
            changed = bytearray(content)
            changed[start + record.file_size // 2] ^= 1 << 4
            path = tmp_path / "changed.ckpt"
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=rf"{path} is damaged: .*{record.filename}"):
                check_saved(path)
            names.append(record.filename.split("/", 1)[1])
    assert {"data.pkl", "data/0", "data/1", "version"} <= set(names)


def test_damage_at_its_end_is_no_other_error(checkpoint, tmp_path):
    """zipfile raises for some of it when it is only asked whether a file is an archive."""
    content, path = checkpoint.read_bytes(), tmp_path / "x.ckpt"
    refused = 0

    def is_told(message):
        assert re.fullmatch(rf"{path} is damaged: .*; copy or download it again", message)
        return 1

    for at in range(len(content) - 98, len(content)):  # the last three records
        changed = bytearray(content)
        changed[at] ^= 2
        path.write_bytes(changed)
        try:
            check_saved(path)
        except ValueError as error:
            refused += is_told(str(error))
    assert refused > 20


@pytest.mark.fuzz
@given(data=st.data())
def test_damaged_in_any_way_it_is_refused_in_one_line_or_loads_as_it_was(
    saved, tmp_path_factory, data
):
    content = bytearray(saved.read_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "zero", "insert", "remove", "double"]))
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 64))
    if how == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del content[at:]
    elif how == "zero":
        content[at : at + length] = bytes(len(content[at : at + length]))
    elif how == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    elif how == "remove":
        del content[at : at + length]
    else:
        content += content[at:]
    path = tmp_path_factory.getbasetemp() / "fuzzed.ckpt"
    path.write_bytes(content)
    try:
        check_saved(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017  which of many damages it finds is open
        assert "\n" not in str(error)  # noqa: PT017
        return
    try:
        loaded = torch.load(path, weights_only=True)
    except RuntimeError:  # of the table of contents, which torch.load reads too
        return
    assert torch.equal(loaded["weight"], torch.arange(300.0))
    assert torch.equal(loaded["bias"], torch.ones(3))


def test_packed_records_are_not_unpacked(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"holds packed records, which torch\.save does not write"):
        check_saved(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: writing it was broken off"),
        (b"no checkpoint at all", "cannot be read as a checkpoint: it is no archive of torch.save"),
        (
            b"PK\x03\x04" + bytes(100),
            "is damaged: it is cut short, its end is missing; copy or download it again",
        ),
    ],
)
def test_what_is_no_archive(tmp_path, content, message):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")):
        check_saved(path)


def test_archives_of_something_else(tmp_path):
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "x")
    with pytest.raises(ValueError, match=r"is damaged: it holds no data\.pkl"):
        check_saved(path)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a checkpoint"):
        check_saved(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="is a pipe or a device, not a checkpoint"):
            check_saved(path)
    with pytest.raises(FileNotFoundError):
        check_saved(tmp_path / "missing")
