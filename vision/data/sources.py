"""Where samples come from: each data set's own layout -> splits of pixels or paths with targets."""

from __future__ import annotations

import gzip
import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from vision.data.shards import Members, class_names, find_shards, read_shards

FASHION_MNIST = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


@dataclass(frozen=True)
class Samples:
    """One split before decoding: either pixels or paths."""

    targets: Int[Tensor, " n"]
    pixels: UInt8[Tensor, "n ch h w"] | None = None
    paths: list[str] | Members | None = None

    def select(self, positions: Int[Tensor, " m"]) -> Samples:
        """Only these samples."""
        pixels = None if self.pixels is None else self.pixels[positions]
        paths = self.paths
        if isinstance(paths, Members):
            paths = paths.select(positions.numpy())
        elif paths is not None:
            paths = [paths[i] for i in positions.tolist()]
        return Samples(self.targets[positions], pixels, paths)


@dataclass(frozen=True)
class Source:
    """What a data set offers; None: it has no such split."""

    classes: list[str]
    train: Samples
    validation: Samples | None = None
    test: Samples | None = None


def digits(path: Path) -> Source:
    """scikit-learn's 1,797 8x8 digits, 0..16 scaled to 0..255: 1,137 / 300 / 360, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    targets = torch.from_numpy(bunch.target.astype(np.int64))
    rest, test = train_test_split(
        np.arange(len(targets)), test_size=360, stratify=targets, random_state=0
    )
    train, validation = train_test_split(
        rest, test_size=300, stratify=targets[rest], random_state=0
    )
    everything = Samples(targets, pixels)
    parts = [everything.select(torch.from_numpy(np.sort(p))) for p in (train, validation, test)]
    return Source([str(i) for i in range(10)], *parts)


def fashion_mnist(path: Path) -> Source:
    """The four idx files, plain or .gz, in ``path`` or in torchvision's FashionMNIST/raw below it."""
    splits = []
    for prefix in ("train", "t10k"):
        pixels = _read_idx(_find_idx(path, f"{prefix}-images-idx3-ubyte"), 3)
        file = _find_idx(path, f"{prefix}-labels-idx1-ubyte")
        targets = _read_idx(file, 1).long()
        if len(pixels) != len(targets):
            raise ValueError(f"{file}: {len(targets)} labels for {len(pixels)} images")
        splits.append(Samples(targets, pixels.unsqueeze(1)))
    return Source(FASHION_MNIST, train=splits[0], test=splits[1])


def cifar10(path: Path) -> Source:
    """torchvision's cifar-10-batches-py, or a folder with train/ and test/."""
    if (path / "cifar-10-batches-py").is_dir():
        return _cifar(datasets.CIFAR10, path)
    return folder(path)


def cifar100(path: Path) -> Source:
    """torchvision's cifar-100-python."""
    return _cifar(datasets.CIFAR100, path)


def imagenet(path: Path) -> Source:
    """train/ and val/ with one folder per class, as torchvision.datasets.ImageNet unpacks the archives.

    Or both as shards, see `webdataset`. val is the test split (the published test split has no labels);
    validation comes out of train.
    """
    if not path.is_dir() or (any(path.glob("*.tar")) and not (path / "train").is_dir()):
        source = webdataset(path)
        return Source(source.classes, source.train, test=source.validation or source.test)
    classes, train = _read_folder(_split_folder(path, "train", "train"))
    test = _read_folder(_split_folder(path, "test", "val", "test"), classes)[1]
    return Source(classes, train, test=test)


def folder(path: Path) -> Source:
    """train/ and, where there are any, validation/ (val/, valid/) and test/, one folder per class."""
    classes, train = _read_folder(_split_folder(path, "train", "train"))
    splits = {}
    for split, names in (("validation", ("validation", "val", "valid")), ("test", ("test",))):
        found = [path / name for name in names if (path / name).is_dir()]
        if len(found) > 1:
            raise ValueError(f"{path} has both {found[0].name}/ and {found[1].name}/; keep one")
        if found:
            splits[split] = _read_folder(found[0], classes)[1]
    return Source(classes, train, **splits)


def webdataset(path: Path) -> Source:
    """Shards of webdataset: a folder of them or a pattern with braces, see `vision.data.shards`.

    Labels are numbers; their names stand in ``classes.txt`` beside the shards, one a line, if at all.
    """
    folder, shards = find_shards(str(path))
    splits, labels = {}, []
    for split, files in shards.items():
        members, targets = read_shards(files, split)
        splits[split] = Samples(targets, paths=members)
        labels.append(targets)
    classes = class_names(folder, torch.cat(labels))
    train = splits["train"].targets
    empty = [name for i, name in enumerate(classes) if not bool((train == i).any())]
    if empty or not len(train):
        raise ValueError(
            f"{folder}: no training samples of {len(empty)} of {len(classes)} classes: "
            f"{', '.join(empty[:10])}; are labels counted from 0, and all shards there?"
        )
    return Source(classes, **splits)


