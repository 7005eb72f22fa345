"""Parameters and multiply-adds of a named network, and what its constructor was given: nothing is run."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coe_core import count_macs
from vision.networks.network import Network, build_network
from vision.networks.own import OWN, own_constructor

_SMALL, _SMALL_IMAGE = 2_000_000, 64  # parameters, side in pixels: a forward of some milliseconds


_FILLS = {  # initialisation: what it writes is not there on the meta device, where it takes most of the time
    *(getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"),
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.clamp_, Tensor.fill_, Tensor.zero_),
}


class _Unfilled(TorchFunctionMode):
    """Tensors of the meta device are not initialised."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _FILLS:
            filled = args[0] if args else kwargs["tensor"]  # as torch.nn.init hands it on
            if filled.is_meta:
                return filled
        return function(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """What is built inside is on the meta device, and not initialised."""
    with torch.device("meta"), _Unfilled():
        yield


class Size(NamedTuple):
    """Parameters and multiply-adds of one network or of several together."""

    parameters: int
    macs: int  # multiply-adds of one image

    def times(self, count: int) -> Size:
        """The size of ``count`` such networks."""
        return Size(self.parameters * count, self.macs * count)


def build_meta(network: Network, num_classes: int, channels: int = 3) -> nn.Module:
    """The network without its numbers, on the meta device.

    Raises:
        ValueError: as `build_network`.
    """
    try:
        with warnings.catch_warnings(), on_meta():
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


def with_zeros(module: nn.Module, image_size: int) -> nn.Module:
    """A small network of the meta device as zeros on the CPU; a larger one as it is.

    Operators of the meta device import torch's compiler, which takes longer than all of torch; a small
    network is run sooner. No random number is drawn.
    """
    tensors = [*module.parameters(), *module.buffers()]
    small = sum(t.numel() for t in tensors) <= _SMALL and image_size <= _SMALL_IMAGE
    if not small or any(t.device.type != "meta" for t in tensors):
        return module
    return module._apply(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu"))


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
    module = with_zeros(module, image_size)
    device = next(module.parameters()).device
    images = torch.zeros(1, channels, image_size, image_size, device=device)
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
    arrive: calls of the class's ``__init__`` are noted while one network is built.

    Raises:
        ValueError: as `build_network`.

    Example:
        >>> constructor_arguments(Network("wide_resnet50_2"))["base_width"]
        128
    """
    if network.name in OWN:
        given = inspect.signature(own_constructor(network.name)).parameters.values()
        return {p.name: p.default for p in given if p.default is not p.empty} | network.options
    plain = replace(network, size=None, activation=None, activation_options={}, condconv=0)
    cls = type(build_meta(plain, num_classes, channels))
    arguments: dict[str, Any] = {}
    code = inspect.unwrap(cls.__init__).__code__

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is code and not arguments:
            values = inspect.getargvalues(frame)
            arguments.update({name: values.locals[name] for name in values.args})
            arguments.update({name: values.locals[name] for name in _keyword_only(code)})
            arguments.update(values.locals[values.keywords] if values.keywords else {})

    before = sys.getprofile()
    sys.setprofile(note)  # of this thread alone; the class stays as it is
    try:
        build_meta(plain, num_classes, channels)
    finally:
        sys.setprofile(before)
    return {name: value for name, value in arguments.items() if name != "self"}


def _keyword_only(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
