"""How the learning rate goes over the steps of a training."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from vision.recipe import Train


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, train: Train, num_steps: int
) -> LRScheduler:
    """Rise from ``start_lr`` to ``lr``, then a cosine to ``final_lr``, or steps by ``decay``.

    Args:
        optimizer: whose learning rate is set at every step.
        train: the recipe's section.
        num_steps: of the whole training.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> train = Train(epochs=4, lr=1.0, warmup=0.0, decay=0.5, decay_epochs=2)
        >>> learning_rate_schedule(optimizer, train, 4).lr_lambdas[0](3)
        0.5
    """
    start = train.lr / 25 if train.start_lr is None else train.start_lr
    # Both rises are divided by their steps less one: below two steps there is none.
    rises = train.warmup * num_steps >= 2
    if train.decay is None:
        final = start / 1e4 if train.final_lr is None else train.final_lr
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],  # layers may have their own
            total_steps=num_steps,
            pct_start=train.warmup if rises else 1e-9,
            cycle_momentum=False,
            div_factor=train.lr / start,
            final_div_factor=start / final,
        )
    decay, warmup = train.decay, train.warmup * num_steps if rises else 0.0

    def factor(step: int) -> float:
        if step < warmup - 1:
            return (start + (train.lr - start) * step / (warmup - 1)) / train.lr
        epoch = step * train.epochs / num_steps
        return decay ** math.floor(epoch / train.decay_epochs)

    return LambdaLR(optimizer, factor)
