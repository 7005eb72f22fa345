"""The data of a recipe: where it lies, how it is split, what networks see of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vision.data.augmentation import Augmentation, check_augmentations
from vision.data.images import ImageSet, decode_all, stored_form, stores_plain
from vision.data.loaders import (
    EpochSampler,
    MixSamples,
    ResumableLoader,
    collate_samples,
    default_workers,
    eval_loader,
)
from vision.data.preprocess import Preprocess, UnreadableImageError, to_image, to_tensor
from vision.data.sources import SOURCES, Samples, Source, join
from vision.errors import nearest

__all__ = ["Data", "ImageData", "ImageSet", "eval_loader", "load_data", "train_loader"]

SPLITS = ("train", "validation", "test")
CACHE_BYTES = 2**30
_STATISTICS_IMAGES = 2000


@dataclass(frozen=True)
class Data:
    """The ``data:`` section of a recipe.

    Args:
        name: data set: digits, fashion_mnist, cifar10, cifar100, imagenet, folder, which is any
            folder of class folders, or webdataset, which is tar files of samples. Several are joined
            by "+", as in cifar10+fashion_mnist: one set with the classes of all, held in memory.
        path: its folder; not needed for digits. For webdataset, and for imagenet in shards, also a
            pattern such as in1k-{train-{0000..1023},val-{00..63}}.tar. For joined sets a folder for
            each, in the order of the names, separated as in PATH (":", on Windows ";").
        size: side of the square images fed to the networks, in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: "exact" stretches to size x size; "crop" resizes the shorter side to int(1.15 * size)
            and takes the centre; null: crop for folder, webdataset and imagenet, else exact.
        validation: part of the training samples held out where the data set has no validation split
            of its own, stratified by class; above 0, below 1.
        split_seed: draws the held-out part; not the run's seed, so that all runs share one.
        train_fraction: use only this part of the training samples (stratified); for studies.
        augmentation: names, applied in order: shift, flip, random_resized_crop, autoaugment_cifar10,
            autoaugment_imagenet, randaugment, trivialaugment, color_jitter, random_erasing, rotate.
        mixup: alpha of MixUp on training batches; 0: off. With cutmix too, one of both per batch.
        cutmix: alpha of CutMix on training batches; 0: off.
        mean: of each channel in [0, 1]; null: computed on training images.
        std: of each channel in [0, 1]; null: computed on training images.
        workers: processes that prepare batches; null: none where images are cached and the
            augmentation is cheap, else one less than the processors.
        cache: keep images decoded from files in memory; null: when all of them fit 1 GiB.

    Raises:
        ValueError: a value out of its range, or an unknown augmentation (naming the nearest).
    """

    name: str = "digits"
    path: str | None = None
    size: int = 8
    channels: Literal[1, 3] = 1
    resize: Literal["exact", "crop"] | None = None
    validation: float = 0.1
    split_seed: int = 0
    train_fraction: float = 1.0
    augmentation: list[str] = field(default_factory=list)
    mixup: float = 0.0
    cutmix: float = 0.0
    mean: list[float] | None = None
    std: list[float] | None = None
    workers: int | None = None
    cache: bool | None = None

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in SOURCES:
                raise ValueError(f"unknown data set {name!r}{nearest(name, SOURCES)}")
        check_augmentations(self.augmentation)
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is the part of the training samples held out, above 0 and below 1; "
                f"got {self.validation}"
            )
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction is above 0 and at most 1; got {self.train_fraction}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is an alpha, at least 0; got {getattr(self, name)}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is at least 0, or null; got {self.workers}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        self.preprocess()

    @property
    def names(self) -> list[str]:
        """The data sets: one, or those that are joined."""
        return self.name.split("+")

    def preprocess(self) -> Preprocess:
        """How files become inputs; with mean 0 and std 1 where they are still to be computed."""
        photographs = {"folder", "imagenet", "webdataset"}.intersection(self.names)
        resize = self.resize or ("crop" if photographs else "exact")
        mean = [0.0] * self.channels if self.mean is None else self.mean
        std = [1.0] * self.channels if self.std is None else self.std
        return Preprocess(self.size, self.channels, tuple(mean), tuple(std), resize)


@dataclass
class ImageData:
    """A data set, ready: three sets, and what must be stored beside a model trained on them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    classes: list[str]
    preprocess: Preprocess
    provenance: dict
    test_is_validation: bool = False  # there is no test split: figures on it are optimistic


