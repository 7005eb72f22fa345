"""Shared start: experts that are one network for the first part of training, then copies that specialise."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from coe_core.errors import UnequalExpertsError


def _some(experts: Iterable[nn.Module]) -> list[nn.Module]:
    """The experts, one at least."""
    networks = list(experts)
    if not networks:
        raise ValueError("a shared start needs experts, but there are none")
    return networks


@torch.no_grad()
def start_as_one(experts: Iterable[nn.Module]) -> None:
    """Make every expert what the first is. OURS.

    Call it before the optimiser is built, so that copies of parameters an optimiser keeps (fp16 with
    master weights) are equal too.

    Raises:
        ValueError: networks of different shapes.

    Example:
        >>> experts = [nn.Linear(2, 1), nn.Linear(2, 1)]
        >>> start_as_one(experts)
        >>> are_one(experts)
        True
    """
    first, *others = _some(experts)
    state = first.state_dict()
    for j, expert in enumerate(others, start=1):
        try:
            expert.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"a shared start needs equal experts, but expert {j} is not built as expert 0: {error}"
            ) from error


@torch.no_grad()
def are_one(experts: Iterable[nn.Module]) -> bool:
    """Whether all experts' parameters and buffers are equal, bit by bit.

    Example:
        >>> are_one([nn.Linear(2, 1), nn.Linear(2, 1)])
        False
    """
    first, *others = (expert.state_dict() for expert in _some(experts))
    return all(
        other.keys() == first.keys() and all(torch.equal(first[key], other[key]) for key in first)
        for other in others
    )


@torch.no_grad()
def share_gradient(experts: Iterable[nn.Module]) -> None:
    """Give every expert the first one's gradient and buffers, between backward and the optimiser's step.

    OURS. Only the first expert runs in this phase; whatever the optimiser does with equal parameters
    and equal gradients it does to all alike, so they stay one network, momentum included, and nothing
    is left to do when they part. A training that is resumed in the phase needs no care for the same reason.

    Example:
        >>> experts = [nn.Linear(2, 1), nn.Linear(2, 1)]
        >>> experts[0](torch.ones(1, 2)).sum().backward()
        >>> share_gradient(experts)
        >>> experts[1].weight.grad
        tensor([[1., 1.]])
    """
    first, *others = _some(experts)
    for expert in others:
        for source, copy in zip(first.parameters(), expert.parameters(), strict=True):
            if source.grad is None:
                copy.grad = None
            elif copy.grad is None:
                copy.grad = source.grad.clone()
            else:  # in place: data-parallel wrappers keep the gradients in storage of theirs
                copy.grad.copy_(source.grad)
        for buffer, kept in zip(first.buffers(), expert.buffers(), strict=True):
            kept.copy_(buffer)


def check_one(experts: Iterable[nn.Module]) -> None:
    """Make sure that experts which are to share a gradient are one network.

    Raises:
        UnequalExpertsError: they are not, so the first one's gradient is no other's.

    Example:
        >>> check_one([nn.Linear(2, 1), nn.Linear(2, 1)])
        Traceback (most recent call last):
        coe_core.errors.UnequalExpertsError: the shared start trains 2 experts as one network, but ...
    """
    experts = list(experts)
    if not are_one(experts):
        raise UnequalExpertsError(
            f"the shared start trains {len(experts)} experts as one network, but they are not equal, as "
            "when a trained team is the starting point; turn the shared start off (0) to train them on"
        )
