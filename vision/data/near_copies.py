"""Neighbouring files that are nearly one picture, as frames of a film are (OURS)."""

from __future__ import annotations

import bisect
import os
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vision.data.images import ImageSet

SIDE = 8  # of what is compared, in pixels
ALIKE = 0.95  # correlation of two of these from which on pictures are nearly one
MANY = 0.1  # part of the neighbours that are alike from which on it is told, and
MORE = 3.0  # times the part of other pairs of the same class
PAIRS = 400  # that are compared


class Alike(NamedTuple):
    """Parts in [0, 1] of the pairs that are nearly one picture."""

    neighbours: float  # of files that lie side by side
    others: float  # of other pairs of the same class
    num_pairs: int

    @property
    def is_odd(self) -> bool:
        """Whether neighbours are copies rather than pictures of one class."""
        return self.neighbours >= MANY and self.neighbours >= MORE * self.others

    def __str__(self) -> str:
        return (
            f"{self.neighbours:.0%} of {self.num_pairs} neighbouring files are nearly one picture, "
            f"{self.others:.0%} of other pairs of a class"
        )


def thumbnail(image: UInt8[Tensor, "ch h w"]) -> Float[np.ndarray, " 64"]:
    """A picture in grey, 8 x 8, less its mean: what is compared."""
    small = adaptive_avg_pool2d(image.float().mean(0, keepdim=True), SIDE)
    return small.numpy().reshape(-1)


def correlation(
    ours: Float[np.ndarray, "n d"], theirs: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Of each row with the other's; 0 where one of them is of one colour.

    Example:
        >>> correlation(np.array([[0., 1.], [2., 2.]]), np.array([[3., 9.], [0., 1.]]))
        array([1., 0.])
    """
    ours, theirs = (v - v.mean(1, keepdims=True) for v in (ours, theirs))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.divide((ours * theirs).sum(1), lengths, out=np.zeros(len(ours)), where=lengths > 1e-6)


class Pairs(NamedTuple):
    """Positions of files: of a file, of its neighbour, and of another one of its class."""

    file: Int[np.ndarray, " m"]
    neighbour: Int[np.ndarray, " m"]
    other: Int[np.ndarray, " m"]


def find_pairs(
    paths: Sequence[str],
    targets: Int[np.ndarray, " n"],
    known: Sequence[str],
    known_targets: Int[np.ndarray, " k"],
) -> Pairs:
    """For some files the next of its folder and class among those known, and another one of its class.

    Args:
        paths: of the files, and ``targets`` their classes.
        known: of the files among which neighbours are looked for, in any order; a file is not its own.
        known_targets: their classes.
    """
    order = sorted(range(len(known)), key=known.__getitem__)
    names = [known[i] for i in order]
    of_class = {c: np.flatnonzero(known_targets == c) for c in np.unique(known_targets).tolist()}
    generator = np.random.default_rng(0)
    found = []
    for i in generator.permutation(len(paths))[: 4 * PAIRS].tolist():
        place, c = bisect.bisect_right(names, paths[i]), int(targets[i])
        if place == len(names) or len(of_class.get(c, ())) < 2:
            continue
        j = order[place]
        if known_targets[j] != c or os.path.dirname(known[j]) != os.path.dirname(paths[i]):
            continue
        found.append((i, j, int(generator.choice(of_class[c]))))
        if len(found) == PAIRS:
            break
    return Pairs(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def compare(
    pairs: Pairs,
    thumbnail_of: Callable[[int], Float[np.ndarray, " 64"]],
    known: Callable[[int], Float[np.ndarray, " 64"]],
) -> Alike | None:
    """How many of the pairs are alike; None: there are too few to tell."""
    if len(pairs.file) < PAIRS // 20:
        return None
    ours = np.stack([thumbnail_of(i) for i in pairs.file.tolist()])
    neighbours, others = (
        float((correlation(ours, np.stack([known(j) for j in rows.tolist()])) > ALIKE).mean())
        for rows in (pairs.neighbour, pairs.other)
    )
    return Alike(neighbours, others, len(ours))


def tell_near_copies(train: ImageSet, held_out: ImageSet) -> Alike | None:
    """Warn where held-out files look like their neighbours in train, so that figures on them are too good.

    Args:
        train: what is learned from.
        held_out: cut from the same files image by image.
    """
    if not isinstance(train.paths, list) or not isinstance(held_out.paths, list):
        return None
    pairs = find_pairs(
        [str(path) for path in held_out.paths],
        held_out.targets.numpy(),
        [str(path) for path in train.paths],
        train.targets.numpy(),
    )
    alike = compare(
        pairs,
        lambda i: thumbnail(held_out[i]["image"]),
        lambda j: thumbnail(train[j]["image"]),
    )
    if alike is not None and alike.is_odd:
        warnings.warn(
            f"the held-out part is cut at random, but {alike}: it holds near-copies of what is learned, and "
            "thresholds fitted on it will be wrong; cut it by whole groups with data.group",
            stacklevel=2,
        )
    return alike
