"""Which expert each sample goes to, and the bookkeeping to run each expert once on its group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Groups(NamedTuple):
    """Rows of a batch by destination; every row is in exactly one place."""

    exits: Int[Tensor, "e"]  # rows that end with the rough prediction
    by_expert: dict[int, Tensor]  # expert -> its rows, in batch order; experts without rows left out


def select_expert(selection_logits: Float[Tensor, "n k"]) -> Int[Tensor, "n"]:
    """Selected expert: plain argmax, no balancing (method section 4). Ties go to the lowest number.

    Raises:
        ValueError: a row without a single number that is comparable (NaN).

    Example:
        >>> select_expert(torch.tensor([[0.1, 0.7], [0.9, 0.7]])).tolist()
        [1, 0]
    """
    if bool(selection_logits.isnan().any()):
        raise ValueError(
            f"selection_logits hold NaN in {int(selection_logits.isnan().any(1).sum())} of "
            f"{len(selection_logits)} samples; the delegator has diverged or the input is not finite"
        )
    return selection_logits.argmax(1)


def group_rows(
    exits: Bool[Tensor, "n"], selected_expert: Int[Tensor, "n"], num_experts: int
) -> Groups:
    """Group the rows of a batch by where they go; one transfer to the host, however many experts.

    Args:
        exits: rows that end early.
        selected_expert: expert of every row (of rows that exit it is not used).
        num_experts: k.

    Raises:
        ValueError: a selected expert outside [0, k).

    Example:
        >>> groups = group_rows(
        ...     torch.tensor([True, False, False]), torch.tensor([0, 1, 1]), num_experts=2
        ... )
        >>> groups.exits.tolist(), {j: rows.tolist() for j, rows in groups.by_expert.items()}
        ([0], {1: [1, 2]})
    """
    destination = torch.where(exits, -1, selected_expert)
    order = torch.argsort(destination, stable=True)
    sizes = torch.bincount(destination.clamp(-1, num_experts) + 1, minlength=num_experts + 2)
    sizes = sizes.tolist()
    if sizes[-1] or (len(destination) and int(destination.min()) < -1):
        raise ValueError(
            f"selected_expert must be in [0, {num_experts}), got values from "
            f"{int(selected_expert.min())} to {int(selected_expert.max())}"
        )
    parts = order.split(sizes[:-1])
    return Groups(parts[0], {j: rows for j, rows in enumerate(parts[1:]) if len(rows)})
