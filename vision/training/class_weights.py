"""Weights of the classes in the loss: rare ones count more."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def class_weights(
    targets: Int[Tensor, " n"], num_classes: int, power: float
) -> Float[Tensor, " c"] | None:
    """Weights n^-power of classes of n samples, scaled to 1 on average over the samples.

    Args:
        targets: class of each training sample.
        num_classes: c.
        power: 0: all alike, for which there are no weights; 1: every class counts as much as any other.

    Example:
        >>> class_weights(torch.tensor([0, 0, 0, 1]), 2, 1.0)
        tensor([0.6667, 2.0000])
        >>> class_weights(torch.tensor([0, 1]), 2, 0.0) is None
        True
    """
    if not power:
        return None
    counts = torch.bincount(targets, minlength=num_classes).double()
    weights = counts.clamp(min=1) ** -power
    return (weights * counts.sum() / (weights * counts).sum()).float()
