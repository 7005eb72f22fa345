"""The operator under PWLU: forward and backward in one pass each, with no temporary per interval."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vision.networks.pwlu import cpu_loops as pwlu_kernels


class Pieces(NamedTuple):
    """Piece p of N + 2: value base + (t - origin) * rise, with t = (x - left) / width of an interval.

    Piece 0 lies left of the bounds, piece N + 1 right of them.
    """

    scale: Float[Tensor, " c"]  # 1 / width
    base: Float[Tensor, "c pieces"]
    rise: Float[Tensor, "c pieces"]
    origin: Float[Tensor, " pieces"]


def pieces(left: Tensor, right: Tensor, knots: Tensor, slope0: Tensor, slope1: Tensor) -> Pieces:
    """The lines of which the function consists."""
    intervals = knots.shape[1] - 1
    width = (right - left) / intervals
    outer = [(slope * width)[:, None] for slope in (slope0, slope1)]
    rise = torch.cat([outer[0], knots.diff(dim=1), outer[1]], 1)
    origin = torch.arange(-1, intervals + 1, device=left.device).clamp(min=0).to(left.dtype)
    return Pieces(1 / width, torch.cat([knots[:, :1], knots], 1), rise, origin)


def plain_piecewise_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    knots: Tensor,
    slope0: Tensor,
    slope1: Tensor,
    dim: int | None,
) -> Tensor:
    """`piecewise_linear` in plain operators: for export, and for devices without a kernel."""
    parts = pieces(left, right, knots, slope0, slope1)
    shape = [1] * x.ndim
    if dim is not None:
        shape[dim] = -1
    t = (x.to(left.dtype) - left.view(shape)) * parts.scale.view(shape)
    piece, index = _piece(t, parts, shape)
    base, rise = parts.base.flatten()[index], parts.rise.flatten()[index]
    return (base + (t - piece.clamp(min=0)) * rise).to(x.dtype)


def _piece(t: Tensor, parts: Pieces, shape: list[int]) -> tuple[Tensor, Tensor]:
    """Interval from -1 (left of the bounds) to N (right of them), and its place in the flat tables."""
    channels, count = parts.base.shape
    piece = t.detach().floor().nan_to_num(0.0).clamp(-1, count - 2)
    first = torch.arange(channels, device=t.device).view(shape) * count
    return piece, piece.long() + 1 + first


@torch.library.custom_op("coe_vision::piecewise_linear", mutates_args=())
def _forward(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    knots: Tensor,
    slope0: Tensor,
    slope1: Tensor,
    dim: int | None,
) -> Tensor:
    if not pwlu_kernels.can_run(x, left):
        return torch.empty_like(x).copy_(
            plain_piecewise_linear(x, left, right, knots, slope0, slope1, dim)
        )
    parts = pieces(left, right, knots, slope0, slope1)
    return pwlu_kernels.forward(x, left, parts.scale, parts.base, parts.rise, dim)


@_forward.register_fake
def _(x, left, right, knots, slope0, slope1, dim):
    return torch.empty_like(x)


@torch.library.custom_op("coe_vision::piecewise_linear_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    knots: Tensor,
    slope0: Tensor,
    slope1: Tensor,
    dim: int | None,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and per channel and piece the sums of gradient and of gradient * (t - origin)."""
    parts = pieces(left, right, knots, slope0, slope1)
    if pwlu_kernels.can_run(x, left):
        grad_x, sums = pwlu_kernels.backward(gradient, x, left, parts.scale, parts.rise, dim)
        return grad_x, sums.to(left.dtype)
    shape = [1] * x.ndim
    if dim is not None:
        shape[dim] = -1
    t = (x.to(left.dtype) - left.view(shape)) * parts.scale.view(shape)
    piece, index = _piece(t, parts, shape)
    gradient = gradient.to(left.dtype)
    grad_x = gradient * parts.rise.flatten()[index] * parts.scale.view(shape)
    sums = torch.zeros(2, parts.rise.numel(), dtype=left.dtype, device=left.device)
    sums[0].index_add_(0, index.flatten(), gradient.flatten())
    sums[1].index_add_(0, index.flatten(), (gradient * (t - piece.clamp(min=0))).flatten())
    return torch.empty_like(x).copy_(grad_x), sums.view(2, *parts.rise.shape)


@_backward.register_fake
def _(gradient, x, left, right, knots, slope0, slope1, dim):
    return torch.empty_like(x), left.new_empty(2, knots.shape[0], knots.shape[1] + 1)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, gradient: Tensor):
    x, left, right, knots, slope0, slope1 = ctx.saved_tensors
    grad_x, sums = _backward(gradient, x, left, right, knots, slope0, slope1, ctx.dim)
    grad, grad_t = sums[0], sums[1]  # [c, pieces] of gradient, and of gradient * (t - origin)
    parts = pieces(left, right, knots, slope0, slope1)
    intervals = knots.shape[1] - 1
    # Inside, a piece's value is a mean of its two knots.
    grad_knots = torch.zeros_like(knots)
    grad_knots[:, :-1] += grad[:, 1:-1] - grad_t[:, 1:-1]
    grad_knots[:, 1:] += grad_t[:, 1:-1]
    grad_knots[:, 0] += grad[:, 0]
    grad_knots[:, -1] += grad[:, -1]
    grad_slope0, grad_slope1 = grad_t[:, 0] / parts.scale, grad_t[:, -1] / parts.scale
    # Inside, t = N (x - left) / (right - left); outside a bound shifts its line.
    rise = parts.rise[:, 1:-1] * parts.scale[:, None]
    whole = (rise * grad[:, 1:-1]).sum(1)
    part = (rise * (grad_t[:, 1:-1] + parts.origin[1:-1] * grad[:, 1:-1])).sum(1) / intervals
    grad_left = part - whole - slope0 * grad[:, 0]
    grad_right = -part - slope1 * grad[:, -1]
    return grad_x, grad_left, grad_right, grad_knots, grad_slope0, grad_slope1, None


_forward.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula([torch.ops.coe_vision.piecewise_linear])
def _no_macs(*shapes, **named) -> int:
    """Element-wise work counts as none, like every other activation's."""
    return 0


def piecewise_linear(
    x: Float[Tensor, " *any"],
    left: Float[Tensor, " c"],
    right: Float[Tensor, " c"],
    knots: Float[Tensor, "c n_plus_1"],
    slope0: Float[Tensor, " c"],
    slope1: Float[Tensor, " c"],
    dim: int | None = 1,
) -> Float[Tensor, " *any"]:
    """Piecewise linear function of every element, per channel. PAPER (method, section 8).

    On a CPU a compiled kernel, else a gather; gradients for everything. Memory beyond input and
    output does not grow with the number of intervals.

    Args:
        x: any shape with the channels at ``dim``; float32, float64, or bfloat16 with float32 parameters.
        left: B_L.
        right: B_R, above left.
        knots: values at left, ..., right in equal steps.
        slope0: K_L, left of left.
        slope1: K_R, from right on.
        dim: of the channels; None: one function, so c is 1.

    Example:
        >>> half = torch.tensor([0.5])
        >>> piecewise_linear(torch.tensor([-3.0, 0.5, 2.0]), -half, half, torch.tensor([[1.0, 3.0]]),
        ...                  half, half, None).tolist()
        [-0.25, 3.0, 3.75]
    """
    return _forward(x, left, right, knots, slope0, slope1, dim)
