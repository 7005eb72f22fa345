"""Which expert each sample goes to, and the bookkeeping to run each expert once on its group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Groups(NamedTuple):
    """Rows of a batch by destination; every row is in exactly one place."""

    exits: Int[Tensor, " e"]  # rows that end with the rough prediction
    by_expert: dict[int, Tensor]  # expert -> its rows, in batch order; idle experts left out


def select_expert(selection_logits: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """Selected expert: plain argmax, no balancing (method section 4). Ties go to the lowest number.

    Raises:
        ValueError: a row that holds NaN.

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
    exits: Bool[Tensor, " n"], selected_expert: Int[Tensor, " n"], num_experts: int
) -> Groups:
    """Group the rows of a batch by where they go; one transfer to the host, however many experts.

    Args:
        exits: rows that end early.
        selected_expert: expert of every row (of rows that exit it is not used).
        num_experts: k.

    Raises:
        ValueError: a row that does not exit selects an expert outside [0, k).

    Example:
        >>> groups = group_rows(
        ...     torch.tensor([True, False, False]), torch.tensor([0, 1, 1]), num_experts=2
        ... )
        >>> groups.exits.tolist(), {j: rows.tolist() for j, rows in groups.by_expert.items()}
        ([0], {1: [1, 2]})
    """
    # Places in this order: exits, numbers below 0, experts 0..k-1, numbers from k on.
    place = torch.where(exits, 0, selected_expert.clamp(-1, num_experts) + 2)
    order = torch.argsort(place, stable=True)
    sizes = torch.bincount(place, minlength=num_experts + 3).tolist()
    if sizes[1] or sizes[-1]:
        stays = selected_expert[~exits]
        raise ValueError(
            f"selected_expert must be in [0, {num_experts}), but {sizes[1] + sizes[-1]} of "
            f"{len(stays)} are not; they range from {int(stays.min())} to {int(stays.max())}"
        )
    parts = order.split(sizes)
    experts = {j: rows for j, rows in enumerate(parts[2:-1]) if len(rows)}
    return Groups(parts[0], experts)
