"""Divide and Co-training's own networks and division rules, by name. PAPER unless said otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vision.errors import nearest
from vision.networks.network import Network

# Lookup tables of the paper: undivided width -> s -> divided width.
_PLANES = {16: {1: 16, 2: 12, 4: 8, 8: 6, 16: 4}, 64: {1: 64, 2: 44, 4: 32, 8: 24}}
_BOTTLENECK_WIDTHS = {128: {1: 128, 2: 64}, 192: {1: 192, 2: 128}}
_SHAKE_WIDTHS = {96: {1: 96, 2: 64, 4: 48, 8: 32, 16: 24}}
_EFFICIENTNET = {
    1: {"channels": [16, 24, 40, 80, 112, 192, 320], "stem": 32, "head": 1280, "divisor": 8},
    2: {"channels": [12, 16, 24, 56, 80, 136, 224], "stem": 24, "head": 920, "divisor": 4},
    4: {"channels": [12, 16, 20, 40, 56, 96, 160], "stem": 16, "head": 640, "divisor": 4},
}

Arguments = Mapping[str, Any]


def _looked_up(rule: str, option: str, table: Mapping[int, Mapping[int, int]], value, s: int):
    if value not in table:
        raise ValueError(
            f"rule {rule!r} is published for {option}={' or '.join(map(str, table))}, not for "
            f"{value}; rule 'solve' divides any width"
        )
    if s not in table[value]:
        raise ValueError(
            f"rule {rule!r} is published for s in {[*table[value]]} with {option}={value}, got "
            f"s={s}; rule 'solve' divides by any s"
        )
    return table[value][s]


def _planes(arguments: Arguments, s: int) -> dict[str, Any]:
    """Base planes b / sqrt(s), as the paper rounds them: ResNet, SE-ResNet."""
    if "channels" in arguments:  # timm's; the stem shrinks with them: RECONSTRUCTED
        first = arguments["channels"][0]
        planes = _looked_up("planes", "channels[0]", _PLANES, first, s)
        scaled = [channels // first * planes for channels in arguments["channels"]]
        deep = "deep" in arguments.get("stem_type", "")
        return {"channels": scaled, **({"stem_width": planes} if deep else {})}
    return {"width": _looked_up("planes", "width", _PLANES, arguments["width"], s)}


def _widening(arguments: Arguments, s: int) -> dict[str, Any]:
    """WRN: widening factor k -> int(max(k / sqrt(s) + 0.4, 1)); the stem stays."""
    k, left = divmod(arguments["width"], 16)
    if left or k < 1:
        raise ValueError(
            f"rule 'widening' divides widths that are multiples of 16, got {arguments['width']}; "
            "rule 'solve' divides any width"
        )
    return {"width": 16 * int(max(k / math.sqrt(s) + 0.4, 1)), "stem": arguments["stem"] or 16}


def _bottleneck_width(arguments: Arguments, s: int) -> dict[str, Any]:
    """ImageNet WRN: the bottlenecks narrow, the trunk stays."""
    value = arguments["base_width"]
    return {
        "base_width": _looked_up("bottleneck_width", "base_width", _BOTTLENECK_WIDTHS, value, s)
    }


def _groups(arguments: Arguments, s: int) -> dict[str, Any]:
    """ResNeXt, SE-ResNeXt: groups / s; group width and trunk stay."""
    option = "groups" if "groups" in arguments else "cardinality"
    groups = arguments[option]
    if groups % s:
        divisors = [d for d in range(1, groups + 1) if groups % d == 0]
        raise ValueError(
            f"rule 'groups' cannot share {groups} groups among s={s} networks: {groups} is "
            f"divisible by {divisors}; or use rule 'solve'"
        )
    return {option: groups // s}


def _growth(arguments: Arguments, s: int) -> dict[str, Any]:
    """DenseNet: floor(k / sqrt(s)); the stem has twice that."""
    return {"growth_rate": math.floor(arguments["growth_rate"] / math.sqrt(s))}


def _added(arguments: Arguments, s: int) -> dict[str, Any]:
    """PyramidNet: added channels alpha / sqrt(s); the stem stays."""
    return {"alpha": arguments["alpha"] / math.sqrt(s)}


def _shake(arguments: Arguments, s: int) -> dict[str, Any]:
    """Shake-Shake: width / sqrt(s), as the paper rounds it."""
    return {"width": _looked_up("shake_shake", "width", _SHAKE_WIDTHS, arguments["width"], s)}


def _efficientnet(arguments: Arguments, s: int) -> dict[str, Any]:
    """EfficientNet: a table of stage channels, before the compound multipliers."""
    if s not in _EFFICIENTNET:
        raise ValueError(
            f"rule 'efficientnet' is published for s in {[*_EFFICIENTNET]}, got s={s}; rule "
            "'solve' divides by any s"
        )
    if list(arguments["channels"]) != _EFFICIENTNET[1]["channels"]:
        raise ValueError(
            "rule 'efficientnet' is published for stage channels "
            f"{_EFFICIENTNET[1]['channels']}, got {list(arguments['channels'])}"
        )
    return dict(_EFFICIENTNET[s])


class Rule(NamedTuple):
    """A published division rule."""

    apply: Callable[[Arguments, int], dict[str, Any]]  # constructor's arguments, s -> new options
    needs: tuple[str, ...]  # the constructor's arguments that it divides: one of them


DIVISION_RULES = {
    "planes": Rule(_planes, ("width", "channels")),
    "widening": Rule(_widening, ("width",)),
    "bottleneck_width": Rule(_bottleneck_width, ("base_width",)),
    "groups": Rule(_groups, ("groups", "cardinality")),
    "growth": Rule(_growth, ("growth_rate",)),
    "added_channels": Rule(_added, ("alpha",)),
    "shake_shake": Rule(_shake, ("width",)),
    "efficientnet": Rule(_efficientnet, ("channels",)),
}


class Published(NamedTuple):
    """A network of the paper, undivided."""

    network: Network
    rule: str  # of DIVISION_RULES
    image_size: int = 32
    num_classes: int = 10


def _cifar(rule: str, name: str = "cifar_resnet", **options: Any) -> Published:
    return Published(Network(name, options=options), rule)


def _imagenet(rule: str, name: str, size: int = 224, **options: Any) -> Published:
    return Published(Network(name, options=options), rule, size, 1000)


def _wrn(depth: int, k: int) -> Published:
    return _cifar("widening", depth=depth, width=16 * k, stem=16, bottleneck=False)


# timm's deep stem of this width is the paper's for ResNeXt (its published size says so); the same
# one for ResNet and WRN is RECONSTRUCTED.
_STEM: dict[str, Any] = {"stem_type": "deep", "stem_width": 64}
_CHANNELS = [64, 128, 256, 512]
_SIZES = (224, 240, 260, 300, 380, 456, 528, 320)  # of EfficientNet-B7: 320 in the paper

PUBLISHED = {
    "resnet_110": _cifar("planes", depth=110, width=16),
    "resnet_164": _cifar("planes", depth=164, width=16),
    "se_resnet_110": _cifar("planes", depth=110, width=16, squeeze=True),
    "se_resnet_164": _cifar("planes", depth=164, width=16, squeeze=True),
    "wrn_16_8": _wrn(16, 8),
    "wrn_28_10": _wrn(28, 10),
    "wrn_40_10": _wrn(40, 10),
    "resnext_29_8x64d": _cifar("groups", depth=29, width=64, groups=8, group_width=64),
    "shake_shake_26_2x96d": _cifar("shake_shake", "shake_shake", width=96),
    "densenet_bc_190": _cifar("growth", "cifar_densenet", growth_rate=40, blocks=[31, 31, 31]),
    "pyramidnet_272": _cifar("added_channels", "pyramidnet", depth=272, alpha=200, shake_drop=0.5),
    "resnet_50": _imagenet("planes", "resnet50", channels=_CHANNELS, **_STEM),
    "resnet_101": _imagenet("planes", "resnet101", channels=_CHANNELS, **_STEM),
    "wrn_50_2": _imagenet("bottleneck_width", "resnet50", base_width=128, avg_down=True, **_STEM),
    "wrn_50_3": _imagenet("bottleneck_width", "resnet50", base_width=192, avg_down=True, **_STEM),
    "resnext_101_64x4d": _imagenet("groups", "resnext101_64x4d", cardinality=64, **_STEM),
    "se_resnext_101_64x4d": _imagenet("groups", "deep_stem_resnext", groups=64, group_width=4),
    **{
        f"efficientnet_b{i}": _imagenet(
            "efficientnet", "scaled_efficientnet", size, variant=f"b{i}"
        )
        for i, size in enumerate(_SIZES)
    },
    **{
        f"efficientnet_b{i}_cifar": _cifar(
            "efficientnet", "scaled_efficientnet", variant=f"b{i}", small_images=True
        )
        for i in range(8)
    },
}


def published_network(name: str) -> Published:
    """A network of the paper by name.

    Raises:
        ValueError: unknown name; the nearest ones are named, and all.

    Example:
        >>> published_network("wrn_28_10").network.options["width"]
        160
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    raise ValueError(
        f"the paper has no network {name!r}{nearest(name, PUBLISHED)}; it has {', '.join(PUBLISHED)}"
    )


