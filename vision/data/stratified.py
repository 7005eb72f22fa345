"""A stratified split, number for number as scikit-learn does it, whose import takes seconds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Split(NamedTuple):
    """Positions of both parts, each in random order."""

    train: Int[np.ndarray, " a"]
    test: Int[np.ndarray, " b"]


def stratified_split(targets: Int[np.ndarray, " n"], num_test: int, seed: int = 0) -> Split:
    """Split samples so that every class keeps its share, as `sklearn.model_selection.train_test_split` does.

    Args:
        targets: class of each sample, 0, 1, ... without gaps.
        num_test: samples of the second part; at least one of each class stays in the first.
        seed: of the draw.

    Example:
        >>> split = stratified_split(np.array([0, 0, 0, 1, 1, 1]), 2)
        >>> sorted(split.train.tolist() + split.test.tolist())
        [0, 1, 2, 3, 4, 5]
    """
    random = np.random.RandomState(seed)
    counts = np.bincount(targets)
    by_class = np.split(np.argsort(targets, kind="mergesort"), np.cumsum(counts)[:-1])
    num_train = _shares(counts, len(targets) - num_test, random)
    of_test = _shares(counts - num_train, num_test, random)
    train, test = [], []
    for rows, kept, drawn in zip(by_class, num_train, of_test, strict=True):
        order = rows[random.permutation(len(rows))]
        train.append(order[:kept])
        test.append(order[kept : kept + drawn])
    return Split(
        random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))
    )


def _shares(
    counts: Int[np.ndarray, " c"], total: int, random: np.random.RandomState
) -> Int[np.ndarray, " c"]:
    """How many of each class make a total, in proportion; equal remainders are drawn."""
    exact = counts / counts.sum() * total
    whole = np.floor(exact)
    missing = int(total - whole.sum())
    remainders = exact - whole
    for remainder in np.unique(remainders)[::-1]:
        if missing <= 0:
            break
        (equal,) = np.where(remainders == remainder)
        more = min(len(equal), missing)
        whole[random.choice(equal, size=more, replace=False)] += 1
        missing -= more
    return whole.astype(np.int64)
