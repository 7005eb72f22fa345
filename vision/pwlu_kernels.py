"""Compiled loops of the piecewise linear operator on a CPU, in the layouts that convolutions use."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _forward_rows(x, y, left, scale, base, rise):
    """x, y [outer, c, inner]: channels outside, positions inside (NCHW)."""
    outer, channels, inner = x.shape
    top = base.shape[1] - 1
    for o in range(outer):
        for c in range(channels):
            first, step, values, rises = left[c], scale[c], base[c], rise[c]
            row, out = x[o, c], y[o, c]
            for i in range(inner):
                t = (row[i] - first) * step
                p = int(min(max(t + 1, 0), top))
                out[i] = values[p] + (t - max(p - 1, 0)) * rises[p]


def _backward_rows(gradient, x, grad_x, left, scale, rise, sums):
    """Adds to sums [2, c, pieces]."""
    outer, channels, inner = x.shape
    top = rise.shape[1] - 1
    for o in range(outer):
        for c in range(channels):
            first, step, rises, kept, kept_t = left[c], scale[c], rise[c], sums[0, c], sums[1, c]
            row, grad, out = x[o, c], gradient[o, c], grad_x[o, c]
            for i in range(inner):
                t = (row[i] - first) * step
                p = int(min(max(t + 1, 0), top))
                out[i] = grad[i] * step * rises[p]
                kept[p] += grad[i]
                kept_t[p] += grad[i] * (t - max(p - 1, 0))


@cache
def _compiled() -> dict[str, Any]:
    """Importing numba takes a second, so that waits for the first use."""
    import numba

    kernels = {}
    for kernel in (_forward_rows, _backward_rows):
        try:
            kernels[kernel.__name__] = numba.njit(cache=True, nogil=True)(kernel)
        except RuntimeError:  # no folder to cache in can be written
            kernels[kernel.__name__] = numba.njit(nogil=True)(kernel)
    return kernels


def can_run(x: Tensor, parameter: Tensor) -> bool:
    """Whether the kernels take these."""
    return x.device.type == "cpu" and x.dtype == parameter.dtype


def _dense(x: Tensor, dim: int | None) -> tuple[Tensor, tuple[int, int, int]]:
    """The input, copied if its layout has gaps, and its shape in memory: (outer, channels, inner)."""
    if not x.is_contiguous():
        channels_inside = dim is not None and x.movedim(dim, -1).is_contiguous()
        if channels_inside:
            return x, (x.numel() // max(1, x.shape[dim]), x.shape[dim], 1)
        if dim is not None or torch.empty_like(x).stride() != x.stride():
            x = x.contiguous()
    if dim is None:
        return x, (1, 1, x.numel())
    dim %= x.ndim
    return x, (x.shape[:dim].numel(), x.shape[dim], x.shape[dim + 1 :].numel())


def _memory(x: Tensor, shape: tuple[int, int, int]) -> np.ndarray:
    """The numbers in the order in which they lie there."""
    return x.detach().as_strided((x.numel(),), (1,)).numpy().reshape(shape)


def _tables(*tables: Tensor) -> list[np.ndarray]:
    return [table.detach().contiguous().numpy() for table in tables]


def forward(
    x: Tensor, left: Tensor, scale: Tensor, base: Tensor, rise: Tensor, dim: int | None
) -> Tensor:
    """Values; see `vision.pwlu_operator.Pieces` for the tables."""
    x, shape = _dense(x, dim)
    y = torch.empty_like(x)
    kernel = _compiled()["_forward_rows"]
    kernel(_memory(x, shape), _memory(y, shape), *_tables(left, scale, base, rise))
    return y


def backward(
    gradient: Tensor, x: Tensor, left: Tensor, scale: Tensor, rise: Tensor, dim: int | None
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and sums [2, c, pieces] of gradient and of gradient * (t - origin)."""
    x, shape = _dense(x, dim)
    if gradient.stride() != x.stride():
        gradient = torch.empty_like(x).copy_(gradient)
    grad_x = torch.empty_like(x)
    sums = torch.zeros(2, *rise.shape, dtype=torch.float64)
    kernel = _compiled()["_backward_rows"]
    arrays = [_memory(t, shape) for t in (gradient, x, grad_x)]
    kernel(*arrays, *_tables(left, scale, rise), sums.numpy())
    return grad_x, sums