SOURCES = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "folder": folder,
    "webdataset": webdataset,
}


def join(
    names: Sequence[str], sources: Sequence[Source], decode: Callable[[Samples, str], Samples]
) -> Source:
    """Several data sets as one, with the classes of all; a class name that occurs twice gets its set's.

    Args:
        names: of the data sets.
        sources: what they offer.
        decode: samples and a name for messages -> the same as pixels of one shape.

    Raises:
        ValueError: a split that some of them have and some do not.
    """
    counts = Counter(name for source in sources for name in source.classes)
    called = [
        name if names.count(name) == 1 else f"{name} {position}"
        for position, name in enumerate(names, start=1)
    ]
    classes = [
        name if counts[name] == 1 else f"{data} {name}"
        for data, source in zip(called, sources, strict=True)
        for name in source.classes
    ]
    splits: dict[str, Samples] = {}
    for split in ("train", "validation", "test"):
        parts = [getattr(source, split) for source in sources]
        missing = [name for name, part in zip(names, parts, strict=True) if part is None]
        if len(missing) == len(parts):
            continue
        if missing:
            raise ValueError(
                f"{'+'.join(names)}: {', '.join(missing)} without a {split} split, the others with "
                "one; join data sets of the same splits"
            )
        decoded = [decode(part, f"{name} {split}") for name, part in zip(names, parts, strict=True)]
        first = itertools.accumulate((len(source.classes) for source in sources), initial=0)
        splits[split] = Samples(
            torch.cat([part.targets + start for part, start in zip(decoded, first, strict=False)]),
            torch.cat([part.pixels for part in decoded]),
        )
    return Source(classes, **splits)


def _cifar(dataset: type[datasets.CIFAR10], path: Path) -> Source:
    try:
        parts = [dataset(str(path), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{path}: no complete {dataset.base_folder}/ in it; unpack the published archive there"
        ) from error
    splits = [
        Samples(torch.tensor(p.targets), torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous())
        for p in parts
    ]
    return Source(list(parts[0].classes), train=splits[0], test=splits[1])


def _find_idx(path: Path, name: str) -> Path:
    places = [path, path / "FashionMNIST" / "raw"]
    for place in places:
        for file in (place / name, place / f"{name}.gz"):
            if file.is_file():
                return file
    raise FileNotFoundError(
        f"neither {name} nor {name}.gz in {places[0]} or {places[1]}; put the four idx files there"
    )


def _read_idx(file: Path, num_axes: int) -> Tensor:
    """An idx file of unsigned bytes: 2 zero bytes, type 8, number of axes, big-endian sizes, values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{file}: damaged gzip file ({error}); fetch it again") from error
    if content[:4] != bytes([0, 0, 8, num_axes]):
        raise ValueError(f"{file}: not an idx file of bytes with {num_axes} axes")
    start = 4 + 4 * num_axes
    shape = np.frombuffer(content[4:start], dtype=">u4").astype(np.int64)
    if len(content) - start != shape.prod():
        raise ValueError(
            f"{file}: {len(content) - start} values, its header says {shape.prod()}; fetch it again"
        )
    values = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())


def _split_folder(path: Path, what: str, *names: str) -> Path:
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(
        f"{path}: no folder {' or '.join(names)} for the {what} split; "
        f"expected {path / names[0]}/<class>/<image files>"
    )


def _read_folder(path: Path, classes: list[str] | None = None) -> tuple[list[str], Samples]:
    """Class folders of one split; those of train must be given for the others."""
    found = sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))
    if not found:
        raise ValueError(f"{path}: no class folders in it; expected {path}/<class>/<image files>")
    if classes is not None and found != classes:
        missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise ValueError(
            f"{path}: its class folders differ from those of train; "
            f"missing: {', '.join(missing) or 'none'}; extra: {', '.join(extra) or 'none'}"
        )
    odd = [
        name for name in found if not name.isprintable()
    ]  # not UTF-8, or line breaks and the like
    if odd:
        raise ValueError(
            f"{path}: {len(odd)} class folders have names that cannot be printed: "
            f"{', '.join(map(ascii, odd[:5]))}; rename them"
        )
    numbers = {name: i for i, name in enumerate(found)}
    samples = make_dataset(str(path), numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    prefix = len(str(path))  # hidden files and folders below it are no samples
    samples = [(p, t) for p, t in samples if f"{os.sep}." not in p[prefix:]]
    known = ", ".join(IMG_EXTENSIONS)
    if not samples:
        raise ValueError(f"{path}: no images ({known}) in its {len(found)} class folders")
    targets = torch.tensor([target for _, target in samples])
    empty = [name for i, name in enumerate(found) if not bool((targets == i).any())]
    if empty:
        raise ValueError(
            f"{path}: no images ({known}) for {len(empty)} of {len(found)} classes: "
            f"{', '.join(empty)}; add some or remove the folders"
        )
    return found, Samples(targets, paths=[p for p, _ in samples])
