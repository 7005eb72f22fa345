"""The piecewise linear operator on a CPU: which compiled loop takes which layout, over how many threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_LEAST_PER_THREAD = 65536  # numbers


def can_run(x: Tensor, parameter: Tensor) -> bool:
    """Whether the loops take these."""
    known = x.dtype == parameter.dtype or (
        x.dtype == torch.bfloat16 and parameter.dtype == torch.float32
    )
    return x.device.type == "cpu" and parameter.device.type == "cpu" and known


class _Plan(NamedTuple):
    kind: str  # of loop: rows, columns or plain
    rows: int
    inner: int
    stride: int
    repeat: int  # of the tables: columns run over several positions at once


def _plan(x: Tensor, left: Tensor, pieces: int, dim: int | None) -> tuple[Tensor, _Plan]:
    """The input, copied if its layout has gaps, and how to run over it."""
    from vision.networks.pwlu.simd import LANES, PIECES  # a second, at the first use

    if dim is None:
        if torch.empty_like(x).stride() != x.stride():
            x = x.contiguous()
        # One channel: rows only share out the work.
        channels, inner = 1, max(1, x.numel() // max((1, *x.shape[:1])))
    else:
        channels = x.shape[dim]
        if x.movedim(dim, -1).is_contiguous() and not x.is_contiguous():
            inner = 1
        else:
            x = x.contiguous()
            inner = x.shape[dim % x.ndim + 1 :].numel()
    rows = x.numel() // max(1, inner)
    if not LANES or pieces > PIECES or left.dtype != torch.float32:
        return x, _Plan("plain", rows, inner, pieces, 1)
    if inner >= LANES:
        return x, _Plan("rows", rows, inner, PIECES, 1)
    if inner > 1:
        return x, _Plan("plain", rows, inner, PIECES, 1)
    repeat = LANES // math.gcd(channels, LANES)
    return x, _Plan("columns", rows // (channels * repeat), 1, PIECES, repeat)


def _tables(plan: _Plan, left: Tensor, scale: Tensor, *tables: Tensor) -> list[np.ndarray]:
    """Flat, padded to the stride, repeated."""
    padded = [torch.nn.functional.pad(table, (0, plan.stride - table.shape[1])) for table in tables]
    repeated = [table.repeat(plan.repeat, 1).flatten() for table in padded]
    return [
        table.numpy() for table in (left.repeat(plan.repeat), scale.repeat(plan.repeat), *repeated)
    ]


def _memory(x: Tensor) -> np.ndarray:
    """The numbers in the order in which they lie there; of bfloat16 the bits."""
    flat = x.as_strided((x.numel(),), (1,))
    return flat.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else flat.numpy()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "pwlu")


def _spread(run: Callable[[int, int], Any], rows: int, numbers: int) -> list[Any]:
    """Over as many threads as torch uses, each with some of the rows."""
    threads = min(torch.get_num_threads(), rows, max(1, numbers // _LEAST_PER_THREAD))
    if threads <= 1:
        return [run(0, rows)]
    ends = [rows * i // threads for i in range(threads + 1)]
    return list(_pool(torch.get_num_threads()).map(run, ends[:-1], ends[1:]))


def forward(
    x: Tensor, left: Tensor, scale: Tensor, base: Tensor, rise: Tensor, dim: int | None
) -> Tensor:
    """Values; see `vision.networks.pwlu.operator.Pieces` for the tables."""
    from vision.networks.pwlu import simd as pwlu_vector

    x, plan = _plan(x, left, rise.shape[1], dim)
    y = torch.empty_like(x)
    arrays = [_memory(x), _memory(y), *_tables(plan, left, scale, base, rise)]
    loop, top = (
        getattr(pwlu_vector, f"forward_{plan.kind}"),
        arrays[2].dtype.type(rise.shape[1] - 1),
    )

    def run(first: int, last: int) -> None:
        loop(*arrays, plan.inner, plan.stride, top, first, last)

    _spread(run, plan.rows, x.numel())
    if plan.kind == "columns":
        rest = plan.rows * len(arrays[2]), x.numel()
        pwlu_vector.forward_plain(*arrays, 1, plan.stride, top, *rest)
    return y


def backward(
    gradient: Tensor, x: Tensor, left: Tensor, scale: Tensor, rise: Tensor, dim: int | None
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and sums [2, c, pieces] of gradient and of gradient * (t - origin)."""
    from vision.networks.pwlu import simd as pwlu_vector

    x, plan = _plan(x, left, rise.shape[1], dim)
    if gradient.stride() != x.stride() or gradient.dtype != x.dtype:
        gradient = torch.empty_like(x).copy_(gradient)
    grad_x = torch.empty_like(x)
    arrays = [_memory(t) for t in (gradient, x, grad_x)]
    arrays += _tables(plan, left, scale, rise)
    loop, top = (
        getattr(pwlu_vector, f"backward_{plan.kind}"),
        arrays[3].dtype.type(rise.shape[1] - 1),
    )

    def run(first: int, last: int, loop=loop) -> np.ndarray:
        sums = np.zeros((len(arrays[5]), 2))
        loop(*arrays, sums, plan.inner, plan.stride, top, first, last)
        return sums

    parts = _spread(run, plan.rows, x.numel())
    if plan.kind == "columns":
        rest = plan.rows * len(arrays[3]), x.numel()
        parts.append(run(*rest, pwlu_vector.backward_plain))
    sums = torch.from_numpy(sum(parts))
    sums = sums.view(plan.repeat, *left.shape, plan.stride, 2).sum(0)[:, : rise.shape[1]]
    return grad_x, sums.permute(2, 0, 1).contiguous()
