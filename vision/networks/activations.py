"""Other activations in a network that is already built."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vision.networks.names import found_by
from vision.networks.pwlu.layer import PWLU

# Gates such as Sigmoid and Hardsigmoid stay: they are no activations of features.
REPLACED = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, PWLU),
)
_OF_TIMM = ("Swish", "Mish", "HardSwish", "HardMish", "GELU", "GELUTanh", "QuickGELU", "PReLU")
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "leaky_relu": nn.LeakyReLU,
}
NAMES = ("pwlu", "prelu", *PLAIN)
_TRIED_SIZES = (224, 64, 32, 299)


def replaced_kinds() -> tuple[type[nn.Module], ...]:
    """Classes of activations that are replaced; timm's only where a network can have them."""
    of_timm = sys.modules.get("timm.layers.activations")
    return (*REPLACED, *(getattr(of_timm, name) for name in _OF_TIMM if of_timm is not None))


class ByWidth(nn.ModuleDict):
    """An activation that the network calls at several widths: one function for each of them."""

    def __init__(self, build: Callable[[int], nn.Module], widths: list[int], dim: int):
        super().__init__({str(width): build(width) for width in widths})
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return self[str(x.shape[self.dim])](x)


def replace_activations(
    model: nn.Module,
    name: str = "pwlu",
    *,
    where: str = "",
    image: Tensor | None = None,
    **options: Any,
) -> int:
    """Replace a network's ReLU-like activations, in place; returns how many modules were replaced.

    Finds ReLU, SiLU, GELU, Hardswish and their relatives of torch and timm, also inside timm's fused
    normalisation layers; not gates, and not what a network calls as a function. How many channels an
    activation has is seen by running a copy of the network without numbers.

    Args:
        model: of timm, torchvision or one's own.
        name: pwlu, prelu, relu, relu6, silu, hardswish, gelu, mish or leaky_relu.
        where: regular expression; only modules whose dotted name it finds.
        image: [n, ch, h, w], of what the network takes; None tries usual sizes.
        options: of `PWLU` (``intervals``) or the torch module; ``per_channel=False`` takes one
            function for each layer.

    Raises:
        ValueError: unknown name, options it does not take, nothing to replace, or a network that
            takes none of the images tried.

    Example:
        >>> from vision.networks.own.small_resnet import SmallResNet
        >>> net = SmallResNet(10, width=4)
        >>> replace_activations(net, "pwlu", intervals=8)
        4
        >>> replace_activations(net, "relu", where="^blocks")
        3
    """
    if name not in NAMES:
        raise ValueError(f"unknown activation {name!r}: choose of {', '.join(NAMES)}")
    kinds = replaced_kinds()
    modules = dict(model.named_modules())
    paths = [path for path, module in modules.items() if isinstance(module, (*kinds, ByWidth))]
    replaced = {
        path: modules[path]
        for path in found_by(where, paths)
        if isinstance(modules[path], ByWidth) or not isinstance(_parent(model, path), ByWidth)
    }
    if not replaced:
        place = f" where {where!r} matches" if where else ""
        raise ValueError(
            f"{type(model).__name__} has no activation module{place} to replace by {name}; "
            "activations that are called as functions cannot be replaced"
        )
    per_channel = options.pop("per_channel", name in ("pwlu", "prelu"))
    builders: dict[str, Callable[[], nn.Module]]
    try:
        if not per_channel:
            builders = dict.fromkeys(replaced, partial(_build, name, None, 1, options))
        else:
            builders = {
                path: _per_channel(name, seen, options)
                for path, seen in _widths(model, list(replaced), image).items()
            }
        for path, build in builders.items():
            old = replaced[path]
            new = build().train(old.training)
            reference = next(model.parameters(), None)
            if reference is not None and reference.device.type != "meta":
                new = new.to(reference.device)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    except TypeError as error:
        raise ValueError(f"activation {name} with options {options}: {error}") from error
    return len(builders)


def _parent(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path.rpartition(".")[0])


def _build(name: str, width: int | None, dim: int, options: dict[str, Any]) -> nn.Module:
    if name == "pwlu":
        return PWLU(width, dim=dim, **options)
    if name == "prelu":
        return nn.PReLU(width or 1, **options)
    return PLAIN[name](**options)


def _per_channel(name: str, seen: list[tuple[int, int]], options: dict) -> Callable[[], nn.Module]:
    """Build an activation for the (width, dim) of every call."""
    dim = seen[0][1]
    if name == "prelu" and any(d != 1 for _, d in seen):
        raise ValueError("prelu takes channels at dim 1 only; use pwlu, or per_channel=False")
    widths = sorted({width for width, _ in seen})
    if len(widths) == 1:
        return partial(_build, name, widths[0], dim, options)
    return partial(ByWidth, lambda width: _build(name, width, dim, options), widths, dim)


def _widths(
    model: nn.Module, paths: list[str], image: Tensor | None
) -> dict[str, list[tuple[int, int]]]:
    """Width and dim of the channels at every call of the modules; those never called are left out."""
    copy = deepcopy(model).to("meta").eval()
    seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for path in paths:
        # Of features in a linear layer's order the channels come last.
        beside = [m for m in _parent(copy, path).children() if isinstance(m, nn.Linear)]

        def note(module, inputs, path=path, last=bool(beside)) -> None:
            dim = -1 if inputs[0].ndim == 3 or (last and inputs[0].ndim > 2) else 1
            seen[path].append((inputs[0].shape[dim], dim))

        copy.get_submodule(path).register_forward_pre_hook(note)
    error: Exception | None = None
    for shape in [tuple(image.shape)] if image is not None else _shapes(model):
        seen.clear()
        try:
            with torch.no_grad():
                copy(torch.zeros(shape, device="meta"))
        except Exception as failed:
            error = failed
        else:
            return {path: seen[path] for path in paths if path in seen}
    raise ValueError(
        f"{type(model).__name__} takes no image of the sizes tried ({error}); give one as image="
    ) from error


def _shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Images that the network may take."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = convolutions[0].in_channels if convolutions else 3
    config = getattr(model, "pretrained_cfg", None) or {}
    configured = [config["input_size"][1]] if config.get("input_size") else []
    return [(1, channels, size, size) for size in (*configured, *_TRIED_SIZES)]