def load_data(data: Data, decode: Collection[str] = SPLITS) -> ImageData:
    """Read a data set, check it, hold out a validation part, decode it where it fits in memory.

    Args:
        data: the section of the recipe.
        decode: splits that are wanted in memory; files of the others are read when they are asked for.

    Raises:
        FileNotFoundError: the path, or something that should be in it, does not exist.
        ValueError: the data cannot be trained on; the message says what to change.

    Example:
        >>> images = load_data(Data())
        >>> len(images.train), len(images.validation), len(images.test), len(images.classes)
        (1137, 300, 360, 10)
    """
    source = _source(data)
    train, validation, held_out = source.train, source.validation, "the data set's own split"
    if validation is None:
        keep, out = _draw(train.targets, data.validation, data.split_seed, leave=1)
        if not len(out):
            raise ValueError(
                f"{data.name}: {len(train.targets)} training images, one of each class: none can be "
                f"held out for validation; add images"
            )
        train, validation = train.select(keep), train.select(out)
        held_out = f"{data.validation:g} of train, stratified, split_seed {data.split_seed}"
    if data.train_fraction < 1:
        _, part = _draw(train.targets, data.train_fraction, data.split_seed, leave=0)
        train = train.select(part)
    test = source.test
    if test is None:
        warnings.warn(
            f"{data.name}: no test split; validation stands in for it, so figures on test are optimistic",
            stacklevel=2,
        )
    preprocess = data.preprocess()
    augmentation = Augmentation(data.augmentation, data.size) if data.augmentation else None
    named = dict(zip(SPLITS, (train, validation, test), strict=True))
    splits = {name: samples for name, samples in named.items() if samples is not None}
    cache = data.cache
    if cache is None:
        wanted = [samples for name, samples in splits.items() if name in decode]
        cache = sum(_stored_bytes(s, preprocess, augmentation) for s in wanted) <= CACHE_BYTES
    sets = [
        _image_set(
            split,
            source.classes,
            preprocess,
            augmentation if name == "train" else None,
            cache and name in decode,
            name,
        )
        for name, split in splits.items()
    ]
    if data.mean is None:
        preprocess = _with_statistics(preprocess, sets[0])
    for images in sets:
        images.preprocess = preprocess
    train_set, validation_set, *rest = sets
    test_set = rest[0] if rest else validation_set
    provenance = {
        "name": data.name,
        "path": data.path,
        "num_train": len(train_set),
        "num_validation": len(validation_set),
        "num_test": len(test_set),
        "num_classes": len(source.classes),
        "held_out": held_out,
        "train_fraction": data.train_fraction,
        "test_is_validation": not rest,
        "left_out": {
            name: len(samples.targets) - len(images)
            for (name, samples), images in zip(splits.items(), sets, strict=True)
        },
    }
    return ImageData(
        train_set, validation_set, test_set, source.classes, preprocess, provenance, not rest
    )


def train_loader(
    data: Data,
    images: ImageSet,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    per_node: int | None = None,
) -> ResumableLoader:
    """Training batches: shuffled, augmented, mixed as ``data`` says.

    Under Lightning pass ``use_distributed_sampler=False`` to the trainer: the ranks are seen to here.

    Args:
        data: the recipe's section.
        images: the training set.
        batch_size: global, over all processes; the last incomplete batch of an epoch is left out.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        per_node: those that share this machine's processors; null: all of them.

    Raises:
        ValueError: more per batch than samples, or a batch that does not divide over the processes.
    """
    sampler = EpochSampler(len(images), batch_size, seed, rank=rank, world_size=world_size)
    collate = collate_samples
    if data.mixup > 0 or data.cutmix > 0:
        collate = MixSamples(len(images.classes), data.mixup, data.cutmix)
    workers = data.workers
    if workers is None:
        workers = default_workers(images, per_node or world_size)
    return ResumableLoader(images, sampler, workers, collate)


