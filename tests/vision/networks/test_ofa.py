"""Subnets of the once-for-all space: multiply-adds by hand, presets on their mark."""

import math

import pytest
from timm.models._efficientnet_builder import round_channels

from vision.networks.network import Network
from vision.networks.own.ofa import PRESETS, ofa_mobilenetv3
from vision.networks.size import network_size


def by_hand(size: int, depth, expand, kernel, classes: int) -> int:
    """Stem, first block, stages of expand - depthwise - squeeze - project, last stage, head."""
    side = math.ceil(size / 2)
    macs = side**2 * (27 * 16 + 9 * 16 + 16 * 16)
    width = 16
    stages = zip(depth, expand, kernel, (24, 40, 80, 112, 160), (2, 2, 2, 1, 2), strict=True)
    for stage, (blocks, e, k, channels, stride) in enumerate(stages):
        for block in range(blocks):
            before, middle = side, round_channels(width * e)
            side = math.ceil(side / stride) if block == 0 else side
            macs += before**2 * width * middle + side**2 * middle * (k**2 + channels)
            if stage in (1, 3, 4):
                macs += 2 * middle * round_channels(middle / 4)
            width = channels
    return macs + side**2 * 160 * 960 + 960 * 1280 + 1280 * classes


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_presets_land_on_their_multiply_adds(name):
    preset = PRESETS[name]
    network = Network("ofa_mobilenetv3", options={"preset": name}, size=preset.size)
    macs = network_size(network, 1000, 224).macs
    assert macs == by_hand(*preset, 1000)
    assert abs(macs / (1e6 * int(name.removesuffix("m"))) - 1) < 0.03


@pytest.mark.slow
def test_every_choice_counts():
    def macs(**options):
        return network_size(Network("ofa_mobilenetv3", options=options), 10, 64).macs

    assert macs() == by_hand(64, [4] * 5, [6] * 5, [3] * 5, 10)
    assert macs(depth=[2, 3, 4, 2, 3], expand=3, kernel=[3, 5, 7, 3, 5]) == by_hand(
        64, [2, 3, 4, 2, 3], [3] * 5, [3, 5, 7, 3, 5], 10
    )
    per_block = [[3, 4], 4, 4, 4, [6, 6]]
    assert macs(depth=2, expand=3) < macs(depth=2, expand=per_block) < macs(depth=2, expand=6)
    assert macs(width=1.2) > 1.3 * macs()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "75m"}, "unknown preset '75m'; nearest: 74m.*there are 74m, 110m"),
        ({"depth": 5}, r"depth must be one of \(2, 3, 4\), got 5"),
        ({"expand": [3, 4]}, "expand of 5 stages, got 2"),
        ({"kernel": [[3, 3], 3, 3, 3, 3]}, "stage 0 has 4 blocks, kernel lists 2"),
        ({"width": 0}, "width must be above 0, got 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ofa_mobilenetv3(10, **options)
