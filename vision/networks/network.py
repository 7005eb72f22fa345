"""Networks by name."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.module import register_module_module_registration_hook

from vision.networks.own import OWN, own_constructor

MAX_OPTION = 1_000_000  # of numbers among the options, to either side
MAX_PARTS = 10_000  # layers and blocks of one network; the largest published ones have about 3,000
_WEIGHTS = "weights come from pretrained: true alone"
_OUTPUTS = "a network of a recipe returns one row of logits for each image"
_DATA = "the data decide it"
_NO_SHAPE = "it says nothing of the network itself"
# Options that constructors of timm and torchvision take, and that reach files, the network or other
# outputs than logits. None of them is a number of layers or channels.
REFUSED_OPTIONS = {
    **dict.fromkeys(("pretrained", "weights", "weights_backbone", "checkpoint_path"), _WEIGHTS),
    **dict.fromkeys(("cache_dir", "progress", "pruned", "quantize"), _WEIGHTS),
    **dict.fromkeys(("cfg", "model_cfg", "default_cfg", "kwargs_filter"), _WEIGHTS),
    **dict.fromkeys(("features_only", "out_indices", "feature_cfg", "feature_cls"), _OUTPUTS),
    **dict.fromkeys(("num_classes", "in_chans", "in_channels"), _DATA),
    **dict.fromkeys(("scriptable", "exportable", "no_jit", "jit", "device", "dtype"), _NO_SHAPE),
}
_OF_WEIGHTS = re.compile(
    r"pretrained_(?!window_sizes?$)|(?<!drop)_path$|^path$|(^|_)(file|dir|url|uri|hub|hf|repo)(_|$)"
)


@dataclass(frozen=True)
class Network:
    """A classifier by name.

    Args:
        name: one of our own, such as "small_resnet" or "cifar_resnet", any timm model or any
            torchvision classifier; "timm/NAME" or "torchvision/NAME" where both have it (timm
            otherwise goes first).
        pretrained: start from the library's published weights, all but the classifier.
        options: further arguments of the network's constructor, such as width or drop_rate.
        size: side in pixels at which this network sees the images, of which it makes a smaller copy
            (bilinear, antialiased, on its device); null: as they come, data.size.
        activation: replaces the network's ReLU-like activations: pwlu (learned, per channel), prelu, relu,
            relu6, silu, hardswish, gelu, mish or leaky_relu; null: its own.
        activation_options: of the activation, such as ``{intervals: 8, per_channel: false}`` of pwlu.
        condconv: number of kernels that are mixed for each image in place of one; 0: plain convolutions.
        condconv_where: regular expression: convolutions whose dotted name it finds, such as
            ``^blocks\\.[4-6]``; null: the later half.

    Example:
        >>> Network("ofa_mobilenetv3", options={"preset": "110m"}, size=176, activation="pwlu").shown
        'ofa_mobilenetv3 preset=110m at 176 pwlu'
    """

    name: str
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    activation: str | None = None
    activation_options: dict[str, Any] = field(default_factory=dict)
    condconv: int = 0
    condconv_where: str | None = None

    @property
    def shown(self) -> str:
        """The network in one line, for tables."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        parts = [self.name, options, f"at {self.size}" if self.size else ""]
        parts += [self.activation or "", f"condconv {self.condconv}" if self.condconv else ""]
        return " ".join(part for part in parts if part)


def build_network(network: Network, num_outputs: int, channels: int = 3) -> nn.Module:
    """The network with ``num_outputs`` logits, its activations and convolutions replaced if asked.

    Args:
        network: name and options.
        num_outputs: of the last layer.
        channels: of the images; torchvision's networks take 3.

    Raises:
        ValueError: unknown name (names the nearest), options that the constructor does not take or that
            make more layers than any network has,
            channels that the network cannot take, or nothing to replace.

    Example:
        >>> sum(p.numel() for p in build_network(Network("small_resnet"), 10).parameters())
        78042
    """
    check_options(network)
    try:
        with _bounded():
            built = _named(network, num_outputs, channels)
        _replace_parts(built, network)
    except ValueError:
        raise
    except Exception as error:  # constructors refuse in any way that they like
        shown = {**network.options, **network.activation_options}
        raise ValueError(
            f"network {network.name!r} with options {shown}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return built if network.size is None else AtSize(built, network.size)


@contextmanager
def _bounded() -> Iterator[None]:
    """Give up a network of more parts than any has: a number among its options is absurd."""
    count, thread = 0, threading.get_ident()

    def counted(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS} layers; lower its options")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _replace_parts(built: nn.Module, network: Network) -> None:
    try:
        if network.condconv:
            from vision.networks.condconv import replace_convolutions

            replace_convolutions(
                built,
                network.condconv,
                where=network.condconv_where,
                keep_weights=network.pretrained,
            )
        if network.activation is not None:
            from vision.networks.activations import replace_activations

            replace_activations(built, network.activation, **network.activation_options)
    except (ValueError, re.error) as error:
        raise ValueError(f"network {network.name!r}: {error}") from error


class AtSize(nn.Module):
    """A network that sees the images at a size of its own.

    Args:
        network: any classifier.
        size: side in pixels.

    Raises:
        ValueError: size below 1.
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.network, self.size = network, size

    def forward(self, images: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        """The logits of the classes."""
        if images.shape[-1] != self.size:
            images = interpolate(
                images.float(), (self.size, self.size), mode="bilinear", antialias=True
            ).to(images.dtype)
        return self.network(images)


def check_options(network: Network, key: str = "network", allowed: tuple[str, ...] = ()) -> None:
    """Refuse options that say where to load from, or that change what a network returns.

    Args:
        network: of a recipe or a checkpoint.
        key: dotted, of the network in the recipe.
        allowed: of the refused ones, those that its user reads by itself.

    Raises:
        ValueError: see above, or an absurd number.

    Example:
        >>> check_options(Network("resnet18", options={"checkpoint_path": "x.pt"}), "delegator")
        Traceback (most recent call last):
        ...
        ValueError: delegator.options.checkpoint_path is refused: weights come from pretrained: true alone
    """
    for name, value in network.options.items():
        reason = REFUSED_OPTIONS.get(name) or (_WEIGHTS if _OF_WEIGHTS.search(name) else None)
        if name == "aux_logits" and value:
            reason = _OUTPUTS
        if reason is not None and name not in allowed:
            raise ValueError(f"{key}.options.{name[:80]} is refused: {reason}")
    if network.activation_options and network.activation is None:
        raise ValueError(
            f"{key}.activation_options without {key}.activation: name it, or remove them"
        )
    for kind in ("options", "activation_options"):
        _check_numbers(getattr(network, kind), f"{key}.{kind}")
    for name, value, most in (("size", network.size, 8192), ("condconv", network.condconv, 1024)):
        if value is not None and value > most:
            raise ValueError(f"{key}.{name} must be at most {most}, got {value}")


def _check_numbers(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _check_numbers(part, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for part in value:
            _check_numbers(part, key)
    elif isinstance(value, int | float) and not abs(value) <= MAX_OPTION:
        raise ValueError(f"{key} must be in [-{MAX_OPTION}, {MAX_OPTION}], got {value}")


def _named(network: Network, num_outputs: int, channels: int) -> nn.Module:
    if network.name in OWN:
        if network.pretrained:
            raise ValueError(f"there are no published weights of our own {network.name}")
        constructor = own_constructor(network.name)
        return constructor(num_classes=num_outputs, in_chans=channels, **network.options)
    from vision.networks.libraries import library_network  # timm and torchvision take seconds

    return library_network(network, num_outputs, channels)