def apply_rule(rule: str, arguments: Arguments, s: int) -> dict[str, Any]:
    """Options of one of s divided networks.

    Args:
        rule: a name in DIVISION_RULES.
        arguments: of the undivided network's constructor.
        s: number of networks.

    Raises:
        ValueError: an unknown rule, a network without the option that it divides, an s that the
            paper does not have, groups that cannot be shared, or too narrow a network.

    Example:
        >>> apply_rule("widening", {"width": 160, "stem": 16}, 2)
        {'width': 112, 'stem': 16}
    """
    if rule not in DIVISION_RULES:
        raise ValueError(
            f"unknown rule {rule!r}{nearest(rule, DIVISION_RULES)}; there are solve, "
            f"{', '.join(DIVISION_RULES)}"
        )
    if not any(option in arguments for option in DIVISION_RULES[rule].needs):
        raise ValueError(
            f"rule {rule!r} divides {' or '.join(DIVISION_RULES[rule].needs)}, which this network's "
            "constructor does not have; rule 'solve' looks for another width"
        )
    options = DIVISION_RULES[rule].apply(arguments, s)
    same = all(arguments.get(option) == value for option, value in options.items())
    empty = [option for option, value in options.items() if value == 0]
    if s > 1 and (same or empty):
        shown = ", ".join(f"{option}={arguments.get(option)}" for option in options)
        raise ValueError(
            f"too narrow to divide into {s} by rule {rule!r}: {shown} would become "
            f"{', '.join(map(str, options.values()))}; choose a smaller s or a wider network"
        )
    return options
