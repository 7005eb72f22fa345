"""Read the data of a recipe: check, hold a validation part out, decode, compute statistics."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vision.data.augmentation import Augmentation
from vision.data.bands import to_be_seen, to_tensor
from vision.data.cache import PixelCache, pixel_cache
from vision.data.copies import SplitFiles, tell_copies
from vision.data.decode import StoredForm, decode_files, stored_form
from vision.data.facts import DATA_SETS
from vision.data.files import printable
from vision.data.held_out import hold_out
from vision.data.images import ImageSet
from vision.data.near_copies import tell_near_copies
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.data.samples import JoinedSource, Samples, Source
from vision.data.section import Data
from vision.data.shards import COMPRESSED, Member
from vision.data.sources import SOURCES, join
from vision.data.table import is_table_of, read_labels, table_source

SPLITS = ("train", "validation", "test")
MEMORY_BYTES = (
    2**30
)  # up to here decoded images are held in memory, where they are not kept on disk
_STATISTICS_IMAGES = 2000


@dataclass
class ImageData:
    """A data set, ready: three sets, and what must be stored beside a model trained on them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: list[str]
    preprocess: Preprocess
    provenance: dict[str, Any]
    test_is_validation: bool = False  # there is no test split: figures on it are optimistic


def load_data(data: Data, decode: Collection[str] = SPLITS) -> ImageData:
    """Read a data set, check it, hold out a validation part, decode it where it fits.

    Args:
        data: the section of the recipe.
        decode: splits that are wanted decoded; files of the others are read when they are asked for.

    Raises:
        FileNotFoundError: the path, or something that should be in it, does not exist.
        ValueError: the data cannot be trained on; the message says what to change.

    Example:
        >>> images = load_data(Data())
        >>> len(images.train), len(images.validation), len(images.test), len(images.classes)
        (1137, 300, 360, 10)
    """
    source = find_source(data)
    parts = hold_out(data, source)
    splits = {"train": parts.train, "validation": parts.validation}
    if source.test is None:
        warnings.warn(
            f"{data.name}: no test split; validation stands in for it, so figures on test are optimistic",
            stacklevel=2,
        )
    else:
        splits["test"] = source.test
    preprocess = data.preprocess()
    augmentation = Augmentation(data.augmentation, data.sides) if data.augmentation else None
    forms = {
        name: stored_form(preprocess, augmentation if name == "train" else None, data.max_pixels)
        for name in splits
    }
    decoded = _decoded_splits(data, splits, forms, decode)

    def image_set(name: str) -> ImageSet:
        targets, images, paths, _ = decoded[name]
        views = augmentation if name == "train" else None
        return ImageSet(targets, source.classes, preprocess, images, paths, views, data.max_pixels)

    if data.mean is None:
        preprocess = _with_statistics(preprocess, image_set("train"))
    sets = {name: image_set(name) for name in splits}
    if parts.by_image and "train" in decode:
        tell_near_copies(sets["train"], sets["validation"])
    test = sets.get("test", sets["validation"])
    provenance = {
        "name": data.name,
        "path": data.path,
        "num_train": len(sets["train"]),
        "num_validation": len(sets["validation"]),
        "num_test": len(test),
        "num_classes": len(source.classes),
        "joined": list(source.sizes) if isinstance(source, JoinedSource) else [],
        "held_out": parts.held_out,
        "train_fraction": data.train_fraction,
        "test_is_validation": "test" not in sets,
        "left_out": {name: len(splits[name].targets) - len(sets[name]) for name in splits},
        "copies": _copies(decoded) if "train" in decode else {},
    }
    return ImageData(
        sets["train"],
        sets["validation"],
        test,
        source.classes,
        preprocess,
        provenance,
        "test" not in sets,
    )


# Where the samples come from


def find_source(data: Data) -> Source:
    """Find the samples, and check what every data set must satisfy.

    Raises:
        FileNotFoundError: the path, or something that should be in it, does not exist.
        ValueError: fewer than two classes, or labels of none.
    """
    names = data.names
    paths = [None] * len(names) if data.path is None else data.path.split(os.pathsep)
    if len(names) == 1:
        source = _one_source(data, data.name, data.path)
    elif len(paths) != len(names):
        raise ValueError(
            f"data.path: {data.name} joins {len(names)} data sets, but there are {len(paths)} folders "
            f"in {data.path}; give one for each, separated by {os.pathsep!r}"
        )
    else:
        parts = [_one_source(data, name, path) for name, path in zip(names, paths, strict=True)]
        source = join(names, parts, partial(_pixels, data))
    num_classes = len(source.classes)
    if num_classes < 2:
        raise ValueError(
            f"{data.name}: only one class ({', '.join(source.classes)}); at least two are needed"
        )
    for name in SPLITS:
        samples = getattr(source, name)
        if samples is None:
            continue
        bad = torch.nonzero((samples.targets < 0) | (samples.targets >= num_classes)).flatten()
        if len(bad):
            first = int(bad[0])
            raise ValueError(
                f"{data.name}, {name}: {len(bad)} of {len(samples.targets)} labels out of range 0 to "
                f"{num_classes - 1}; the first is sample {first} with label {int(samples.targets[first])}"
            )
        if len(samples.targets.unique()) == 1:
            only = source.classes[int(samples.targets[0])]
            raise ValueError(
                f"{data.name}: all {len(samples.targets)} images of {name} are of one class, {only!r}; at "
                "least two are needed"
            )
    return source


