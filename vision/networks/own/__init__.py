"""Architectures that neither timm nor torchvision has, by name; each is imported when it is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

_HERE = "vision.networks.own"
OWN = {
    "small_resnet": ("small_resnet", "SmallResNet"),
    "cifar_resnet": ("cifar", "CifarResNet"),
    "cifar_densenet": ("cifar", "cifar_densenet"),
    "shake_shake": ("shaken", "ShakeShake"),
    "pyramidnet": ("shaken", "PyramidNet"),
    "scaled_efficientnet": ("scaled", "scaled_efficientnet"),
    "deep_stem_resnext": ("scaled", "deep_stem_resnext"),
    "ofa_mobilenetv3": ("ofa", "ofa_mobilenetv3"),
}


def own_constructor(name: str) -> Callable[..., nn.Module]:
    """Class or function that builds one of `OWN`.

    Example:
        >>> own_constructor("small_resnet").__name__
        'SmallResNet'
    """
    module, attribute = OWN[name]
    return getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
