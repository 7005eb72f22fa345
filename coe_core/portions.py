"""What portions follow, and which experts known groups belong to."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int, Real
from torch import Tensor, nn

from coe_core._checks import whole
from coe_core.distributed import gather_rows

# Evenly spread over the samples, and in another order than `spread_out`.
_STEP, _START = math.sqrt(2) - 1, 0.5


def handed_to_evidence(
    known: Int[Tensor, " n"], index: Int[Tensor, " n"], part: float
) -> Int[Tensor, " n"]:
    """Known portions of which a part is known no more: -1, whose portion then goes by the evidence. OURS.

    Which samples those are goes by their index: who is released stays so while the part grows.

    Args:
        known: the expert of each sample, or -1.
        index: which training sample each row is.
        part: of the training samples, in [0, 1], that are handed to the evidence.

    Raises:
        ValueError: a part outside [0, 1].

    Example:
        >>> handed_to_evidence(torch.tensor([1, 1, 1, 1]), torch.arange(4), part=0.5).tolist()
        [1, 1, -1, 1]
    """
    if not 0 <= part <= 1:
        raise ValueError(f"part must be in [0, 1], got {part}")
    return known.masked_fill((index.double() * _STEP + _START) % 1 < part, -1)


def shared_information(counts: Real[Tensor, "a b"]) -> float:
    """How much two divisions of the same samples tell of each other: normalised mutual information. OURS.

    I(A; B) / min(H(A), H(B)), in [0, 1]: 0 where they are independent, 1 where the one with the smaller
    entropy follows from the other. 0 where one of them does not divide at all.

    Args:
        counts: how many samples are in part a of the one and part b of the other; at least 0.

    Raises:
        ValueError: a count that is negative or not finite.

    Example:
        >>> shared_information(torch.tensor([[5, 0, 3], [0, 4, 0]]))  # the columns tell the row
        1.0
        >>> shared_information(torch.tensor([[2, 4], [3, 6]]))
        0.0
    """
    joint = counts.detach().cpu().double()
    bad = int((~(joint.isfinite() & (joint >= 0))).sum())
    if bad:
        raise ValueError(
            f"counts hold {bad} values of {joint.numel()} that are negative or not finite"
        )
    if not bool(joint.sum() > 0):
        return 0.0
    joint = joint / joint.sum()
    rows, columns = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    least = min(rows, columns)
    if least <= 1e-12:
        return 0.0
    return min(1.0, max(0.0, rows + columns - _entropy(joint.flatten())) / least)


def _entropy(probability: Tensor) -> float:
    return float(torch.special.entr(probability).sum())


def experts_of_groups(sizes: Int[Tensor, " g"], num_experts: int) -> Int[Tensor, " g"]:
    """The expert of each group that the user knows, so that experts have equally much to do. OURS.

    As many groups as experts: one each, in their order. More: the largest first, each to the expert that
    has the fewest samples so far.

    Args:
        sizes: samples in each group.
        num_experts: k, at most g.

    Raises:
        ValueError: fewer groups than experts.

    Example:
        >>> experts_of_groups(torch.tensor([5, 9, 4, 1]), num_experts=2).tolist()
        [1, 0, 1, 0]
    """
    k, g = whole("num_experts", num_experts, least=1), len(sizes)
    if g < k:
        raise ValueError(
            f"{g} known groups for {k} experts: some would have no portion; use at most {g} experts, or "
            "finer groups"
        )
    if g == k:
        return torch.arange(k)
    experts, load = torch.zeros(g, dtype=torch.long), [0] * k
    for group in torch.argsort(sizes, descending=True, stable=True).tolist():
        expert = min(range(k), key=load.__getitem__)
        experts[group], load[expert] = expert, load[expert] + int(sizes[group])
    return experts


class PortionCounts(nn.Module):
    """How many samples of each part (class, language ...) went into each expert's portion. OURS.

    Args:
        num_experts: k.
        num_parts: of the division that portions are compared with.

    Example:
        >>> counts = PortionCounts(num_experts=2, num_parts=3)
        >>> counts.observe(torch.tensor([0, 1, 1]), torch.tensor([0, 2, -1]))  # -1: of no part
        >>> counts.follow
        1.0
    """

    counts: Tensor  # [k, parts]

    def __init__(self, num_experts: int, num_parts: int):
        super().__init__()
        k = whole("num_experts", num_experts, least=1)
        parts = whole("num_parts", num_parts, least=1)
        self.register_buffer("counts", torch.zeros(k, parts, dtype=torch.long))

    def begin_epoch(self) -> None:
        """Count from nothing."""
        self.counts.zero_()

    @torch.no_grad()
    def observe(self, portion: Int[Tensor, " n"], part: Int[Tensor, " n"]) -> None:
        """Count the (global) batch; samples of part -1 are left out."""
        rows = gather_rows(torch.stack([portion.to(part), part], 1)).rows
        portion, part = rows[rows[:, 1] >= 0].unbind(1)
        places = portion * self.counts.shape[1] + part
        added = torch.bincount(places, minlength=self.counts.numel())
        self.counts += added.reshape(self.counts.shape).to(self.counts)

    @property
    def follow(self) -> float:
        """How far the portions follow the parts, see `shared_information`."""
        return shared_information(self.counts)
