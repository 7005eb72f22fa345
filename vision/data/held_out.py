"""What is held out: the data's own split, a part of every class, or whole groups."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vision.data.columns import OFF
from vision.data.samples import Samples, Source, numbered, tell_absent
from vision.data.section import Data

_KINDS = (
    "folder, which is the one that a file lies in, prefix, which is its name without the number at its "
    "end, or off"
)


class Parts(NamedTuple):
    """What is learned from and what is held out, with a sentence on where that comes from."""

    train: Samples
    validation: Samples
    held_out: str
    by_image: bool  # cut image by image, so that copies of an image may lie in both


def hold_out(data: Data, source: Source) -> Parts:
    """The validation split that there is, or one cut from train; and the part of train that is wanted.

    Args:
        data: the section of the recipe.
        source: what the data set offers.

    Raises:
        ValueError: none can be held out; or `data.group` is of another kind of data.
    """
    train, validation, held_out = source.train, source.validation, "the data set's own split"
    by_image = False
    group = source.group or _folder_group(data)
    if validation is None and group is not None:
        if train.groups is None:
            train = replace(train, groups=_groups_of_files(train, group, data.name))
        train, validation, held_out = _by_groups(data, train, group)
        tell_absent(data.name, "validation", validation.targets, source.classes)
    elif validation is None:
        by_image = True
        drawn = _draw(train.targets, data.validation, data.split_seed, leave=1)
        if not len(drawn.part):
            raise ValueError(
                f"{data.name}: {len(train.targets)} training images, one of each class: none can be "
                f"held out for validation; add images"
            )
        train, validation = train.select(drawn.rest), train.select(drawn.part)
        held_out = f"{data.validation:g} of train, stratified, split_seed {data.split_seed}"
    elif group is not None and source.group is None:
        warnings.warn(
            f"data.group={group} has no effect: {data.name} has a validation split of its own",
            stacklevel=2,
        )
    if data.train_fraction < 1:
        drawn = _draw(train.targets, data.train_fraction, data.split_seed, leave=0)
        train = train.select(drawn.part)
    return Parts(train, validation, held_out, by_image)


def why_none_is_held_out(data: Data, source: Source) -> str:
    """Why `hold_out` refuses the data; empty: it does not."""
    try:
        hold_out(data, source)
    except ValueError as error:
        return str(error)
    return ""


class _Drawn(NamedTuple):
    """Positions of samples."""

    rest: Tensor
    part: Tensor


def _draw(targets: Tensor, part: float, seed: int, leave: int) -> _Drawn:
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
    return _Drawn(torch.cat(rest).sort().values, torch.cat(drawn).sort().values)


# Whole groups


def _folder_group(data: Data) -> str | None:
    """What the groups of files are that no table names; None: there are none."""
    return None if data.group in (None, OFF) else data.group


def _groups_of_files(samples: Samples, kind: str, name: str) -> Int[np.ndarray, " n"]:
    if kind not in ("folder", "prefix"):
        raise ValueError(
            f"data.group: of files in folders it is {_KINDS}; the name of a column is of a table "
            f"(data.path=labels.csv); got {kind!r}"
        )
    if samples.paths is None or not all(isinstance(path, str) for path in samples.paths[:1]):
        raise ValueError(
            f"data.group: {name} has no files in folders, whose groups {kind} would tell"
        )
    return numbered(_group_of_file(str(path), kind) for path in samples.paths)


def _group_of_file(path: str, kind: str) -> str:
    """
    >>> _group_of_file("train/00/00001_00002.jpg", "prefix")
    'train/00/00001'
    """
    folder, name = os.path.split(path)
    if kind == "folder":
        return folder
    return os.path.join(folder, re.sub(r"[-_ .(]*\d+\)?$", "", os.path.splitext(name)[0]))


class _ByGroups(NamedTuple):
    train: Samples
    validation: Samples
    held_out: str


def _by_groups(data: Data, train: Samples, group: str) -> _ByGroups:
    assert train.groups is not None
    chosen = draw_groups(train.targets.numpy(), train.groups, data.validation, data.split_seed)
    counts = [len(np.unique(train.groups[rows])) for rows in (chosen, ~chosen)]
    if not counts[0]:
        raise ValueError(
            f"data.group={group}: each of the {counts[1]} groups holds all images of a class, so none can be "
            "held out; give another column, add groups, or set data.group=off"
        )
    held_out = (
        f"{chosen.mean():.3g} of train, {counts[0]} of {sum(counts)} whole groups of {group}, split_seed "
        f"{data.split_seed}"
    )
    rest, part = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~chosen, chosen))
    return _ByGroups(train.select(rest), train.select(part), held_out)


def draw_groups(
    targets: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], part: float, seed: int
) -> np.ndarray:
    """Draw whole groups that hold about a part of the samples of every class (OURS).

    In random order a group is taken if that brings the classes that it holds nearer to their part, and
    leaves samples of each. A class that is left without any then gets its smallest group, if it has two.

    Args:
        targets: class of each sample.
        groups: number of each sample's group.
        part: of the samples that is wanted, in (0, 1).
        seed: of the order.

    Returns:
        [n] of bool: whether a sample is drawn.

    Example:
        >>> draw_groups(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2, 3]), 0.5, seed=0)
        array([ True,  True, False, False,  True, False])
    """
    names, codes = np.unique(groups, return_inverse=True)
    (group, label), count = np.unique(np.stack([codes, targets]), axis=1, return_counts=True)
    start = np.searchsorted(group, np.arange(len(names) + 1))
    rows_of = [slice(first, end) for first, end in pairwise(start)]
    total = np.bincount(targets)
    taken, drawn = np.zeros_like(total), np.zeros(len(names), bool)

    def take(number: int, anyway: bool = False) -> bool:
        """Take a group if that helps, and nothing speaks against it; whether it was."""
        classes, more = label[rows_of[number]], count[rows_of[number]]
        now, wanted = taken[classes], part * total[classes]
        helps = (abs(wanted - now) - abs(wanted - now - more)).sum() > 0
        if (now + more == total[classes]).any() or not (helps or anyway):
            return False
        taken[classes] += more
        drawn[number] = True
        return True

    for number in np.random.default_rng(seed).permutation(len(names)).tolist():
        take(number)
    for without in np.flatnonzero((taken == 0) & (total > 0)).tolist():
        having = np.flatnonzero(label == without)
        for row in having[np.argsort(count[having], kind="stable")].tolist():
            if taken[without] or (not drawn[group[row]] and take(int(group[row]), anyway=True)):
                break
    return drawn[codes]
