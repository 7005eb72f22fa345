"""Damaged zip archives are refused, whatever wrote them."""

import contextlib
import random

import numpy as np
import pytest
import torch

from coe_core.support.archives import check_archive


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
