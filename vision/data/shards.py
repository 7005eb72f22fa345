"""WebDataset shards: tar files of samples, indexed once, then read like single files in any order.

Nothing is streamed: any sample can be read at once, so order, splits, resuming and the division over
ranks and workers are those of image folders, exact, without duplicates. In return the shards must lie
in a file system (a fast one: reads are as random as those of single files).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from torch import Tensor

from vision.data.files import open_regular, printable

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_SHARDS, MAX_NAMES_BYTES = 100_000, 2**26
_HEADER = 512  # bytes in front of every member of a tar file
_SPLITS = (("train", "train"), ("val", "validation"), ("test", "test"))


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a shard.

    Args:
        shard: file name.
        offset: of its content, in bytes.
        size: of its content, in bytes.
    """

    shard: str
    offset: int
    size: int

    def _read(self, start: int, count: int) -> bytes:
        with open_regular(self.shard) as file:
            file.seek(start)
            return file.read(count)

    def read_bytes(self) -> bytes:
        """The bytes of a member."""
        return self._read(self.offset, self.size)

    @property
    def name(self) -> str:
        """As the header in front of it says."""
        return self._read(self.offset - _HEADER, 100).rstrip(b"\0").decode(errors="replace")

    def __str__(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return printable(f"{self.shard}/{self.name}")
        return f"{printable(self.shard)}, byte {self.offset}"


class Members(Sequence[Member]):
    """Files inside shards, 20 bytes each in memory.

    Args:
        shards: file names.
        shard: of each member, a position in ``shards``.
        offset: see `Member`.
        size: see `Member`.
    """

    def __init__(self, shards: list[str], shard: np.ndarray, offset: np.ndarray, size: np.ndarray):
        self.shards, self.shard, self.offset, self.size = shards, shard, offset, size

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice) -> Members: ...

    def __getitem__(self, index: int | slice) -> Member | Members:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return Member(
            self.shards[self.shard[index]], int(self.offset[index]), int(self.size[index])
        )

    def select(self, positions: np.ndarray) -> Members:
        """Keep only these members."""
        parts = (values[positions] for values in (self.shard, self.offset, self.size))
        return Members(self.shards, *parts)


class SplitShards(NamedTuple):
    """File names by split (train, validation, test), and the folder of the first of them."""

    folder: Path
    splits: dict[str, list[str]]


def find_shards(path: str) -> SplitShards:
    """The shards of every split (train, validation, test), told by their names.

    Args:
        path: a folder of tar files, or a pattern such as ``in1k-{train-{0000..1023},val-{00..63}}.tar``.
            Of a pattern every shard must be there; of a folder no number between first and last may
            lack (that the last ones lack cannot be seen).

    Raises:
        FileNotFoundError: no shards, or some are missing; names them.
        ValueError: a name that tells no split.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        names = sorted(str(file) for file in folder.glob("*.tar") if not file.name.startswith("."))
        missing = [name for name in _gaps(names) if not Path(name).exists()]
    else:
        names = _expanded(str(folder))
        missing = [name for name in names if not Path(name).is_file()]
    if missing:
        listed = ", ".join(Path(name).name for name in missing[:10])
        raise FileNotFoundError(
            f"data.path: {len(missing)} of {len({*names, *missing})} shards are missing: {listed}"
            f"{', ...' * (len(missing) > 10)}; fetch them, or give a pattern of those there are"
        )
    compressed = []
    if folder.is_dir() and not names:
        compressed = sorted(p.name for p in folder.iterdir() if p.name.endswith(COMPRESSED))
    if compressed:
        raise ValueError(
            f"data.path: {len(compressed)} compressed shards ({compressed[0]}, ...); unpack them to plain "
            ".tar files: samples are read at random"
        )
    splits: dict[str, list[str]] = {}
    for name in names:
        split = next((s for part, s in _SPLITS if part in Path(name).name), None)
        if split is None:
            raise ValueError(
                f"{printable(name)}: the name of a shard must hold its split: train, val or test"
            )
        splits.setdefault(split, []).append(name)
    if "train" not in splits:
        raise FileNotFoundError(f"data.path: no train shards (*train*.tar) in {folder}")
    return SplitShards(Path(splits["train"][0]).parent, splits)


def _expanded(pattern: str) -> list[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise ValueError(
            "a pattern of shards needs the package braceexpand: "
            "pip install 'collaboration-of-experts[shards]'; or give the folder that holds them"
        ) from error
    too_many = f"data.path: {printable(pattern)} stands for more than {MAX_SHARDS} shards"
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):  # braceexpand lists them all
        if abs(int(last) - int(first)) >= MAX_SHARDS:
            raise ValueError(too_many)
    names = list(itertools.islice(braceexpand(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise ValueError(too_many)
    return names


def _gaps(names: list[str]) -> list[str]:
    """Names of numbered shards that should be between those there are."""
    numbered: dict[tuple[str, int], list[int]] = {}
    for name in names:
        if parts := re.fullmatch(r"(.*?)(\d+)\.tar", name):
            numbered.setdefault((parts[1], len(parts[2])), []).append(int(parts[2]))
    return [
        f"{prefix}{number:0{width}}.tar"
        for (prefix, width), numbers in numbered.items()
        for number in range(min(numbers), max(numbers))
        if number not in set(numbers)
    ]


def class_names(folder: Path, labels: Tensor) -> list[str]:
    """Names of the classes: the lines of ``classes.txt`` beside the shards; without it their numbers.

    Raises:
        ValueError: fewer names than classes, or see `read_class_names`.
    """
    count = int(labels.max()) + 1 if len(labels) else 0
    file = folder / "classes.txt"
    if not file.is_file():
        return [str(label) for label in range(count)]
    names = read_class_names(file)
    if len(names) < count:
        raise ValueError(
            f"{printable(file)}: {len(names)} names for {count} classes; give each a line"
        )
    return names


def read_class_names(file: Path) -> list[str]:
    """The names in a text file of UTF-8, one a line; empty lines count for nothing.

    Raises:
        ValueError: not a text of UTF-8, larger than any list of classes, or names that cannot be printed.
    """
    name = printable(file)
    try:
        with open_regular(file) as opened:
            content = opened.read(MAX_NAMES_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from error
    if len(content) > MAX_NAMES_BYTES:
        raise ValueError(f"{name}: more than {MAX_NAMES_BYTES} bytes are no list of classes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    names = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    names = [line for line in names if line]
    odd = [line for line in names if not line.isprintable()]
    if odd:
        raise ValueError(
            f"{name}: {len(odd)} names that cannot be printed: {', '.join(map(ascii, odd[:5]))}"
        )
    return names
