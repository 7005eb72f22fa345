"""What the delegator computed, handed on to the experts: a gradient that counts as much as is meant."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(features: Float[Tensor, "n ..."], factor: float) -> Float[Tensor, "n ..."]:
    """The same numbers, whose gradient is multiplied by ``factor`` on the way back. OURS.

    For what a delegator hands to k experts: with 1/k they weigh together in the layers they share with
    it as much as one network does.

    Args:
        features: handed on, one row a sample.
        factor: at least 0; 0 lets no gradient through, 1 all of it.

    Raises:
        ValueError: a factor below 0 or not finite.

    Example:
        >>> handed = torch.ones(2, requires_grad=True)
        >>> scale_gradient(handed, 0.25).sum().backward()
        >>> handed.grad
        tensor([0.2500, 0.2500])
    """
    if not 0 <= factor < float("inf"):
        raise ValueError(f"factor must be finite and at least 0, got {factor}")
    if factor == 1:
        return features
    scaled: Tensor = _ScaleGradient.apply(features, factor)
    return scaled
