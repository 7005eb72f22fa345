"""Portions in training: where they come from beside the selection, and what they follow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from coe_core import ClusterPortions, PortionCounts, experts_of_groups, handed_to_evidence
from vision.data.load import ImageData
from vision.data.table import is_table_of, read_labels
from vision.errors import nearest
from vision.networks.features import ClassifierInput
from vision.networks.team import Team, Trunked
from vision.recipe import Recipe


class Groups(NamedTuple):
    """The groups of a training set."""

    names: list[str]
    of_sample: Int[Tensor, " n"]  # number of its group; -1: of none


def known_groups(recipe: Recipe, data: ImageData) -> Groups | None:
    """The groups that a recipe tells of its training images; None where it tells none.

    Args:
        recipe: whose `portions.groups`.
        data: with the training images.

    Raises:
        ValueError: a class or column that there is not (names the nearest), images that lie in no folders, in
            no table or in no joined data set, or fewer groups than experts that are to follow them.
    """
    portions, images = recipe.portions, data.train
    if portions.groups is None:
        return None
    if portions.groups == "class":
        unknown = [name for name in portions.of_class if name not in images.classes]
        if unknown:
            raise ValueError(
                f"portions.of_class: there is no class {unknown[0]!r}{nearest(unknown[0], images.classes)}"
            )
        group_of = [portions.of_class.get(name) for name in images.classes]
        groups = _numbered(group_of, images.targets)
    elif portions.groups == "source":
        sizes = data.provenance.get("joined") or []
        if len(sizes) < 2:
            raise ValueError(
                f"portions.groups: source is of several joined data sets, but data.name is {recipe.data.name}"
            )
        called = recipe.data.names
        names = [
            name if called.count(name) == 1 else f"{name} {place}"
            for place, name in enumerate(called, start=1)
        ]
        group_of = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
        groups = _numbered(group_of, images.targets)
    elif portions.groups == "column":
        groups = _numbered(_cells(recipe, images.paths or ()), torch.arange(len(images)))
    else:
        folders = [_folder_below(path, images.classes) for path in images.paths or ()]
        if not folders or None in folders:
            raise ValueError(
                "portions.groups: folder needs every training image in a folder of its class's, as in "
                f"train/CLASS/GROUP/image.png; {folders.count(None) or len(images)} of {len(images)} are "
                "in none"
            )
        groups = _numbered(folders, torch.arange(len(images)))
    if portions.follow == "known":
        experts_of_groups(
            torch.ones(len(groups.names)).long(), recipe.num_experts
        )  # checks their number
    return groups


def _numbered(group_of: list[str | None], row: Int[Tensor, " n"]) -> Groups:
    """Groups by name, in order; ``row`` is where each sample's stands in ``told``."""
    names = sorted({name for name in group_of if name is not None})
    number = {name: place for place, name in enumerate(names)} | {None: -1}
    return Groups(names, torch.tensor([number[name] for name in group_of])[row])


def _cells(recipe: Recipe, paths: Iterable[object]) -> list[str | None]:
    """What a column of the table of labels says of each of these files; None: its cell is empty."""
    path, column = recipe.data.path, recipe.portions.column
    if path is None or not is_table_of(recipe.data.name, path):
        raise ValueError(
            f"portions.groups: column is of a table of labels, but data.path is {path}; name a .csv, .tsv or "
            ".parquet file, or set portions.groups to class or folder"
        )
    table = read_labels(path, recipe.data.columns, column, recipe.data.images, "portions.column")
    assert table.groups is not None
    cell_of = dict(zip(table.files, table.groups, strict=True))
    return [cell_of[str(path)] or None for path in paths]


def _folder_below(path: object, classes: list[str]) -> str | None:
    """The folder between that of the class and the file."""
    if not isinstance(path, str | Path):
        return None
    folders = Path(path).parts[:-1]
    places = [place for place, name in enumerate(folders) if name in set(classes)]
    inside = folders[places[0] + 1 :] if places else ()
    return inside[0] if inside else None


