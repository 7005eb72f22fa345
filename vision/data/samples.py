"""Labelled samples before they are decoded, and the splits that they make."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from vision.data.files import printable
from vision.data.shards import Members


@dataclass(frozen=True)
class Samples:
    """One split before decoding: either pixels or paths."""

    targets: Int[Tensor, " n"]
    pixels: UInt8[Tensor, "n ch h w"] | None = None
    paths: list[str] | Members | None = None
    groups: Int[np.ndarray, " n"] | None = (
        None  # number of each sample's group, where they have some
    )

    def select(self, positions: Int[Tensor, " m"]) -> Samples:
        """Keep only these samples."""
        pixels = None if self.pixels is None else self.pixels[positions]
        paths = self.paths
        if isinstance(paths, Members):
            paths = paths.select(positions.numpy())
        elif paths is not None:
            paths = [paths[i] for i in positions.tolist()]
        groups = None if self.groups is None else self.groups[positions.numpy()]
        return Samples(self.targets[positions], pixels, paths, groups)


@dataclass(frozen=True)
class Source:
    """What a data set offers; None: it has no such split."""

    classes: list[str]
    train: Samples
    validation: Samples | None = None
    test: Samples | None = None
    group: str | None = None  # what the samples' groups are


@dataclass(frozen=True, kw_only=True)
class JoinedSource(Source):
    """Several data sets as one."""

    sizes: tuple[int, ...]  # classes of each


def tell_absent(
    source: object, split: str, targets: Int[Tensor, " n"], classes: Sequence[str]
) -> None:
    """Warn of classes that a split has no samples of: what is measured there says nothing about them."""
    there = set(targets.unique().tolist())
    absent = [name for number, name in enumerate(classes) if number not in there]
    if absent:
        warnings.warn(
            f"{printable(str(source))}: no images of {len(absent)} of {len(classes)} classes in {split}: "
            f"{', '.join(absent[:10])}{', ...' * (len(absent) > 10)}; figures on it say nothing about them",
            stacklevel=2,
        )


def numbered(names: Iterable[str]) -> Int[np.ndarray, " n"]:
    """Equal names by equal numbers, in order of their first.

    Example:
        >>> numbered(["b", "a", "b"])
        array([0, 1, 0])
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
