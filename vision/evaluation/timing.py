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
) -> dict[str, float]:
    """Median over rounds of the time per image, in milliseconds; each round runs every predictor.

    Args:
        predictors: name -> function of a batch of prepared images.
        images: prepared images [n, ...]; used in batches of ``batch_size``, a rest is left out.
        batch_size: at most n.
        rounds: after one uncounted round.

    Raises:
        ValueError: fewer images than one batch.
    """
    batches = [
        images[i : i + batch_size] for i in range(0, len(images) - batch_size + 1, batch_size)
    ]
    if not batches:
        raise ValueError(f"batch_size {batch_size} is above the {len(images)} images given")
    # A slice of a channels_last tensor keeps its layout only if it is made contiguous once, here.
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for counted in [False, *[True] * rounds]:
        for name, predict in predictors.items():
            _wait(images)
            start = time.perf_counter()
            for batch in batches:
                predict(batch)
            _wait(images)
            if counted:
                times[name].append((time.perf_counter() - start) / (len(batches) * batch_size))
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
