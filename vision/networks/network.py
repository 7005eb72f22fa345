"""Networks by name."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from vision.networks.own import OWN, own_constructor

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights

HUB = "hub"  # of `Network.pretrained`: the same as true
MAX_OPTION = 1_000_000  # of numbers among the options, to either side
MAX_PARTS = 10_000  # layers and blocks of one network; the largest published ones have about 3,000
_LARGER = 8  # times: constructors replace some of their layers
_SPARE = 1_000_000
_stored_values: ContextVar[int | None] = ContextVar("_stored_values", default=None)
_WEIGHTS = "weights come from pretrained alone"
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
        pretrained: what it starts from, all but a classifier of other classes: true or hub, the weights
            that timm or torchvision publish; a file of weights (.safetensors, or .pt or .pth that holds
            numbers alone); or the name of an installed package of weights, see
            `vision.networks.pretrained`. Read when a training begins, and never again.
        options: further arguments of the network's constructor, such as width or drop_rate.
        size: side in pixels at which this network sees the images, of which it makes a smaller copy
            (bilinear, antialiased, on its device); null: as they come, data.size.
        mean: of each channel in [0, 1], that this network's images are normalised with; null: what its
            pretrained weights need, where timm or torchvision say it; else the data's.
        std: see mean.
        frozen: of a pretrained network: dotted name of the module up to which it stays as it is loaded, its
            statistics too, such as blocks.4 or layer3; null: all of it is trained.
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
    pretrained: bool | str = False
    options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    frozen: str | None = None
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
        parts += ["pretrained"] if self.pretrained else []
        return " ".join(part for part in parts if part)

    @property
    def from_hub(self) -> bool:
        """Whether it starts from weights that its library publishes."""
        return self.pretrained in (True, HUB)


class Normalisation(NamedTuple):
    """What images were normalised with: mean and std of each channel, for pixels in [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]


def build_network(
    network: Network,
    num_outputs: int,
    channels: int = 3,
    *,
    images: Normalisation | None = None,
    weights: Weights | None = None,
) -> nn.Module:
    """The network with ``num_outputs`` logits, its activations and convolutions replaced if asked.

    Args:
        network: name and options.
        num_outputs: of the last layer.
        channels: of the images; torchvision's networks take 3.
        images: what they are normalised with when they come; None: as this network needs it.
        weights: loads what the network says it starts from; None: nothing is loaded from anywhere, whatever
            the network says.

    Raises:
        ValueError: unknown name (names the nearest), options that the constructor does not take or that
            make more layers than any network has, channels that the network cannot take, nothing to
            replace, or weights that cannot be had or do not fit.

    Example:
        >>> sum(p.numel() for p in build_network(Network("small_resnet"), 10).parameters())
        78042
    """
    check_options(network)
    try:
        with _bounded():
            built = _named(network, num_outputs, channels, hub=weights is not None)
        if weights is not None and network.pretrained:
            weights.load(built, network, num_outputs, channels)
        _replace_parts(built, network, keep_weights=weights is not None)
    except ValueError:
        raise
    except Exception as error:  # constructors refuse in any way that they like
        shown = {**network.options, **network.activation_options}
        raise ValueError(
            f"network {network.name!r} with options {shown}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    return with_own_view(built, network, images)


def with_own_view(
    built: nn.Module, network: Network, images: Normalisation | None = None
) -> nn.Module:
    """The network behind what makes its own view of the images, where it has one.

    Args:
        built: the network, or the part of it that takes the images.
        network: whose size, mean and std they are.
        images: see `build_network`.
    """
    factors = None
    if images is not None and network.mean is not None and network.std is not None:
        own = Normalisation(network.mean, network.std)
        factors = None if _close(images, own) else rescaling(images, own)
    if network.size is None and factors is None:
        return built
    return OwnView(built, network.size, factors)


def _close(a: Normalisation, b: Normalisation) -> bool:
    pairs = zip((*a.mean, *a.std), (*b.mean, *b.std), strict=True)
    return all(abs(x - y) < 1e-9 for x, y in pairs)


def rescaling(images: Normalisation, own: Normalisation) -> Normalisation:
    """What images that are normalised with one mean and std are normalised with, to have another's.

    Example:
        >>> images, own = Normalisation([0.5], [0.25]), Normalisation([0.4], [0.5])
        >>> pixel = 0.7
        >>> again = rescaling(images, own)
        >>> f"{((pixel - 0.5) / 0.25 - again.mean[0]) / again.std[0]:.3f} {(pixel - 0.4) / 0.5:.3f}"
        '0.600 0.600'
    """
    pairs = list(zip(images.mean, images.std, own.mean, own.std, strict=True))
    mean = [(own_mean - mean) / std for mean, std, own_mean, _ in pairs]
    return Normalisation(mean, [own_std / std for _, std, _, own_std in pairs])


@contextmanager
def no_larger_than(num_values: int) -> Iterator[None]:
    """Give up networks that are far larger than the weights that are stored for them, before they are built.

    Args:
        num_values: of all the weights.
    """
    token = _stored_values.set(num_values)
    try:
        yield
    finally:
        _stored_values.reset(token)


@contextmanager
def _bounded() -> Iterator[None]:
    """Give up a network of more parts than any has, or than are stored: one of its options is absurd."""
    parts, values, thread = 0, 0, threading.get_ident()
    stored = _stored_values.get()

    def count_part(*_: object) -> None:
        nonlocal parts
        parts += threading.get_ident() == thread
        if parts > MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS} layers; lower its options")

    def count_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal values
        if parameter is not None and threading.get_ident() == thread:
            values += parameter.numel()
        if stored is not None and values > _LARGER * stored + _SPARE:
            raise ValueError(f"it has far more weights than the {stored:,} values that are stored")

    with ExitStack() as hooks:
        hooks.callback(register_module_module_registration_hook(count_part).remove)
        hooks.callback(register_module_parameter_registration_hook(count_values).remove)
        yield


