"""Files of the same content in two splits: what is measured on them was learned by heart."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from vision.data.decode import content_digest
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
            f"{_name(splits[second].paths[theirs])} = {_name(splits[first].paths[own])}"
            for own, theirs in pairs[:2]
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
    if first.digests is None or second.digests is None:
        first, second = _digested(first, second)
    where = {int(digest): i for i, digest in reversed(list(enumerate(first.digests))) if digest}
    common = np.isin(second.digests, np.fromiter(where, np.uint64, len(where)))
    return [(where[int(second.digests[i])], int(i)) for i in np.flatnonzero(common)]


def _digested(first: SplitFiles, second: SplitFiles) -> tuple[SplitFiles, SplitFiles]:
    """With digests of the files whose sizes occur in both, within the bounds."""
    none = [
        SplitFiles(files.paths, np.zeros(len(files.paths), np.uint64)) for files in (first, second)
    ]
    if len(first.paths) + len(second.paths) > MAX_FILES:
        return none[0], none[1]
    sizes = [_sizes(files.paths) for files in (first, second)]
    shared = np.intersect1d(*sizes)
    left = MAX_BYTES
    for files, own in zip(none[::-1], sizes[::-1], strict=True):  # the smaller one first
        for position in np.flatnonzero(np.isin(own, shared) & (own > 0)):
            left -= int(own[position])
            if left < 0:
                break
            files.digests[position] = content_digest(files.paths[position])
    return none[0], none[1]


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
