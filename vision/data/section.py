"""The data of a recipe: where it lies, how it is split, what networks see of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from coe_core.support.command import nearest
from vision.data.columns import Columns
from vision.data.facts import DATA_SETS
from vision.data.sides import Sides, sides_of

if TYPE_CHECKING:
    from vision.data.preprocess import Preprocess


@dataclass(frozen=True)
class Data:
    """The ``data:`` section of a recipe.

    Args:
        name: data set: digits, fashion_mnist, cifar10, cifar100, imagenet, folder, which is any
            folder of class folders (or a table), table, which is a .csv, .tsv or .parquet file with a row for
            each image, or webdataset, which is tar files of samples. Several are joined
            by "+", as in cifar10+fashion_mnist: one set with the classes of all, held in memory.
        path: its folder; not needed for digits. For webdataset, and for imagenet in shards, also a
            pattern such as in1k-{train-{0000..1023},val-{00..63}}.tar. For joined sets a folder for
            each, in the order of the names, separated as in PATH (":", on Windows ";").
        columns: of a table.
        images: folder that the names of files in a table are relative to; null: the table's own.
        group: what belongs together, so that the held-out part is cut by whole groups: of a table the
            column that says it, of class folders folder (the one that a file lies in) or prefix (a file's
            name without the number at its end); null: a table's column of a usual name, such as track or
            patient_id; off: cut image by image.
        size: side of the square images fed to the networks, in pixels; or height and width, as [96, 128].
        channels: 1 (grey), 3 (RGB), or the number that files have, transparency as one of them: 4 of RGBA
            or CMYK, any up to 64 of TIFFs (with tifffile).
        range: low and high value of pixels of more than 8 bits, which become 0 and 255, such as [0, 4095] of
            12 bits; those beyond become as these; null: 0 and 65535.
        resize: "exact" stretches to size x size; "crop" resizes the shorter side to int(1.15 * size)
            and takes the centre; null: crop for folder, webdataset and imagenet, else exact.
        validation: part of the training samples held out where the data set has no validation split
            of its own, stratified by class; above 0, below 1.
        split_seed: draws the held-out part; not the run's seed, so that all runs share one.
        train_fraction: use only this part of the training samples (stratified); for studies.
        balance: how far rare classes are drawn more often, in [0, 1]: a class of n training images as often
            as n^(1 - balance) says: 0 every image once an epoch, 1 every class equally often. An epoch has
            as many draws as before, the same for all networks.
        augmentation: names, applied in order: shift, flip, random_resized_crop, autoaugment_cifar10,
            autoaugment_imagenet, randaugment, trivialaugment, color_jitter, random_erasing, rotate.
        mixup: alpha of MixUp on training batches; 0: off. With cutmix too, one of both per batch.
        cutmix: alpha of CutMix on training batches; 0: off.
        mean: of each channel in [0, 1]; null: computed on training images.
        std: of each channel in [0, 1]; null: computed on training images.
        workers: processes that prepare batches; null: none where images are decoded before and the
            augmentation is cheap, else one less than the processors.
        in_memory: decode all images before training; null: when they fit 1 GiB of memory, or the cache.
        cache: where decoded images are kept for the next command: auto, which is the user's cache
            folder; off; or a folder. See `vision.data.cache`.
        max_pixels: largest resolution of a file that is decoded, in pixels; null: Pillow's limit, 89 million.

    Raises:
        ValueError: a value out of its range, or an unknown augmentation (naming the nearest).
    """

    name: str = "digits"
    path: str | None = None
    columns: Columns = field(default_factory=Columns)
    images: str | None = None
    group: str | None = None
    size: int | list[int] = 8
    channels: int = 1
    range: list[float] | None = None
    resize: Literal["exact", "crop"] | None = None
    validation: float = 0.1
    split_seed: int = 0
    train_fraction: float = 1.0
    balance: float = 0.0
    augmentation: list[str] = field(default_factory=list)
    mixup: float = 0.0
    cutmix: float = 0.0
    mean: list[float] | None = None
    std: list[float] | None = None
    workers: int | None = None
    in_memory: bool | None = None
    cache: bool | str | None = "auto"  # a text once it is checked
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.path is not None:  # YAML takes a folder named 2024 for a number
            object.__setattr__(self, "path", str(self.path))
        for name in self.names:
            if name not in DATA_SETS:
                raise ValueError(f"unknown data set {name!r}{nearest(name, DATA_SETS)}")
        if self.augmentation:
            from vision.data.augmentation import check_augmentations

            check_augmentations(self.augmentation, self.channels)
        if self.range is not None and len(self.range) != 2:
            raise ValueError(f"range is a low and a high value, or null; got {self.range}")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is the part of the training samples held out, above 0 and below 1; "
                f"got {self.validation}"
            )
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction is above 0 and at most 1; got {self.train_fraction}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance is in [0, 1]; got {self.balance}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is an alpha, at least 0; got {getattr(self, name)}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is at least 0, or null; got {self.workers}")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels is at least 1, or null; got {self.max_pixels}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        self._settle_cache()
        self.preprocess()

    def _settle_cache(self) -> None:
        """``off`` is false in YAML; earlier recipes had true, false and null for what in_memory says now."""
        text = str(self.cache).lower()
        if text == "true" and self.in_memory is None:
            object.__setattr__(self, "in_memory", True)
        if text in ("off", "false", "no"):
            object.__setattr__(self, "cache", "off")
        elif text in ("auto", "true", "on", "yes", "none", "null", ""):
            object.__setattr__(self, "cache", "auto")

    @property
    def names(self) -> list[str]:
        """The data sets: one, or those that are joined."""
        return self.name.split("+")

    @property
    def sides(self) -> Sides:
        """Height and width of the images."""
        return sides_of(self.size)

    def preprocess(self) -> Preprocess:
        """How files become inputs; with mean 0 and std 1 where they are still to be computed."""
        from vision.data.preprocess import Preprocess

        photographs = any(DATA_SETS[name].photographs for name in self.names)
        resize = self.resize or ("crop" if photographs else "exact")
        mean = [0.0] * self.channels if self.mean is None else self.mean
        std = [1.0] * self.channels if self.std is None else self.std
        values = None if self.range is None else (self.range[0], self.range[1])
        size = self.size if isinstance(self.size, int) else (self.sides.height, self.sides.width)
        return Preprocess(size, self.channels, tuple(mean), tuple(std), resize, values)
