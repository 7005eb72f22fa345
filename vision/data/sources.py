"""Where samples come from: each data set's own layout -> splits of pixels or paths with targets."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vision.data import published
from vision.data.files import find_images, image_formats, is_image, printable
from vision.data.samples import JoinedSource, Samples, Source, tell_absent
from vision.data.shard_index import read_shards
from vision.data.shards import class_names, find_shards
from vision.data.stratified import stratified_split
from vision.data.table import read_labels, table_source

FASHION_MNIST = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]


def digits(path: Path) -> Source:
    """scikit-learn's 1,797 8x8 digits: 1,137 / 300 / 360, stratified."""
    everything = _samples(published.digits())
    targets = everything.targets.numpy()
    rest, test = stratified_split(targets, 360)
    train, validation = (rest[part] for part in stratified_split(targets[rest], 300))
    parts = {
        name: everything.select(torch.from_numpy(np.sort(rows)))
        for name, rows in (("train", train), ("validation", validation), ("test", test))
    }
    names = [str(i) for i in range(10)]
    return Source(names, parts["train"], parts["validation"], parts["test"])


def fashion_mnist(path: Path) -> Source:
    """The four idx files, plain or .gz, in ``path`` or in torchvision's FashionMNIST/raw below it."""
    train, test = (_samples(published.idx_images(path, prefix)) for prefix in ("train", "t10k"))
    return Source(FASHION_MNIST, train=train, test=test)


def cifar10(path: Path) -> Source:
    """The published cifar-10-batches-py, or a folder with train/ and test/."""
    if (path / published.CIFAR10.folder).is_dir():
        return _cifar(published.CIFAR10, path)
    return folder(path)


def cifar100(path: Path) -> Source:
    """The published cifar-100-python."""
    return _cifar(published.CIFAR100, path)


def _cifar(files: published.CifarFiles, path: Path) -> Source:
    content = published.read_cifar(files, path)
    return Source(content.classes, train=_samples(content.train), test=_samples(content.test))


def _samples(labelled: published.LabelledPixels) -> Samples:
    return Samples(labelled.targets, labelled.pixels)


def imagenet(path: Path) -> Source:
    """train/ and val/ with one folder per class, as torchvision.datasets.ImageNet unpacks the archives.

    Or both as shards, see `webdataset`. val is the test split (the published test split has no labels);
    validation comes out of train.
    """
    if not path.is_dir() or (any(path.glob("*.tar")) and not (path / "train").is_dir()):
        source = webdataset(path)
        return Source(source.classes, source.train, test=source.validation or source.test)
    classes, train = _read_folder(_split_folder(path, "train", "train"))
    test = _read_folder(_split_folder(path, "test", "val", "test"), classes).samples
    return Source(classes, train, test=test)


def folder(path: Path) -> Source:
    """train/ and, where there are any, validation/ (val/, valid/) and test/, one folder per class."""
    classes, train = _read_folder(_split_folder(path, "train", "train"))
    splits = {}
    for split, names in (("validation", ("validation", "val", "valid")), ("test", ("test",))):
        folders = [path / name for name in names if (path / name).is_dir()]
        if len(folders) > 1:
            raise ValueError(
                f"{printable(path)} has both {folders[0].name}/ and {folders[1].name}/; keep one"
            )
        if folders:
            splits[split] = _read_folder(folders[0], classes).samples
    return Source(classes, train, splits.get("validation"), splits.get("test"))


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
    return Source(classes, splits["train"], splits.get("validation"), splits.get("test"))


def table(path: Path) -> Source:
    """A .csv, .tsv or .parquet file whose columns have usual names, see `vision.data.table`."""
    return table_source(read_labels(path))


SOURCES = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet": imagenet,
    "folder": folder,
    "table": table,
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
            torch.cat([part.pixels for part in decoded if part.pixels is not None]),
        )
    return JoinedSource(
        classes,
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        sizes=tuple(len(source.classes) for source in sources),
    )


def _split_folder(path: Path, what: str, *names: str) -> Path:
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(
        f"{path}: no folder {' or '.join(names)} for the {what} split; "
        f"expected {path / names[0]}/<class>/<image files>"
    )


class _ClassFolders(NamedTuple):
    """One split that lies in class folders."""

    classes: list[str]
    samples: Samples


def _read_folder(path: Path, classes: list[str] | None = None) -> _ClassFolders:
    """Class folders of one split; those of train must be given for the others."""
    names = _class_folders(path)
    if classes is not None:
        extra = sorted(set(names) - set(classes))
        if extra:
            raise ValueError(
                f"{printable(path)}: {len(extra)} class folders that train does not have: "
                f"{', '.join(extra[:10])}; every split has the same classes"
            )
    places = [path / name for name in names]
    images = find_images(places, str(path))
    if not images.paths:
        raise ValueError(
            f"{printable(path)}: no images ({', '.join(image_formats().endings)}) in its {len(names)} "
            "class folders"
        )
    known = names if classes is None else classes
    numbers = {name: number for number, name in enumerate(known)}
    targets = torch.tensor([numbers[names[place]] for place in images.places])
    if classes is not None:
        tell_absent(path, path.name, targets, classes)
    empty = [name for i, name in enumerate(known) if not bool((targets == i).any())]
    if empty and classes is None:
        raise ValueError(
            f"{printable(path)}: no images of {len(empty)} of {len(known)} classes: "
            f"{', '.join(empty[:10])}; nothing can be learned of them: add images, or remove their folders"
        )
    return _ClassFolders(known, Samples(targets, paths=images.paths))


def _class_folders(path: Path) -> list[str]:
    """Their names; hidden ones are passed over."""
    try:
        entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot list the folder {printable(path)}: {error.strerror}") from error
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise ValueError(
            f"{printable(path)}: no class folders in it; expected {path}/<class>/<image files>"
        )
    odd = [name for name in names if not name.isprintable()]  # not UTF-8, or line breaks
    if odd:
        raise ValueError(
            f"{printable(path)}: {len(odd)} class folders have names that cannot be printed: "
            f"{', '.join(map(ascii, odd[:5]))}; rename them"
        )
    where: dict[str, str] = {}
    for name in names:
        first = where.setdefault(os.path.realpath(path / name), name)
        if first != name:
            raise ValueError(
                f"{printable(path)}: the class folders {first} and {name} are one folder (a link); "
                "remove one of them"
            )
    loose = [entry.name for entry in entries if is_image(entry.name) and not entry.is_dir()]
    if loose:
        warnings.warn(
            f"{printable(path)}: left out {len(loose)} images that are in no class folder "
            f"({printable(loose[0])}{', ...' * (len(loose) > 1)})",
            stacklevel=2,
        )
    return names
