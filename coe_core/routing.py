"""Which expert each sample goes to, and the bookkeeping to run each expert once on its group."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coe_core._checks import whole

EXITS = -(2**62)  # the place of a row that ends with its rough prediction
UNDECIDED = EXITS - 1  # of a row whose selection logits hold NaN


class Groups(NamedTuple):
    """Rows of a batch by destination; every row is in exactly one place."""

    exits: Int[Tensor, " e"]  # rows that end with the rough prediction
    by_expert: dict[int, Tensor]  # expert -> its rows, in batch order; idle experts left out


def select_expert(selection_logits: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """Selected expert: plain argmax, no balancing (method section 4). Ties go to the lowest number.

    Raises:
        ValueError: no experts, or a row that holds NaN.

    Example:
        >>> select_expert(torch.tensor([[0.1, 0.7], [0.9, 0.7]])).tolist()
        [1, 0]
    """
    if selection_logits.shape[1] == 0:
        raise ValueError("there are no experts to select from")
    undecided = selection_logits.isnan().any(1)
    if bool(undecided.any()):
        raise diverged(int(undecided.sum()), len(selection_logits))
    return selection_logits.argmax(1)


def diverged(count: int, n: int) -> ValueError:
    """The error of ``count`` samples whose selection logits hold NaN."""
    return ValueError(
        f"selection_logits hold NaN in {count} of {n} samples; the delegator has diverged or the "
        "input is not finite"
    )


def group_rows(
    exits: Bool[Tensor, " n"], selected_expert: Int[Tensor, " n"], num_experts: int
) -> Groups:
    """Group the rows of a batch by where they go; one transfer to the host, however many experts.

    Args:
        exits: rows that end early.
        selected_expert: expert of every row (of rows that exit it is not used).
        num_experts: k.

    Raises:
        ValueError: a row that does not exit selects an expert outside [0, k); no experts; not one exit and
            one expert for each row.

    Example:
        >>> groups = group_rows(
        ...     torch.tensor([True, False, False]), torch.tensor([0, 1, 1]), num_experts=2
        ... )
        >>> groups.exits.tolist(), {j: rows.tolist() for j, rows in groups.by_expert.items()}
        ([0], {1: [1, 2]})
    """
    num_experts = whole("num_experts", num_experts, least=1)
    if exits.shape != selected_expert.shape:
        raise ValueError(
            f"{len(exits)} exits for {len(selected_expert)} selected experts; one each is due"
        )
    if selected_expert.is_floating_point():
        raise ValueError(f"selected_expert must be whole numbers, got {selected_expert.dtype}")
    # Numbers far below 0 have meanings of their own in `group_places`.
    place = selected_expert.long().clamp(min=EXITS + 1).masked_fill(exits, EXITS)
    return group_places(place, num_experts)


def group_places(place: Int[Tensor, " n"], num_experts: int) -> Groups:
    """As `group_rows`, from one number per row: its expert, or `EXITS`, or `UNDECIDED`.

    The transfer of ``place`` to the host is the only point at which a batch waits for its device.
    Sorting a few hundred numbers is the host's work: there it takes microseconds.

    Raises:
        ValueError: a row that is `UNDECIDED`, or that goes to an expert outside [0, k).
    """
    host = place.cpu().numpy()
    if len(host) == 1 and 0 <= host[0] < num_experts:
        return Groups(place[:0], {int(host[0]): torch.zeros_like(place)})
    order = np.argsort(host, kind="stable")
    starts = np.searchsorted(host[order], [EXITS, EXITS + 1, *range(num_experts + 1)]).tolist()
    if starts[0]:
        raise diverged(starts[0], len(host))
    outside = starts[2] - starts[1] + len(host) - starts[-1]
    if outside:
        stays = host[order[starts[1] :]]
        raise ValueError(
            f"selected_expert must be in [0, {num_experts}), but {outside} of {len(stays)} are "
            f"not; they range from {stays[0]} to {stays[-1]}"
        )
    rows = torch.from_numpy(order)
    if place.is_cuda:
        rows = rows.pin_memory().to(place.device, non_blocking=True)
    bounds = enumerate(pairwise(starts[2:]))
    experts = {j: rows[start:end] for j, (start, end) in bounds if end > start}
    return Groups(rows[: starts[1]], experts)