def _one_source(data: Data, name: str, path: str | None) -> Source:
    facts = DATA_SETS[name]
    if not facts.in_files:
        if path:
            warnings.warn(f"{name} comes with scikit-learn: path {path} ignored", stacklevel=4)
        return SOURCES[name](Path())
    if path is None:
        raise ValueError(f"data.path: {name} needs the folder it lies in; none given")
    folder = Path(path).expanduser()
    if is_table_of(name, path):
        return table_source(read_labels(folder, data.columns, data.group, data.images))
    shards = facts.in_shards and path.endswith(".tar")
    if facts.in_shards and path.endswith(COMPRESSED):
        raise ValueError(
            f"data.path: {printable(path)} is compressed; unpack it to plain .tar files: samples are read "
            "at random"
        )
    if not shards and folder.exists() and not folder.is_dir():
        raise ValueError(
            f"data.path: {printable(folder)} is no folder; what is read is a folder, or a table whose name "
            "ends in .csv, .tsv or .parquet"
        )
    if not shards and not folder.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {printable(folder)}")
    return SOURCES[name](folder)


def _pixels(data: Data, samples: Samples, name: str) -> Samples:
    """The samples as plain pictures of the size and channels asked for."""
    preprocess = data.preprocess()
    if samples.paths is None:
        return Samples(samples.targets, _fit_pixels(samples.pixels, preprocess))
    form = stored_form(preprocess, None, data.max_pixels)
    num_bytes = _stored_bytes(samples, form)
    cache = pixel_cache(str(data.cache))
    if cache is None or num_bytes > cache.max_bytes:
        decoded = decode_files(samples.paths, form, name)
    else:
        decoded = cache.images(samples.paths, form, name, num_bytes)
        cache.tell()
    assert isinstance(decoded.images, Tensor)  # of the plain form
    return Samples(samples.targets[decoded.kept], decoded.images)


# What is decoded


class _Decoded(NamedTuple):
    """A split: its pictures where they are decoded (None: they are read on the fly), its files."""

    targets: Tensor
    images: Tensor | list[Tensor] | None
    paths: Sequence[str | Member] | None
    digests: np.ndarray | None


def _decoded_splits(
    data: Data,
    splits: Mapping[str, Samples],
    forms: Mapping[str, StoredForm],
    decode: Collection[str],
) -> dict[str, _Decoded]:
    """Every split, decoded if that is wanted and there is room for it: in memory or in the cache."""
    wanted = {name: samples for name, samples in splits.items() if name in decode}
    sizes = {name: _stored_bytes(samples, forms[name]) for name, samples in wanted.items()}
    total = sum(sizes.values())
    cache = pixel_cache(str(data.cache)) if total and data.in_memory is not False else None
    if cache is not None and total > cache.max_bytes:
        cache = None
    in_memory = data.in_memory
    if in_memory is None:
        in_memory = cache is not None or total <= MEMORY_BYTES
    decoded = {
        name: _decoded_split(
            samples, forms[name], name, cache, in_memory and name in wanted, sizes.get(name, 0)
        )
        for name, samples in splits.items()
    }
    if cache is not None:
        cache.tell()
    return decoded


def _decoded_split(
    samples: Samples,
    form: StoredForm,
    name: str,
    cache: PixelCache | None,
    decode: bool,
    num_bytes: float,
) -> _Decoded:
    if samples.paths is None:
        return _Decoded(samples.targets, _fit_pixels(samples.pixels, form.preprocess), None, None)
    if not decode:
        return _Decoded(samples.targets, None, samples.paths, None)
    if cache is None:
        decoded = decode_files(samples.paths, form, name)
    else:
        decoded = cache.images(samples.paths, form, name, num_bytes)
    targets: Tensor = samples.targets
    paths: Sequence[str | Member] = samples.paths
    if len(decoded.kept) < len(paths):
        targets, paths = targets[decoded.kept], [paths[i] for i in decoded.kept]
    return _Decoded(targets, decoded.images, paths, decoded.digests)


def _fit_pixels(pixels: Tensor | None, preprocess: Preprocess) -> Tensor:
    """Bring decoded images [n, ch, h, w] to the size and channels asked for."""
    assert pixels is not None
    if pixels.shape[1:] == preprocess.shape:
        return pixels
    pictures = [to_be_seen(image) for image in pixels]  # of one channel or three
    fitted = [preprocess.fit(preprocess.convert(picture)) for picture in pictures]
    return torch.stack([to_tensor(picture) for picture in fitted])


def _stored_bytes(samples: Samples, form: StoredForm) -> float:
    """Memory for the decoded samples, from a few of them."""
    if samples.paths is None:
        return 0.0
    sizes = []
    for path in samples.paths[:: max(1, len(samples.paths) // 16)]:
        try:
            sizes.append(form(path).numel())
        except UnreadableImageError:
            continue  # counted and named when the set is read
    return len(samples.paths) * sum(sizes) / max(1, len(sizes))


def _copies(decoded: Mapping[str, _Decoded]) -> dict[str, int]:
    """Files of one content in two splits, told and counted."""
    return tell_copies(
        {
            name: SplitFiles(samples.paths, samples.digests)
            for name, samples in decoded.items()
            if samples.paths is not None
        }
    )


# Statistics


def _with_statistics(preprocess: Preprocess, images: ImageSet) -> Preprocess:
    """Mean and std of each channel over up to 2,000 training images, evenly spread."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), _STATISTICS_IMAGES)).astype(int)
    total = squares = torch.zeros(preprocess.channels, dtype=torch.float64)
    count = 0
    for start in range(0, len(chosen), 100):
        samples = images.__getitems__(chosen[start : start + 100].tolist())
        pixels = torch.stack([s["image"] for s in samples]).double() / 255
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square().sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    rounded = [tuple(round(v, 4) for v in values.tolist()) for values in (mean, std)]
    return replace(preprocess, mean=rounded[0], std=rounded[1])
