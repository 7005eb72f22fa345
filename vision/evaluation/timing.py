"""Measured time per image of several predictors, in turns, so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor


@torch.inference_mode()
def milliseconds_per_image(
    predictors: Mapping[str, Callable[[Tensor], object]],
    images: Tensor,
    batch_size: int,
    rounds: int = 5,
    others: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Median over rounds of the time per image, in milliseconds; each round runs every predictor.

    Args:
        predictors: name -> function of a batch of prepared images.
        images: prepared images [n, ...]; used in batches of ``batch_size``, a rest is left out.
        batch_size: at most n.
        rounds: after one uncounted round.
        others: what a predictor of that name sees in place of the images, row by row as they.

    Raises:
        ValueError: fewer images than one batch.
    """
    if batch_size > len(images):
        raise ValueError(f"batch_size {batch_size} is above the {len(images)} images given")
    batches = {name: _batches(images, batch_size) for name in predictors}
    batches |= {name: _batches(seen, batch_size) for name, seen in (others or {}).items()}
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for counted in [False, *[True] * rounds]:
        for name, predict in predictors.items():
            _wait(images)
            start = time.perf_counter()
            for batch in batches[name]:
                predict(batch)
            _wait(images)
            if counted:
                times[name].append(
                    (time.perf_counter() - start) / (len(batches[name]) * batch_size)
                )
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _batches(images: Tensor, size: int) -> list[Tensor]:
    """Whole batches; a slice of channels_last keeps its layout only if it is made contiguous once."""
    layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
    starts = range(0, len(images) - size + 1, size)
    return [images[start : start + size].contiguous(memory_format=layout) for start in starts]


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
