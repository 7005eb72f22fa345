"""Parameters and multiply-adds of a named network, and what its constructor was given: nothing is run."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn

from coe_core import count_macs
from vision.networks.network import Network, build_network
from vision.networks.own import OWN, own_constructor


class Size(NamedTuple):
    """Of one network or of several together."""

    parameters: int
    macs: int  # multiply-adds of one image

    def times(self, count: int) -> Size:
        """Of ``count`` such networks."""
        return Size(self.parameters * count, self.macs * count)


def build_meta(network: Network, num_classes: int, channels: int = 3) -> nn.Module:
    """The network without its numbers, on the meta device.

    Raises:
        ValueError: as `build_network`.
    """
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # on empty layers; `network_size` refuses them
            return build_network(network, num_classes, channels)
    except Exception:  # some constructors compute with tensors; what is really wrong fails again
        pass
    try:
        return build_network(network, num_classes, channels).to("meta")
    except (KeyError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(
            f"network {network.name!r} with options {network.options}: {error!r}"
        ) from error


def network_size(
    network: Network, num_classes: int, image_size: int, channels: int = 3, macs: bool = True
) -> Size:
    """Size of a network by name; on the meta device, so that large ones cost little.

    Args:
        network: name and options.
        num_classes: outputs.
        image_size: side of the images.
        channels: of the images.
        macs: count them; else they are given as 0.

    Raises:
        ValueError: as `build_network`, images that the network does not take, or empty layers.
        UncountedOperatorError: the multiply-adds of an operator are not known.

    Example:
        >>> network_size(Network("cifar_resnet", options={"depth": 110}), 10, 32)
        Size(parameters=1147738, macs=167430656)
    """
    module = build_meta(network, num_classes, channels)
    if any(p.numel() == 0 for p in module.parameters()):
        raise ValueError(
            f"{network.name} with options {network.options} has layers of 0 channels; widen it"
        )
    parameters = sum(p.numel() for p in module.parameters())
    if not macs:
        return Size(parameters, 0)
    images = torch.zeros(1, channels, image_size, image_size, device="meta")
    try:
        return Size(parameters, count_macs(module, images))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{network.name} does not take images of {image_size} x {image_size}: {error}; give "
            "their size (--size), or the network an option such as img_size"
        ) from error


def constructor_arguments(
    network: Network, num_classes: int = 10, channels: int = 3
) -> dict[str, Any]:
    """Every argument that the constructor of the network's class gets, defaults included.

    timm's and torchvision's entry points set most of them on the way, so they are read where they
    arrive: the class's ``__init__`` is watched while one network is built.

    Raises:
        ValueError: as `build_network`.

    Example:
        >>> constructor_arguments(Network("wide_resnet50_2"))["base_width"]
        128
    """
    if network.name in OWN:
        given = inspect.signature(own_constructor(network.name)).parameters.values()
        return {p.name: p.default for p in given if p.default is not p.empty} | network.options
    cls = type(build_meta(network, num_classes, channels))
    original, seen = cls.__init__, []

    def watched(self, *args, **kwargs):
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        bound.apply_defaults()
        seen.append(dict(bound.arguments))
        original(self, *args, **kwargs)

    cls.__init__ = watched
    try:
        build_meta(network, num_classes, channels)
    finally:
        cls.__init__ = original
    arguments = seen[0] if seen else {}
    arguments.pop("self", None)
    return arguments | arguments.pop("kwargs", {})
