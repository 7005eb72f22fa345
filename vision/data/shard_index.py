"""The samples of a tar file: found once, checked to its end, kept beside it."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from coe_core.support.progress import progress
from vision.data.files import image_formats, open_regular, printable
from vision.data.shards import Members

MAX_CLASSES = 1_000_000
_LABEL_BYTES = 64  # most of a .cls file
_BLOCK = 512  # of a tar file
_FIELDS = ("shard", "offset", "size", "label")


class LabelledMembers(NamedTuple):
    """Images inside shards, and their classes [n]."""

    members: Members
    labels: Int[Tensor, " n"]


class _ShardError(ValueError):
    """What is wrong with a shard, in our words."""


class _Sample(NamedTuple):
    """Where the content of an image lies in its shard, in bytes, and the number of its class."""

    offset: int
    size: int
    label: int


def read_shards(shards: list[str], split: str) -> LabelledMembers:
    """Images and labels of one split, in the order of the shards.

    A sample is what webdataset makes of consecutive files that share their name up to its first dot:
    one image, and a ``.cls`` file with the number of its class. The index is kept beside the first
    shard where that can be written, and used while the shards have the same sizes and times; a damaged
    one is made anew.

    Args:
        shards: file names.
        split: for messages and the name of the index.

    Raises:
        ValueError: a damaged shard, or a sample without image or class; named.
    """
    files = [os.stat(shard) for shard in shards]
    state = np.array([(file.st_size, file.st_mtime_ns) for file in files], dtype=np.int64)
    kept = Path(shards[0]).parent / f"coe-index-{split}.npz"
    names = np.array([os.fsencode(Path(shard).name) for shard in shards])
    index = _kept_index(kept, names, state)
    if index is None:
        rows = [
            (number, *sample)
            for number, shard in enumerate(
                progress(shards, len(shards), f"indexing {split}", "shards")
            )
            for sample in shard_samples(shard)
        ]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy()
        index = dict(zip(_FIELDS, columns, strict=True))
        with contextlib.suppress(OSError):  # a folder for reading only
            _keep_index(kept, names, state, index)
    members = Members(shards, index["shard"].astype(np.int32), index["offset"], index["size"])
    return LabelledMembers(members, torch.from_numpy(index["label"]))


def _kept_index(kept: Path, names: np.ndarray, state: np.ndarray) -> dict[str, np.ndarray] | None:
    """The index that was kept for these shards; None if there is none, or anything in it is wrong."""
    try:
        # Uncompressed as we write it, it cannot unpack to more than its own length.
        with open_regular(kept) as file, np.load(file, allow_pickle=False) as content:
            if any(entry.compress_type for entry in content.zip.infolist()):
                return None
            if not np.array_equal(content["names"], names):
                return None
            if not np.array_equal(content["state"], state):
                return None
            index = {name: content[name] for name in _FIELDS}
        shard, offset, size, label = index.values()
        whole = (
            all(values.dtype.kind == "i" and values.ndim == 1 for values in index.values())
            and len({len(values) for values in index.values()}) == 1
            and bool(((shard >= 0) & (shard < len(names))).all())
            and bool(((label >= 0) & (label < MAX_CLASSES)).all())
            and bool(((offset >= _BLOCK) & (size >= 0)).all())
            and bool((offset <= state[shard, 0] - size).all())
        )
    except Exception:  # numpy and zipfile raise almost anything on a damaged file
        return None
    return {name: values.astype(np.int64) for name, values in index.items()} if whole else None


def _keep_index(
    kept: Path, names: np.ndarray, state: np.ndarray, index: dict[str, np.ndarray]
) -> None:
    from coe_core.support.files import whole_file

    content: dict[str, Any] = {"names": names, "state": state, **index}
    with whole_file(kept) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)


def shard_samples(shard: str) -> Iterator[_Sample]:
    """The samples of a tar file, which must be whole: to the mark at its end, and nothing behind it.

    Raises:
        ValueError: a damaged, cut or compressed file, or a sample without image or class.
    """
    name = printable(shard)
    with open_regular(shard) as file:
        start = file.read(6)
        if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\0":
            raise ValueError(
                f"{name}: a compressed shard; unpack it to a plain .tar: samples are read at random"
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield from _samples(tar, name)
                end = tar.offset
            check_end(file, end, name)
        except _ShardError:
            raise
        except Exception as error:  # tarfile raises almost anything on a damaged file
            raise ValueError(f"{name}: damaged shard ({error}); fetch it again") from error


def _samples(tar: tarfile.TarFile, shard: str) -> Iterator[_Sample]:
    key, image, label = None, None, None
    last = -1
    for entry in tar:
        tar.members = []  # type: ignore[attr-defined]  # else they are all kept
        if entry.offset <= last or entry.size < 0:
            raise tarfile.ReadError(f"the header at byte {entry.offset} leads back")
        last = entry.offset
        base = PurePosixPath(entry.name)
        stem, _, extension = base.name.partition(".")
        extension = extension.lower()
        if not entry.isfile() or not stem:
            continue
        if entry.issparse():
            raise _ShardError(
                f"{shard}: {printable(entry.name)} is stored as a sparse file; pack it anew"
            )
        if key != (base.parent, stem):
            yield from _sample(shard, key, image, label)
            key, image, label = (base.parent, stem), None, None
        if f".{extension}" in image_formats().endings:
            image = entry.offset_data, entry.size
        elif extension == "cls":
            if entry.size > _LABEL_BYTES:
                raise _ShardError(
                    f"{shard}: {printable(entry.name)} has {entry.size} bytes; a .cls file holds the "
                    "number of a class"
                )
            content = tar.extractfile(entry)
            label = content.read().decode(errors="replace") if content else ""
    yield from _sample(shard, key, image, label)


def check_end(file: BinaryIO, end: int, shard: str) -> None:
    """Behind the last file of an archive stand blocks of zeros, and nothing else to the end of the file.

    Args:
        file: of the shard.
        end: where its last file ends, in bytes.
        shard: its name, for messages.

    Raises:
        ValueError: it is cut, or something follows.
    """
    file.seek(end)
    rest = file.read(_BLOCK)
    if len(rest) < _BLOCK:
        raise _ShardError(
            f"{shard}: cut at byte {end + len(rest)}, without the mark at the end of a tar file; samples "
            "behind it are lost: fetch it again"
        )
    while rest:
        if rest.strip(b"\0"):
            raise _ShardError(
                f"{shard}: damaged at byte {end}, or several archives in one file; fetch it again, or "
                "unpack them into a shard each"
            )
        rest = file.read(2**20)


def _sample(
    shard: str,
    key: tuple[PurePosixPath, str] | None,
    image: tuple[int, int] | None,
    label: str | None,
) -> Iterator[_Sample]:
    if key is None:
        return
    name = f"{shard}: sample {printable(key[0] / key[1])}"
    if image is None or label is None:
        lacks = "image" if image is None else ".cls file"
        endings = f" ({', '.join(image_formats().endings)})" if image is None else ""
        raise _ShardError(
            f"{name} has no {lacks}{endings}; a sample is an image and the number of its class"
        )
    text = label.strip().removeprefix("\ufeff")
    if not (text.isascii() and text.isdecimal()):
        raise _ShardError(f"{name}: its .cls holds {label[:20]!r}, not the number of a class")
    if int(text) >= MAX_CLASSES:
        raise _ShardError(
            f"{name}: its .cls holds {text}; classes are counted from 0, to {MAX_CLASSES - 1}"
        )
    yield _Sample(*image, int(text))