def _source(data: Data) -> Source:
    """Find the samples, and check what every data set must satisfy."""
    names = data.names
    paths = [None] * len(names) if data.path is None else data.path.split(os.pathsep)
    if len(names) == 1:
        source = _one_source(data.name, data.path)
    elif len(paths) != len(names):
        raise ValueError(
            f"data.path: {data.name} joins {len(names)} data sets, but there are {len(paths)} folders "
            f"in {data.path}; give one for each, separated by {os.pathsep!r}"
        )
    else:
        parts = [_one_source(name, path) for name, path in zip(names, paths, strict=True)]
        source = join(names, parts, partial(_decoded, data.preprocess()))
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
    return source


def _one_source(name: str, path: str | None) -> Source:
    if name == "digits":
        if path:
            warnings.warn(f"digits comes with scikit-learn: path {path} ignored", stacklevel=4)
        return SOURCES["digits"](Path())
    if path is None:
        raise ValueError(f"data.path: {name} needs the folder it lies in; none given")
    folder = Path(path).expanduser()
    shards = name in ("webdataset", "imagenet") and path.endswith(".tar")
    if not shards and not folder.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {folder}")
    return SOURCES[name](folder)


def _decoded(preprocess: Preprocess, samples: Samples, name: str) -> Samples:
    """The samples as plain pictures of the size and channels asked for."""
    if samples.paths is None:
        return Samples(samples.targets, _fit_pixels(samples.pixels, preprocess))
    images, kept = decode_all(samples.paths, preprocess.load, name)
    return Samples(samples.targets[kept], torch.stack(images))


def _draw(targets: Tensor, part: float, seed: int, leave: int) -> tuple[Tensor, Tensor]:
    """Positions of the rest, and of ``part`` of every class, leaving ``leave`` samples of it.

    Drawn again with a larger part, the smaller one is contained in it.
    """
    generator = np.random.default_rng(seed)
    rest, drawn = [], []
    for label in targets.unique().tolist():
        positions = torch.nonzero(targets == label).flatten()
        positions = positions[torch.from_numpy(generator.permutation(len(positions)))]
        take = min(max(1, round(part * len(positions))), len(positions) - leave)
        rest.append(positions[take:])
        drawn.append(positions[:take])
    return torch.cat(rest).sort().values, torch.cat(drawn).sort().values


def _image_set(
    samples: Samples,
    classes: list[str],
    preprocess: Preprocess,
    augmentation: Augmentation | None,
    cache: bool,
    name: str,
) -> ImageSet:
    """Samples of one split as an `ImageSet`, decoded if ``cache``."""
    targets, paths, images = samples.targets, samples.paths, None
    if paths is None:
        images = _fit_pixels(samples.pixels, preprocess)
    elif cache:
        images, kept = decode_all(paths, stored_form(preprocess, augmentation), name)
        targets, paths = targets[kept], [paths[i] for i in kept]
        if stores_plain(preprocess, augmentation):
            images = torch.stack(images)
    return ImageSet(targets, classes, preprocess, images, paths, augmentation)


def _fit_pixels(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Bring decoded images [n, ch, h, w] to the size and channels asked for."""
    if pixels.shape[1:] == (preprocess.channels, preprocess.size, preprocess.size):
        return pixels
    fitted = []
    for image in pixels:
        fitted.append(to_tensor(preprocess.square(preprocess.convert(to_image(image)))))
    return torch.stack(fitted)


def _stored_bytes(
    samples: Samples, preprocess: Preprocess, augmentation: Augmentation | None
) -> float:
    """Memory for the decoded samples, from a few of them."""
    if samples.paths is None:
        return 0.0
    load, sizes = stored_form(preprocess, augmentation), []
    for path in samples.paths[:: max(1, len(samples.paths) // 16)]:
        try:
            sizes.append(load(path).numel())
        except UnreadableImageError:
            continue  # counted and named when the set is read
    return len(samples.paths) * sum(sizes) / max(1, len(sizes))


def _with_statistics(preprocess: Preprocess, images: ImageSet) -> Preprocess:
    """Mean and std of each channel over up to 2,000 training images, evenly spread."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), _STATISTICS_IMAGES)).astype(int)
    total, squares, count = 0.0, 0.0, 0
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
