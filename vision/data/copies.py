"""Files of the same content in two splits: what is measured on them was learned by heart."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from vision.data.decode import content_key
from vision.data.files import printable
from vision.data.shards import Member, Members

# Where digests of the contents are not there already, files of equal size are read for them: so many.
MAX_FILES, MAX_BYTES = 200_000, 2**28


class SplitFiles(NamedTuple):
    """Files of a split, and digests of their contents where they were decoded; 0 is not known."""

    paths: Sequence[str | Member]
    digests: np.ndarray | None


def tell_copies(splits: Mapping[str, SplitFiles]) -> dict[str, int]:
    """Warn once of files of a split whose content another one, earlier in order, has as well.

    Args:
        splits: by name, training first.

    Returns:
        Their number by pair of splits, such as ``{"train, test": 3}``; pairs without any are left out.
    """
    counts, examples = {}, []
    for first, second in combinations(splits, 2):
        pairs = _pairs(splits[first], splits[second])
        if not len(pairs):
            continue
        counts[f"{first}, {second}"] = len({second for _, second in pairs})
        listed = [
            f"{_name(splits[second].paths[theirs])} = {_name(splits[first].paths[ours])}"
            for ours, theirs in pairs[:2]
        ]
        examples.append(
            f"{counts[f'{first}, {second}']} of {second} are in {first} as well "
            f"({'; '.join(listed)}{'; ...' * (len(pairs) > 2)})"
        )
    if examples:
        warnings.warn(
            f"the same images in two splits, which makes figures too good: {', '.join(examples)}; "
            "remove them from one",
            stacklevel=2,
        )
    return counts


def _name(path: str | Member) -> str:
    return str(path) if isinstance(path, Member) else printable(path)


def _pairs(first: SplitFiles, second: SplitFiles) -> list[tuple[int, int]]:
    """Positions of equal content: one in the first for each in the second."""
    ours, theirs = first.digests, second.digests
    if ours is None or theirs is None:
        ours, theirs = _digests(first.paths, second.paths)
    where = {int(digest): i for i, digest in reversed(list(enumerate(ours))) if digest}
    common = np.isin(theirs, np.fromiter(where, np.uint64, len(where)))
    return [(where[int(theirs[i])], int(i)) for i in np.flatnonzero(common)]


def _digests(*splits: Sequence[str | Member]) -> list[np.ndarray]:
    """Digests of the files whose sizes occur in both splits, within the bounds; 0 for the others."""
    digests = [np.zeros(len(paths), np.uint64) for paths in splits]
    if sum(map(len, splits)) > MAX_FILES:
        return digests
    sizes = [_sizes(paths) for paths in splits]
    shared = np.intersect1d(sizes[0], sizes[1])
    left = MAX_BYTES
    for split in (1, 0):  # the smaller one first
        wanted = np.isin(sizes[split], shared) & (sizes[split] > 0)
        for position in map(int, np.flatnonzero(wanted)):
            left -= int(sizes[split][position])
            if left < 0:
                break
            digests[split][position] = content_key(splits[split][position])
    return digests


def _sizes(paths: Sequence[str | Member]) -> np.ndarray:
    if isinstance(paths, Members):
        return paths.size

    def size(path: str | Member) -> int:
        if isinstance(path, Member):
            return path.size
        try:
            return os.stat(path).st_size
        except OSError:
            return 0

    return np.array([size(path) for path in paths], dtype=np.int64)