def _replace_parts(built: nn.Module, network: Network, keep_weights: bool) -> None:
    try:
        if network.condconv:
            from vision.networks.condconv import replace_convolutions

            replace_convolutions(
                built,
                network.condconv,
                where=network.condconv_where,
                keep_weights=keep_weights and bool(network.pretrained),
            )
        if network.activation is not None:
            from vision.networks.activations import replace_activations

            replace_activations(built, network.activation, **network.activation_options)
    except ValueError as error:
        raise ValueError(f"network {network.name!r}: {error}") from error


class OwnView(nn.Module):
    """A network that sees the images at a size, or normalised with a mean and std, of its own.

    Args:
        network: any classifier.
        size: side in pixels; None: as they come.
        factors: see `rescaling`; None: as they come.

    Raises:
        ValueError: size below 1.
    """

    def __init__(self, network: nn.Module, size: int | None, factors: Normalisation | None = None):
        super().__init__()
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.network, self.size, self.factors = network, size, factors

    def forward(self, images: Float[Tensor, "n ch h w"]) -> Tensor:
        """What the network makes of its view of the images."""
        if self.size is not None and tuple(images.shape[-2:]) != (self.size, self.size):
            images = interpolate(
                images.float(), (self.size, self.size), mode="bilinear", antialias=True
            ).to(images.dtype)
        if self.factors is not None:
            mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in self.factors)
            images = ((images - mean) / std).to(images.dtype)
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
        ValueError: delegator.options.checkpoint_path is refused: weights come from pretrained alone
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
    _check_view(network, key)


def _check_view(network: Network, key: str) -> None:
    if isinstance(network.pretrained, str) and not network.pretrained.strip():
        raise ValueError(f"{key}.pretrained is an empty text: name weights, or set it to false")
    if network.frozen is not None and not network.pretrained:
        raise ValueError(
            f"{key}.frozen without {key}.pretrained would keep random weights: name some"
        )
    if (network.mean is None) != (network.std is None):
        raise ValueError(f"{key}.mean and {key}.std go together: give both, or neither")
    for name, values, low in (("mean", network.mean, -1e4), ("std", network.std, 1e-6)):
        if values is not None and not all(low <= value <= 1e4 for value in values):
            raise ValueError(f"{key}.{name} must be in [{low:g}, 10000], got {values}")


def _check_numbers(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _check_numbers(part, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for part in value:
            _check_numbers(part, key)
    elif isinstance(value, int | float) and not abs(value) <= MAX_OPTION:
        raise ValueError(f"{key} must be in [-{MAX_OPTION}, {MAX_OPTION}], got {value}")


def _named(network: Network, num_outputs: int, channels: int, hub: bool) -> nn.Module:
    if network.name in OWN:
        if hub and network.from_hub:
            raise ValueError(f"there are no published weights of our own {network.name}")
        constructor = own_constructor(network.name)
        return constructor(num_classes=num_outputs, in_chans=channels, **network.options)
    from vision.networks.libraries import library_network  # timm and torchvision take seconds

    return library_network(network, num_outputs, channels, hub=hub and network.from_hub)
