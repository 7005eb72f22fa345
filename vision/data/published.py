"""Data sets in the form they were published in: scikit-learn's digits, idx files, CIFAR's pickles."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import math
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vision.data.files import open_regular, printable

MAX_IDX_VALUES = 2**31  # of one file: 45 times Fashion-MNIST's training images


class LabelledPixels(NamedTuple):
    """Pictures [n, ch, h, w] in memory, and their classes [n]."""

    pixels: UInt8[Tensor, "n ch h w"]
    targets: Tensor


def digits() -> LabelledPixels:
    """scikit-learn's 1,797 8x8 digits, 0..16 scaled to 0..255.

    Read from its file: importing scikit-learn takes longer than all the rest of a prediction.

    Raises:
        FileNotFoundError: scikit-learn is not installed, or its file is elsewhere.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the data set digits comes with scikit-learn: install it")
    file = Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")
    pixels = (rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return LabelledPixels(torch.from_numpy(pixels), torch.from_numpy(rows[:, -1].astype(np.int64)))


# idx files


def idx_images(path: Path, prefix: str) -> LabelledPixels:
    """Images and labels of one split, ``prefix``-images-idx3-ubyte and ``prefix``-labels-idx1-ubyte.

    Args:
        path: the folder of the files, plain or .gz, or the one above FashionMNIST/raw.
        prefix: train or t10k.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the two differ in number.
    """
    pixels = read_idx(_find_idx(path, f"{prefix}-images-idx3-ubyte"), 3)
    file = _find_idx(path, f"{prefix}-labels-idx1-ubyte")
    targets = read_idx(file, 1).long()
    if len(pixels) != len(targets):
        raise ValueError(f"{printable(file)}: {len(targets)} labels for {len(pixels)} images")
    return LabelledPixels(pixels.unsqueeze(1), targets)


def _find_idx(path: Path, name: str) -> Path:
    places = [path, path / "FashionMNIST" / "raw"]
    for place in places:
        for file in (place / name, place / f"{name}.gz"):
            if file.is_file():
                return file
    raise FileNotFoundError(
        f"neither {name} nor {name}.gz in {places[0]} or {places[1]}; put the four idx files there"
    )


def read_idx(file: Path, num_axes: int) -> UInt8[Tensor, " ..."]:
    """An idx file of unsigned bytes: 2 zero bytes, type 8, number of axes, big-endian sizes, values.

    No more is read or unpacked than its header asks for.

    Args:
        file: plain, or .gz.
        num_axes: that it must have.

    Raises:
        ValueError: another kind of file, a damaged one, or one of other length than its header says.
    """
    name = printable(file)
    try:
        with open_regular(file) as raw:
            unpacked = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
            values = _idx_values(unpacked, num_axes, name)
    except (OSError, EOFError, zlib.error) as error:
        kind = "damaged gzip file" if file.suffix == ".gz" else "cannot be read"
        raise ValueError(f"{name}: {kind} ({error}); fetch it again") from error
    return torch.from_numpy(values)


def _idx_values(content: BinaryIO | gzip.GzipFile, num_axes: int, name: str) -> np.ndarray:
    if content.read(4) != bytes([0, 0, 8, num_axes]):
        raise ValueError(f"{name}: not an idx file of bytes with {num_axes} axes")
    sizes = content.read(4 * num_axes)
    if len(sizes) < 4 * num_axes:
        raise ValueError(f"{name}: ends inside its header; fetch it again")
    shape = np.frombuffer(sizes, dtype=">u4").tolist()
    count = math.prod(shape)
    if count > MAX_IDX_VALUES:
        raise ValueError(
            f"{name}: its header says {' x '.join(map(str, shape))} values, above the limit of "
            f"{MAX_IDX_VALUES}; fetch it again"
        )
    values = bytearray()
    while len(values) <= count:  # one more than there should be shows that there are more
        part = content.read(min(2**20, count + 1 - len(values)))
        if not part:
            break
        values += part
    if len(values) != count:
        number = f"more than {count}" if len(values) > count else str(len(values))
        raise ValueError(f"{name}: {number} values, its header says {count}; fetch it again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


# CIFAR


@dataclass(frozen=True)
class CifarFiles:
    """The files of a published archive with their MD5 sums, and the keys of what they hold."""

    folder: str
    train: dict[str, str]
    test: dict[str, str]
    names: dict[str, str]
    names_key: str
    labels_key: str


CIFAR10 = CifarFiles(
    "cifar-10-batches-py",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    {"test_batch": "40351d587109b95175f43aff81a1287e"},
    {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
    "label_names",
    "labels",
)
CIFAR100 = CifarFiles(
    "cifar-100-python",
    {"train": "16019d7e3df5f24257cddd939b257f8d"},
    {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    {"meta": "7973b15100ade9c7d40fb424638fde48"},
    "fine_label_names",
    "fine_labels",
)


class Cifar(NamedTuple):
    """A published CIFAR set."""

    classes: list[str]
    train: LabelledPixels
    test: LabelledPixels


def read_cifar(files: CifarFiles, path: Path) -> Cifar:
    """The published pickles: read only where their MD5 sums are the published ones.

    And even then nothing but arrays, lists, texts and numbers is unpickled.

    Raises:
        FileNotFoundError: a file is missing or is not the published one.
    """
    folder = path / files.folder
    (meta,) = _unpickled(folder, files.names)
    classes = [str(name) for name in meta[files.names_key]]
    return Cifar(
        classes,
        _labelled(_unpickled(folder, files.train), files),
        _labelled(_unpickled(folder, files.test), files),
    )


def _labelled(batches: list[dict[str, Any]], files: CifarFiles) -> LabelledPixels:
    pixels = np.vstack([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    targets = [label for batch in batches for label in batch[files.labels_key]]
    return LabelledPixels(torch.from_numpy(pixels), torch.tensor(targets))


def _unpickled(folder: Path, sums: dict[str, str]) -> list[dict[str, Any]]:
    batches = []
    for name, md5 in sums.items():
        try:
            with open_regular(folder / name) as file:
                content = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise FileNotFoundError(_incomplete(folder, f"{name}: {reason}")) from error
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise FileNotFoundError(_incomplete(folder, f"{name} is not the published file"))
        batches.append(_PlainUnpickler(io.BytesIO(content), encoding="latin1").load())
    return batches


def _incomplete(folder: Path, reason: str) -> str:
    return (
        f"{printable(folder.parent)}: no complete {folder.name}/ in it ({reason}); unpack the "
        "published archive there"
    )


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows no classes but arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return lambda text, coding: text.encode(coding)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data set")