class TeamPortions(nn.Module):
    """Clusters or known groups of a training, and how far portions follow classes and groups.

    Args:
        recipe: see `Recipe`.
        team: whose delegator's features are clustered.
        num_classes: c.
        num_samples: size of the training set.
        groups: of the training images; None: none are known.

    Raises:
        ValueError: a delegator whose features cannot be read off.
    """

    def __init__(
        self, recipe: Recipe, team: Team, num_classes: int, num_samples: int, groups: Groups | None
    ):
        super().__init__()
        self.settings, k = recipe.portions, team.num_experts
        self.classes = PortionCounts(k, num_classes)
        self.groups = None if groups is None else PortionCounts(k, len(groups.names))
        self.clusters: ClusterPortions | None = None
        # Told by the data, not by the checkpoint: a plain attribute.
        self._group: Tensor | None = None if groups is None else groups.of_sample
        self._expert: Tensor | None = None
        if self.settings.follow == "clusters":
            delegator = team.delegator
            branch = delegator.branch if isinstance(delegator, Trunked) else delegator
            try:
                self._input = ClassifierInput(branch, num_classes + k)
            except ValueError as error:
                raise ValueError(f"delegator: {error}") from error
            self.clusters = ClusterPortions(k, self._input.num_features, num_samples)
        elif self.settings.follow == "known" and groups is not None:
            sizes = torch.bincount(groups.of_sample + 1, minlength=len(groups.names) + 1)[1:]
            experts = torch.cat([experts_of_groups(sizes, k), torch.tensor([-1])])
            self._expert = experts[groups.of_sample]  # -1 is the last

    def begin_epoch(self) -> None:
        """What portions follow is told by the epoch."""
        for counts in self._counts().values():
            counts.begin_epoch()

    def observe(self) -> None:
        """Remember the features of the batch that the delegator has just seen, while experts are alike."""
        if self.clusters is not None and self._input.features is not None:
            self.clusters.observe(self._input.features)

    def settle(self) -> None:
        """The experts begin to differ: what was observed becomes clusters."""
        if self.clusters is not None:
            self.clusters.settle()

    def known(self, index: Int[Tensor, " n"], progress: float) -> Int[Tensor, " n"] | None:
        """The known portion of each sample of the batch that the delegator has just seen, or -1.

        Args:
            index: which training sample each is.
            progress: part of the training done since the experts began to differ, in [0, 1].
        """
        if self.clusters is not None and self._input.features is not None:
            known = self.clusters(self._input.features, index)
        elif self._expert is not None:
            known = self._expert.to(index.device)[index]
        else:
            return None
        over = self.settings.evidence_over
        return (
            known if over is None else handed_to_evidence(known, index, min(1.0, progress / over))
        )

    def labels(self, like: Float[Tensor, "n k"]) -> Float[Tensor, "n k"] | None:
        """Selection labels in place of the evidence's: none at all before clusters are known."""
        if self.clusters is None or self.clusters.settled:
            return None
        return torch.zeros_like(like)

    def record(
        self,
        portion: Int[Tensor, " n"],
        target: Int[Tensor, " n"] | Float[Tensor, "n c"],
        index: Int[Tensor, " n"],
    ) -> None:
        """Count which class and group went into which expert's portion; of mixed images the largest part."""
        target = target.argmax(1) if target.is_floating_point() else target
        self.classes.observe(portion, target)
        if self.groups is not None and self._group is not None:
            self.groups.observe(portion, self._group.to(index.device)[index])

    def follow(self) -> dict[str, float]:
        """How far this epoch's portions follow the classes and the groups, each in [0, 1]."""
        return {name: counts.follow for name, counts in self._counts().items()}

    def _counts(self) -> dict[str, PortionCounts]:
        return {"class": self.classes} | ({} if self.groups is None else {"group": self.groups})
