"""The optimiser of a recipe: any of timm's by name; the two most common without importing timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vision.recipe import Train


def build_optimizer(
    train: Train,
    module: nn.Module,
    parts: list[tuple[nn.Module, float]] | None = None,
    depth: Mapping[nn.Parameter, int] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser over networks, each with its weight decay; none on biases and normalisation.

    timm builds it, but for sgd and adamw, which are torch's own: importing timm takes longer than importing
    torch, and a training of this toolkit's own networks needs nothing else of it. Both give the same groups
    of parameters in the same order, so a run is resumed with either.

    Args:
        train: the recipe's section.
        module: whose parameters are trained.
        parts: networks of the module with a weight decay of their own, all that are trained; None: all
            have the recipe's.
        depth: of parameters that learn slower by ``layer_decay``, so many times.

    Raises:
        ValueError: an optimiser that neither knows.

    Example:
        >>> type(build_optimizer(Train(), nn.Linear(2, 1))).__name__
        'SGD'
    """
    decays = [(module, train.weight_decay)] if parts is None else parts
    groups = [group for network, decay in decays for group in _groups(network, decay)]
    if depth and train.layer_decay < 1:
        groups = _by_depth(groups, depth, train)
    if train.optimizer in ("sgd", "adamw"):
        if train.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=True)
        return torch.optim.AdamW(groups, lr=train.lr)
    import timm.optim

    trained: Any = groups if depth and train.layer_decay < 1 else module
    if trained is module and parts is not None:
        nested = [timm.optim.param_groups_weight_decay(part, decay) for part, decay in parts]
        trained = [group for groups in nested for group in groups if group["params"]]
    return timm.optim.create_optimizer_v2(
        trained,
        opt=train.optimizer,
        lr=train.lr,
        weight_decay=train.weight_decay,
        momentum=train.momentum,
    )


def _by_depth(
    groups: list[dict[str, Any]], depth: Mapping[nn.Parameter, int], train: Train
) -> list[dict[str, Any]]:
    """The groups parted by the learning rate of their parameters."""
    parted: list[dict[str, Any]] = []
    for group in groups:
        by_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(depth.get(parameter, 0), []).append(parameter)
        for steps, parameters in sorted(by_depth.items()):
            rate = train.lr * train.layer_decay**steps
            parted.append({**group, "params": parameters, "lr": rate})
    return parted


def _groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameters without weight decay (vectors and scalars), then those with it."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    flat = [p for name, p in trained if not decay or p.ndim <= 1 or name.endswith(".bias")]
    others = [p for name, p in trained if decay and p.ndim > 1 and not name.endswith(".bias")]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": others, "weight_decay": decay}]
    return [group for group in groups if group["params"]]
