"""Families of classes that the delegator confuses, one for each expert: labels it can foresee."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from coe_core.clusters import balanced_kmeans
from coe_core.distributed import gather_rows

_STARTS = 32  # of the clustering, from different classes


def confusion_families(confusion: Float[Tensor, "c c"], num_experts: int) -> Int[Tensor, " c"]:
    """Part the classes into equal families so that what is confused stays together. OURS.

    An expert that knows one family well helps where the delegator knows the family but not the
    class. Spectral clustering (the leading eigenvectors of the normalised, symmetric confusion), with
    k-means whose assignment is the balanced transportation problem (W1); of several starts the one
    that keeps most confusion within families. Deterministic.

    Args:
        confusion: how often, or with what probability, class a is taken for class b; any scale, at
            least 0. The diagonal does not count.
        num_experts: k families of c / k classes, rounded up or down.

    Returns:
        The family of each class, in [0, k); numbered in the order of their first classes.

    Raises:
        ValueError: fewer classes than experts, or a confusion that is negative or not finite.

    Example:
        >>> cat_dog_car_bus = torch.tensor([[9, 4, 0, 1], [3, 9, 1, 0], [0, 0, 9, 5], [1, 0, 4, 9.0]])
        >>> confusion_families(cat_dog_car_bus, num_experts=2).tolist()
        [0, 0, 1, 1]
    """
    c, k = len(confusion), num_experts
    if confusion.shape != (c, c):
        raise ValueError(f"confusion must be [c, c], got shape {tuple(confusion.shape)}")
    if not 1 <= k <= c:
        raise ValueError(
            f"{c} classes cannot be parted into {k} families of at least one: use at most {c} experts, "
            "or selection labels from the evidence, such as 'balanced'"
        )
    bad = int((~(confusion.isfinite() & (confusion >= 0))).sum())
    if bad:
        raise ValueError(f"confusion holds {bad} values of {c * c} that are negative or not finite")
    joint = confusion.detach().cpu().double()
    joint = joint + joint.T
    joint.fill_diagonal_(0)
    joint = joint + joint.mean().clamp(min=1e-12) / c  # no class is without neighbours
    degree = joint.sum(1).rsqrt()
    leading = torch.linalg.eigh(degree[:, None] * joint * degree).eigenvectors[:, -k:]
    points = nn.functional.normalize(leading, dim=1)
    generator = torch.Generator().manual_seed(0)
    partitions = []
    for _ in range(_STARTS):
        centres = points[torch.randperm(c, generator=generator)[:k]]
        family = balanced_kmeans(points, centres).cluster
        same = family[:, None] == family
        partitions.append((float((joint * same).sum()), family))
    return _in_order(max(partitions, key=lambda pair: pair[0])[1])


def _in_order(family: Tensor) -> Tensor:
    """The same families, numbered in the order of their first members."""
    first = {int(j): place for place, j in reversed(list(enumerate(family.tolist())))}
    rank = {j: number for number, j in enumerate(sorted(first, key=first.__getitem__))}
    return torch.tensor([rank[int(j)] for j in family])


class FamilyLabels(nn.Module):
    """Selection labels by the family of a sample's class, in place of the evidence's (L1). OURS.

    What one expert knows better than another about one sample is mostly chance, which no delegator
    foresees. Which family of classes a sample belongs to, it does foresee. While the experts are still
    alike, `observe` gathers how the delegator confuses the classes; `settle` then fixes the families;
    from there on the labels are known. All state is in buffers.

    Args:
        num_classes: c.
        num_experts: k, at most c.

    Raises:
        ValueError: more experts than classes.

    Example:
        >>> labels = FamilyLabels(num_classes=4, num_experts=2)
        >>> rough_logits = torch.tensor([[2.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 2, 1], [0, 0, 1, 2]])
        >>> labels.observe(rough_logits, torch.arange(4))
        >>> labels(torch.tensor([0])).tolist()  # not settled: no label
        [[0.0, 0.0]]
        >>> labels.settle()
        >>> labels(torch.tensor([0, 1, 3])).tolist()
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """

    confusion: Tensor  # [c, c], probability by true class
    family: Tensor  # of each class; -1 as long as it is not known

    def __init__(self, num_classes: int, num_experts: int):
        super().__init__()
        confusion_families(torch.ones(num_classes, num_classes), num_experts)  # checks the numbers
        self.num_experts = num_experts
        self.register_buffer("confusion", torch.zeros(num_classes, num_classes))
        self.register_buffer("family", torch.full((num_classes,), -1))

    @property
    def settled(self) -> bool:
        """Whether the families are known."""
        return bool((self.family >= 0).all())

    @torch.no_grad()
    def observe(
        self, rough_logits: Float[Tensor, "n c"], target: Int[Tensor, " n"] | Float[Tensor, "n c"]
    ) -> None:
        """Add the (global) batch to the confusion: the probabilities that each class's samples were given.

        Args:
            rough_logits: of the delegator.
            target: classes, or a distribution over the classes for each sample.
        """
        probability = rough_logits.float().softmax(1)
        added = self._distribution(target).T @ probability
        self.confusion += gather_rows(added[None]).rows.sum(0)

    def settle(self) -> None:
        """Fix the families by what was observed; once they are known, no effect."""
        if not self.settled:
            self.family.copy_(confusion_families(self.confusion, self.num_experts))

    def forward(self, target: Int[Tensor, " n"] | Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """Labels: rows sum to 1, or to 0 (no label) as long as the families are not known."""
        distribution = self._distribution(target)
        if not self.settled:
            return distribution.new_zeros(len(distribution), self.num_experts)
        members = nn.functional.one_hot(self.family, self.num_experts)
        return distribution @ members.to(distribution)

    def _distribution(self, target: Tensor) -> Tensor:
        if target.is_floating_point():
            return target.float()
        try:
            return nn.functional.one_hot(target, len(self.family)).float()
        except RuntimeError as error:
            c = len(self.family)
            raise ValueError(
                f"targets must be classes in [0, {c}), got {int(target.min())} to {int(target.max())}"
            ) from error
