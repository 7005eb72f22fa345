"""Subnets of the once-for-all space over MobileNetV3: depth, expansion and kernel of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from vision.errors import nearest

_CHANNELS = (24, 40, 80, 112, 160)
_STRIDES = (2, 2, 2, 1, 2)
_SQUEEZE = (False, True, False, True, True)
_RELU = (True, True, False, False, False)  # else hard-swish
_DEPTHS, _EXPANDS, _KERNELS = (2, 3, 4), (3, 4, 6), (3, 5, 7)

PerStage = int | Sequence[int | Sequence[int]]


class Preset(NamedTuple):
    """A subnet by its multiply-adds; they hold at ``size`` and 1000 classes."""

    size: int
    depth: tuple[int, ...]
    expand: tuple[int, ...]
    kernel: tuple[int, ...]


PRESETS = {
    "74m": Preset(160, (2, 2, 2, 2, 2), (3, 3, 3, 4, 4), (3, 5, 5, 5, 5)),
    "110m": Preset(176, (2, 2, 3, 3, 3), (3, 3, 3, 3, 4), (3, 5, 5, 5, 5)),
    "163m": Preset(192, (2, 3, 3, 3, 3), (3, 3, 4, 4, 6), (3, 5, 5, 5, 5)),
    "208m": Preset(208, (3, 3, 3, 3, 3), (3, 3, 4, 4, 6), (3, 5, 5, 5, 5)),
    "230m": Preset(224, (2, 3, 3, 3, 3), (3, 4, 4, 4, 6), (3, 5, 5, 5, 5)),
}


def ofa_mobilenetv3(
    num_classes: int,
    in_chans: int = 3,
    preset: str | None = None,
    depth: int | Sequence[int] | None = None,
    expand: PerStage | None = None,
    kernel: PerStage | None = None,
    width: float = 1.0,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """A MobileNetV3 of the once-for-all space, put together from timm's blocks. PAPER (the space).

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        preset: one of `PRESETS`, such as "230m": its multiply-adds at its own size of images, which is a
            property of the network in a recipe (``size``), not of its layers. OURS: the published
            subnets of these sizes are not spelled out in their paper.
        depth: blocks of the five stages, 2 to 4; one number for all, or five. Default 4, or the preset's.
        expand: expansion, 3, 4 or 6: one number, one per stage, or one list per stage. Default 6.
        kernel: 3, 5 or 7: likewise. Default 3.
        width: multiplier of all channels; the published spaces have 1.0 and 1.2.
        drop_rate: of dropout before the classifier.
        drop_path_rate: of the last block; rises linearly from the first.

    Raises:
        ValueError: an unknown preset, or a value outside the space.

    Example:
        >>> net = ofa_mobilenetv3(1000, preset="230m", depth=2)
        >>> [len(stage) for stage in net.blocks]
        [1, 2, 2, 2, 2, 2, 1]
    """
    chosen: dict[str, Any] = {"depth": 4, "expand": 6, "kernel": 3}
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(
                f"ofa_mobilenetv3: unknown preset {preset!r}{nearest(preset, [*PRESETS])}; there "
                f"are {', '.join(PRESETS)}"
            )
        chosen = PRESETS[preset]._asdict()
    given = {"depth": depth, "expand": expand, "kernel": kernel}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if not width > 0:
        raise ValueError(f"ofa_mobilenetv3: width must be above 0, got {width}")
    depths = [d[0] for d in _blocks("depth", chosen["depth"], [1] * 5, _DEPTHS)]
    expands = _blocks("expand", chosen["expand"], depths, _EXPANDS)
    kernels = _blocks("kernel", chosen["kernel"], depths, _KERNELS)
    stages = [["ds_r1_k3_s1_e1_c16_nre"]]
    for stage, channels in enumerate(_CHANNELS):
        rest = "_se0.25" * _SQUEEZE[stage] + "_nre" * _RELU[stage]
        stages.append(
            [
                f"ir_r1_k{k}_s{1 if block else _STRIDES[stage]}_e{e}_c{channels}{rest}"
                for block, (e, k) in enumerate(zip(expands[stage], kernels[stage], strict=True))
            ]
        )
    stages.append(["cn_r1_k1_s1_c960"])
    return MobileNetV3(
        decode_arch_def(stages),
        num_classes,
        in_chans,
        round_chs_fn=partial(round_channels, multiplier=width),
        num_features=round_channels(1280, width),
        norm_layer=nn.BatchNorm2d,
        act_layer=nn.Hardswish,
        se_layer=partial(
            SqueezeExcite,
            gate_layer="hard_sigmoid",
            force_act_layer=nn.ReLU,
            rd_round_fn=round_channels,
        ),
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def _blocks(name: str, value: Any, depths: list[int], allowed: tuple[int, ...]) -> list[list[int]]:
    """Per stage and block; from one number, one per stage, or one list per stage."""
    stages = [value] * 5 if isinstance(value, int) else list(value)
    if len(stages) != 5:
        raise ValueError(f"ofa_mobilenetv3: {name} of 5 stages, got {len(stages)}")
    written = [
        [stage] * d if isinstance(stage, int) else list(stage)
        for stage, d in zip(stages, depths, strict=True)
    ]
    for number, (stage, d) in enumerate(zip(written, depths, strict=True)):
        if len(stage) != d:
            raise ValueError(
                f"ofa_mobilenetv3: stage {number} has {d} blocks, {name} lists {len(stage)}"
            )
        for choice in stage:
            if choice not in allowed:
                raise ValueError(f"ofa_mobilenetv3: {name} must be one of {allowed}, got {choice}")
    return written
