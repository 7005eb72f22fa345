"""The arguments that set a network's width, and the widths they can take. OURS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from coe_core import UncountedOperatorError
from vision.networks.network import Network
from vision.networks.size import Size

# Arguments of timm's, torchvision's and our own constructors that set the width of the whole
# network, the most thorough first: the first one that works is taken.
KNOBS = {
    "channel_multiplier": "EfficientNet (ours): factor on all channels",
    "width_mult": "MobileNet (torchvision), ReXNet: factor on all channels",
    "width_factor": "TResNet, RepVGG, GENet: factor on all channels",
    "width": "our small and CIFAR networks: channels of the first stage",
    "channels": "ResNet, SE-ResNet, ResNetV2, DLA (timm): channels of the stages",
    "dims": "ConvNeXt, MambaOut: channels of the stages",
    "embed_dims": "PVT, FastViT, DaViT, EfficientFormer: channels of the stages",
    "embed_dim": "ViT, DeiT, BEiT, EVA, Swin, CaiT, LeViT, Hiera: width of the tokens",
    "base_dim": "StarNet: channels of the first stage",
    "growth_rate": "DenseNet (timm and ours): channels that every layer adds",
    "alpha": "PyramidNet (ours): channels added over the network",
    "base_width": "bottlenecks of ResNet-like networks (timm)",
    "width_per_group": "bottlenecks of ResNet-like networks (torchvision)",
}
EXAMPLES = (
    "resnet50 (channels), convnext_tiny (dims), vit_small_patch16_224 (embed_dim), densenet121 "
    "(growth_rate), torchvision/mobilenet_v3_large (width_mult), scaled_efficientnet "
    "(channel_multiplier), small_resnet and cifar_resnet (width)"
)
_ALONG = {"growth_rate": "num_init_features", "channels": "stem_width"}  # scaled with the knob
FACTORS = ("channel_multiplier", "width_mult", "width_factor")  # 1 when not given
# Channels are multiples of the first of these that meets the tolerance; the last two are for
# networks that refuse the others.
MULTIPLES = (8, 4, 2, 1, 16, 32)


class Widths:
    """Sizes at the widths of one knob, each computed once."""

    def __init__(
        self,
        network: Network,
        arguments: Mapping[str, Any],
        knob: str,
        measure: Callable[[Network], Size],
    ):
        self.network, self.arguments, self.knob = network, arguments, knob
        value = arguments[knob]
        self.is_list = isinstance(value, list | tuple)
        self.values = list(value) if self.is_list else [value]
        self.lead = max(self.values)
        self.units = _units(self.values, arguments.get("num_heads"))
        self.measure = measure
        self.refused: set[str] = set()

    @property
    def step(self) -> float:
        """Between neighbouring widths of the widest part."""
        if isinstance(self.lead, float):
            return self.lead / 400
        return self.units[self.values.index(self.lead)]

    def options(self, index: int, multiple: int = 1) -> dict[str, Any]:
        """Options at a width: ``index`` steps of ``multiple`` in the widest part."""
        factor = index * multiple * self.step / self.lead
        if isinstance(self.lead, float):
            return {self.knob: round(self.lead * factor, 6)}
        scaled = []
        for value, unit in zip(self.values, self.units, strict=True):
            rounding = next(
                m for m in (32, 16, 8, 4, 2, 1) if m == 1 or multiple >= m <= value * factor / 4
            )
            unit = math.lcm(unit, rounding)
            scaled.append(max(unit, unit * round(value * factor / unit)))
        options = {self.knob: scaled if self.is_list else scaled[0]}
        along = _ALONG.get(self.knob)
        if (
            along is not None
            and along in self.arguments
            and _accepts_along(self.knob, self.arguments)
        ):
            options[along] = max(2, 2 * round(self.arguments[along] * factor / 2))
        return options

    def size(self, index: int, multiple: int = 1) -> Size | None:
        """Size at a width; None where the constructor refuses it."""
        return self.size_of(self.options(index, multiple))

    def size_of(self, options: Mapping[str, Any]) -> Size | None:
        """Size with these options; None where the constructor refuses them."""
        key = repr(options)
        if key in self.refused:
            return None
        try:
            return self.measure(
                Network(self.network.name, options={**self.network.options, **options})
            )
        except UncountedOperatorError:
            raise
        except Exception:  # constructors refuse in any way that they like
            self.refused.add(key)
            return None

    def near(self, index: int, multiple: int = 1) -> tuple[int, Size] | None:
        """The next width, upwards, that the constructor takes."""
        rounded = [math.ceil(index / unit) * unit for unit in (4, 8, 16, 32, 64)]
        for candidate in sorted({index, index + 1, index + 2, *rounded}):
            size = self.size(candidate, multiple)
            if size is not None:
                return candidate, size
        return None


def _accepts_along(knob: str, arguments: Mapping[str, Any]) -> bool:
    """timm's ResNet has a stem_width that only deep stems use."""
    return knob != "channels" or "deep" in str(arguments.get("stem_type", ""))


def _units(values: list, num_heads: Any) -> list[int]:
    """What each width must be a multiple of: its number of attention heads."""
    if isinstance(num_heads, int):
        return [num_heads] * len(values)
    if isinstance(num_heads, list | tuple) and all(isinstance(h, int) for h in num_heads):
        if len(num_heads) == len(values):
            return list(num_heads)
        if len(values) == 1:  # Swin: the width doubles from stage to stage
            shares = [heads // math.gcd(heads, 2**i) for i, heads in enumerate(num_heads)]
            return [math.lcm(*shares)]
    return [1] * len(values)


def is_width(value: Any) -> bool:
    """A number above 0, or a list of whole numbers above 0."""
    if isinstance(value, list | tuple):
        return bool(value) and all(type(part) is int and part > 0 for part in value)
    return type(value) in (int, float) and value > 0


def usable_widths(
    network: Network, arguments: Mapping[str, Any], measure: Callable[[Network], Size]
) -> Iterator[Widths]:
    """Every knob whose change the network's entry point takes, and that changes its size."""
    for knob in KNOBS:
        widths = usable_width(network, arguments, knob, measure)
        if widths is not None:
            yield widths


def usable_width(
    network: Network,
    arguments: Mapping[str, Any],
    knob: str,
    measure: Callable[[Network], Size],
) -> Widths | None:
    """The widths of one knob; None if it is none: not there, not taken, or without effect."""
    arguments = {**dict.fromkeys(FACTORS, 1.0), **arguments}
    if knob not in arguments or not is_width(arguments[knob]):
        return None
    widths = Widths(network, arguments, knob, measure)
    narrower = widths.near(max(1, (3 * round(widths.lead / widths.step)) // 4))
    return widths if narrower is not None and narrower[1] < measure(network) else None
