"""The global batch under data-parallel training: join the rows of every rank, take one's own back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class GlobalRows(NamedTuple):
    """Rows of all ranks in rank order, and which of them are this rank's own."""

    rows: Tensor
    own: slice


def in_process_group() -> bool:
    """Whether more than one process trains together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> GlobalRows:
    """Join the leading axis of ``rows`` over all ranks; without a process group, the rows themselves.

    Ranks may hold different numbers of rows. The result is detached: portions and labels are
    constants of the step (they carry no gradient).

    Args:
        rows: anything of shape [n, ...]; trailing axes and dtype equal on all ranks.

    Returns:
        GlobalRows: ``rows`` [sum of n, ...] and the slice ``own`` such that ``rows[own]`` is the
        input.

    Example:
        >>> gather_rows(torch.arange(3)).own
        slice(0, 3, None)
    """
    rows = rows.detach()
    if not in_process_group():
        return GlobalRows(rows, slice(0, len(rows)))
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    counts = torch.cat(sizes).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    start = sum(counts[: dist.get_rank()])
    joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return GlobalRows(joined, slice(start, start + len(rows)))
