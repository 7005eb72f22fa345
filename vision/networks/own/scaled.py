"""EfficientNet with free widths and SE-ResNeXt with a deep stem, put together from timm's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

# Compound scaling of EfficientNet: multipliers of channels and of depth.
_VARIANTS = {
    **{"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4)},
    **{"b4": (1.4, 1.8), "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1)},
}
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_SMALL_STRIDES = (1, 2, 1, 2, 1, 1, 1)  # fits the published multiply-adds: RECONSTRUCTED


def scaled_efficientnet(
    num_classes: int,
    in_chans: int = 3,
    variant: str = "b0",
    channels: Sequence[int] = (16, 24, 40, 80, 112, 192, 320),
    stem: int = 32,
    head: int = 1280,
    divisor: int = 8,
    channel_multiplier: float = 1.0,
    small_images: bool = False,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """EfficientNet whose widths are free: timm's, which fixes them in its constructors. PAPER.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        variant: b0 to b7: the compound multipliers of channels and depth.
        channels: of the seven stages, before the multipliers.
        stem: channels of the first convolution, before the multipliers.
        head: channels of the last one, before the multipliers.
        divisor: channels are rounded to its multiples.
        channel_multiplier: beside the variant's own.
        small_images: for 32 x 32: strides of the stem, the third and the sixth stage become 1.
        drop_rate: of dropout before the classifier.
        drop_path_rate: of the last block; rises linearly from the first.

    Raises:
        ValueError: an unknown variant, not seven stages, or a width below 1.

    Example:
        >>> net = scaled_efficientnet(1000)
        >>> sum(p.numel() for p in net.parameters())
        5288548
    """
    if variant not in _VARIANTS:
        raise ValueError(f"scaled_efficientnet: variant {variant!r} is not one of {[*_VARIANTS]}")
    if len(channels) != 7:
        raise ValueError(f"scaled_efficientnet: channels of 7 stages, got {len(channels)}")
    narrowest = min(*channels, stem, head, divisor)
    if narrowest < 1 or channel_multiplier <= 0:
        raise ValueError(
            "scaled_efficientnet: widths and divisor must be at least 1 and channel_multiplier "
            f"above 0, got {narrowest} and {channel_multiplier}"
        )
    width, depth = _VARIANTS[variant]
    strides = _SMALL_STRIDES if small_images else _STRIDES
    stages = [
        [f"{'ir' if i else 'ds'}_r{r}_k{k}_s{s}_e{6 if i else 1}_c{c}_se0.25"]
        for i, (r, k, s, c) in enumerate(zip(_REPEATS, _KERNELS, strides, channels, strict=True))
    ]
    rounded = partial(round_channels, multiplier=width * channel_multiplier, divisor=divisor)
    net = EfficientNet(
        decode_arch_def(stages, depth),
        num_classes,
        num_features=rounded(head),
        in_chans=in_chans,
        stem_size=stem,
        round_chs_fn=rounded,
        act_layer=nn.SiLU,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    if small_images:
        net.conv_stem.stride = (1, 1)
    return net


def deep_stem_resnext(
    num_classes: int,
    in_chans: int = 3,
    layers: Sequence[int] = (3, 4, 23, 3),
    channels: Sequence[int] = (64, 128, 256, 512),
    groups: int = 64,
    group_width: int = 4,
    stem: int = 64,
    squeeze: bool = True,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """(SE-)ResNeXt for large images: timm's, whose three 3x3 stem convolutions all have one width.

    The defaults are the paper's SE-ResNeXt-101 64x4d (PAPER; timm's stems of three end at twice the
    width of the first).

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        layers: blocks of the four stages.
        channels: planes of the four stages.
        groups: cardinality.
        group_width: channels of a group in the first stage, per 64 planes.
        stem: channels of each of the three first convolutions.
        squeeze: squeeze-and-excitation in every block.
        drop_rate: of dropout before the classifier.
        drop_path_rate: of the last block; rises linearly from the first.

    Raises:
        ValueError: not four stages, a size below 1, or an odd stem.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     net = deep_stem_resnext(1000)
        >>> sum(p.numel() for p in net.parameters())
        88299288
    """
    if len(layers) != 4 or len(channels) != 4:
        raise ValueError(
            f"deep_stem_resnext: four stages, got layers of {len(layers)} and channels of "
            f"{len(channels)}"
        )
    smallest = min(*layers, *channels, groups, group_width, stem)
    if stem % 2:
        raise ValueError(f"deep_stem_resnext: stem must be even, got {stem}")
    if smallest < 1 or min(channels) * group_width < 64:
        raise ValueError(
            f"deep_stem_resnext: sizes must be at least 1, got {smallest}, and channels times "
            f"group_width at least 64, got {min(channels) * group_width}"
        )
    net = ResNet(
        cast(Any, Bottleneck),  # timm's annotation asks for an instance
        tuple(layers),
        num_classes,
        in_chans,
        cardinality=groups,
        base_width=group_width,
        stem_width=stem // 2,  # replaced below; the norm after it has twice this width
        stem_type="deep",
        channels=tuple(channels),
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        block_args={"attn_layer": "se"} if squeeze else None,
    )
    net.conv1 = nn.Sequential(
        nn.Conv2d(in_chans, stem, 3, 2, 1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(inplace=True),
        nn.Conv2d(stem, stem, 3, 1, 1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(inplace=True),
        nn.Conv2d(stem, stem, 3, 1, 1, bias=False),
    )
    for part in net.conv1:
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return net
