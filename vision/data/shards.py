"""WebDataset shards: tar files of samples, indexed once, then read like single files in any order.

Nothing is streamed: any sample can be read at once, so order, splits, resuming and the division over
ranks and workers are those of image folders, exact, without duplicates. In return the shards must lie
in a file system (a fast one: reads are as random as those of single files).
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vision.data.files import image_formats
from vision.progress import progress

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
        with open(self.shard, "rb", buffering=0) as file:
            file.seek(start)
            return file.read(count)

    def read_bytes(self) -> bytes:
        """Its content."""
        return self._read(self.offset, self.size)

    @property
    def name(self) -> str:
        """As the header in front of it says."""
        return self._read(self.offset - _HEADER, 100).rstrip(b"\0").decode(errors="replace")

    def __str__(self) -> str:
        with contextlib.suppress(OSError):
            return f"{self.shard}/{self.name}"
        return f"{self.shard}, byte {self.offset}"


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

    def __getitem__(self, index: int | slice) -> Member | Members:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return Member(
            self.shards[self.shard[index]], int(self.offset[index]), int(self.size[index])
        )

    def select(self, positions: np.ndarray) -> Members:
        """Only these."""
        parts = (values[positions] for values in (self.shard, self.offset, self.size))
        return Members(self.shards, *parts)


def find_shards(path: str) -> tuple[Path, dict[str, list[str]]]:
    """The shards of every split (train, validation, test), told by their names.

    Args:
        path: a folder of tar files, or a pattern such as ``in1k-{train-{0000..1023},val-{00..63}}.tar``.
            Of a pattern every shard must be there; of a folder no number between first and last may
            lack (that the last ones lack cannot be seen).

    Returns:
        The folder of the first shard, and file names by split.

    Raises:
        FileNotFoundError: no shards, or some are missing; names them.
        ValueError: a name that tells no split.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        names = sorted(str(file) for file in folder.glob("*.tar"))
        missing = [name for name in _gaps(names) if not Path(name).exists()]
    else:
        names = list(_expanded(str(folder)))
        missing = [name for name in names if not Path(name).is_file()]
    if missing:
        listed = ", ".join(Path(name).name for name in missing[:10])
        raise FileNotFoundError(
            f"data.path: {len(missing)} of {len({*names, *missing})} shards are missing: {listed}"
            f"{', ...' * (len(missing) > 10)}; fetch them, or give a pattern of those there are"
        )
    splits: dict[str, list[str]] = {}
    for name in names:
        split = next((s for part, s in _SPLITS if part in Path(name).name), None)
        if split is None:
            raise ValueError(f"{name}: the name of a shard must hold its split: train, val or test")
        splits.setdefault(split, []).append(name)
    if "train" not in splits:
        raise FileNotFoundError(f"data.path: no train shards (*train*.tar) in {folder}")
    return Path(splits["train"][0]).parent, splits


def _expanded(pattern: str) -> Iterator[str]:
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise ValueError(
            "a pattern of shards needs the package braceexpand: "
            "pip install 'collaboration-of-experts[shards]'; or give the folder that holds them"
        ) from error
    return braceexpand(pattern)


def _gaps(names: list[str]) -> list[str]:
    """Names of numbered shards that should be between those there are."""
    numbered: dict[tuple[str, int], list[int]] = {}
    for name in names:
        if found := re.fullmatch(r"(.*?)(\d+)\.tar", name):
            numbered.setdefault((found[1], len(found[2])), []).append(int(found[2]))
    return [
        f"{prefix}{number:0{width}}.tar"
        for (prefix, width), numbers in numbered.items()
        for number in range(min(numbers), max(numbers))
        if number not in set(numbers)
    ]


def read_shards(shards: list[str], split: str) -> tuple[Members, Int[Tensor, " n"]]:
    """Images and labels of one split, in the order of the shards.

    A sample is what webdataset makes of consecutive files that share their name up to its first dot:
    one image, and a ``.cls`` file with the number of its class. The index is kept beside the first
    shard where that can be written, and used while the shards have the same sizes and times.

    Args:
        shards: file names.
        split: for messages and the name of the index.

    Raises:
        ValueError: a damaged shard, or a sample without image or class; named.
    """
    files = [Path(shard).stat() for shard in shards]
    state = np.array([(file.st_size, file.st_mtime_ns) for file in files], dtype=np.int64)
    kept = Path(shards[0]).parent / f"coe-index-{split}.npz"
    names = np.array([Path(shard).name for shard in shards])
    with contextlib.suppress(OSError, ValueError, KeyError):  # none yet, or damaged
        index = np.load(kept, allow_pickle=False)
        if np.array_equal(index["names"], names) and np.array_equal(index["state"], state):
            members = Members(shards, index["shard"], index["offset"], index["size"])
            return members, torch.from_numpy(index["label"])
    rows = [
        (number, *sample)
        for number, shard in enumerate(progress(shards, len(shards), f"indexing {split}", "shards"))
        for sample in _samples(shard)
    ]
    shard, offset, size, label = np.array(rows, dtype=np.int64).reshape(-1, 4).T.copy()
    shard = shard.astype(np.int32)
    index = {"shard": shard, "offset": offset, "size": size, "label": label}
    with contextlib.suppress(OSError):  # a folder for reading only
        temporary = kept.with_name(f".{kept.name}.{np.random.default_rng().integers(2**32)}.npz")
        np.savez(temporary, names=names, state=state, **index)
        temporary.replace(kept)
    return Members(shards, shard, offset, size), torch.from_numpy(label)


def _samples(shard: str) -> Iterator[tuple[int, int, int]]:
    """Offset and size of the image, and the label, of every sample of a shard."""
    key, image, label = None, None, None
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                tar.members = []  # else they are all kept
                base = PurePosixPath(entry.name)
                stem, _, extension = base.name.partition(".")
                if not entry.isfile() or not stem:
                    continue
                if key != (base.parent, stem):
                    yield from _sample(shard, key, image, label)
                    key, image, label = (base.parent, stem), None, None
                if f".{extension.lower()}" in image_formats().endings:
                    image = entry.offset_data, entry.size
                elif extension == "cls":
                    label = tar.extractfile(entry).read().decode(errors="replace")
        yield from _sample(shard, key, image, label)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: damaged shard ({error}); fetch it again") from error


def _sample(
    shard: str, key: tuple | None, image: tuple[int, int] | None, label: str | None
) -> Iterator[tuple[int, int, int]]:
    if key is None:
        return
    name = f"{shard}: sample {key[0] / key[1]}"
    if image is None or label is None:
        lacks = f"image ({', '.join(image_formats().endings)})" if image is None else ".cls file"
        raise ValueError(f"{name} has no {lacks}; a sample is an image and the number of its class")
    if not label.strip().isdecimal():
        raise ValueError(f"{name}: its .cls holds {label[:20]!r}, not the number of a class")
    yield *image, int(label)


def class_names(folder: Path, labels: Tensor) -> list[str]:
    """From ``classes.txt`` beside the shards, a name in each line; else the numbers.

    Raises:
        ValueError: fewer names than classes.
    """
    count = int(labels.max()) + 1 if len(labels) else 0
    file = folder / "classes.txt"
    if not file.is_file():
        return [str(label) for label in range(count)]
    names = file.read_text(encoding="utf-8").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if len(names) < count:
        raise ValueError(f"{file}: {len(names)} names for {count} classes; give each a line")
    return names
