"""Residual and dense networks for images of 32 x 32: the CIFAR forms that timm and torchvision lack.

The blocks are timm's; only how they are put together is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from timm.layers import DropPath, SEModule
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, Bottleneck, downsample_avg
from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """A stem, blocks one after another, the mean over all places, a linear layer.

    Args:
        stem: from images to the first block's channels.
        blocks: in order.
        last: layers before the mean.
        channels: after the last block.
        num_classes: outputs.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        last: Sequence[nn.Module],
        channels: int,
        num_classes: int,
    ):
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
        )
        initialise(self)

    def forward(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        """Logits of a batch of images."""
        return self.head(self.blocks(self.stem(x)))


class CifarResNet(StagedNetwork):
    """ResNet, SE-ResNet, WRN and ResNeXt for small images: three stages, post-activation. PAPER.

    Shortcuts that change the shape average before their 1x1 convolution (specification section 6).
    ResNet-110 of the paper's tables has bottlenecks: depth=110, width=16. WRN-28-10: depth=28,
    width=160, stem=16, bottleneck=False. ResNeXt-29 8x64d: depth=29, width=64, groups=8.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        depth: layers: 9 m + 2 with bottlenecks, else 6 m + 4 or 6 m + 2, for m blocks per stage.
        width: planes of the first stage; stage i has width * 2**i, times 4 after a bottleneck.
        stem: channels of the first convolution; None means width.
        bottleneck: 1x1, 3x3, 1x1 convolutions instead of two 3x3 ones.
        groups: of the 3x3 convolutions in bottlenecks: the cardinality of ResNeXt.
        group_width: channels of a group in the first stage, per 64 planes.
        squeeze: squeeze-and-excitation in every block.
        drop_rate: of dropout inside every block.
        drop_path_rate: probability that the last block is skipped; rises linearly from the first.

    Raises:
        ValueError: a size below 1, a depth that does not fit, or groups without bottlenecks.

    Example:
        >>> import torch
        >>> CifarResNet(10, depth=11, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        depth: int = 110,
        width: int = 16,
        stem: int | None = None,
        bottleneck: bool = True,
        groups: int = 1,
        group_width: int = 64,
        squeeze: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        num_blocks = _blocks_per_stage(depth, bottleneck)
        stem = width if stem is None else stem
        sizes = {"width": width, "stem": stem, "groups": groups, "group_width": group_width}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"cifar_resnet: {name} must be at least 1, got {size}")
        if groups > 1 and not bottleneck:
            raise ValueError(f"cifar_resnet: groups={groups} needs bottleneck=True")
        if bottleneck and width * group_width < 64:
            raise ValueError(
                f"cifar_resnet: width={width} with group_width={group_width} leaves "
                f"{width * group_width}/64 channels per group; both multiplied must reach 64"
            )
        block = Bottleneck if bottleneck else BasicBlock
        options: dict[str, Any] = (
            {"cardinality": groups, "base_width": group_width} if bottleneck else {}
        )
        if squeeze:
            options["attn_layer"] = partial(SEModule, rd_divisor=1)
        if drop_rate:
            options["drop_block"] = partial(nn.Dropout, drop_rate)
        first = nn.Sequential(
            nn.Conv2d(in_chans, stem, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        layers, channels, last = [], stem, max(1, 3 * num_blocks - 1)
        for index in range(3 * num_blocks):
            planes = width * 2 ** (index // num_blocks)
            stride = 2 if index and index % num_blocks == 0 else 1
            out = planes * block.expansion
            changed = stride != 1 or channels != out
            shortcut = downsample_avg(channels, out, 1, stride) if changed else None
            rate = drop_path_rate * index / last
            layers.append(
                block(
                    channels,
                    planes,
                    stride,
                    shortcut,
                    drop_path=DropPath(rate) if rate else None,
                    **options,
                )
            )
            channels = out
        super().__init__(first, layers, [], channels, num_classes)


def _blocks_per_stage(depth: int, bottleneck: bool) -> int:
    layers, extra = (9, (2,)) if bottleneck else (6, (2, 4))
    for rest in extra:
        num_blocks, left = divmod(depth - rest, layers)
        if left == 0 and num_blocks >= 1:
            return num_blocks
    forms = " or ".join(f"{layers} m + {rest}" for rest in extra)
    raise ValueError(
        f"cifar_resnet: depth={depth} with bottleneck={bottleneck} is not {forms} for a number of "
        f"blocks m >= 1; near are {layers * max(1, (depth - 2) // layers) + 2} and "
        f"{layers * (max(0, (depth - 2) // layers) + 1) + 2}"
    )


def initialise(module: nn.Module) -> None:
    """He's initial weights for convolutions, fan out; norms 1, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


def cifar_densenet(
    num_classes: int,
    in_chans: int = 3,
    growth_rate: int = 40,
    blocks: Sequence[int] = (31, 31, 31),
    drop_rate: float = 0.0,
) -> nn.Module:
    """DenseNet-BC for small images: timm's, with a 3x3 stem of 2 * growth_rate and no pooling. PAPER.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        growth_rate: channels that every layer adds.
        blocks: layers of each dense block; (31, 31, 31) is DenseNet-BC-190.
        drop_rate: of dropout after every layer.

    Raises:
        ValueError: a growth rate below 1.

    Example:
        >>> import torch
        >>> net = cifar_densenet(10, growth_rate=4, blocks=(2, 2)).eval()
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if growth_rate < 1:
        raise ValueError(f"cifar_densenet: growth_rate must be at least 1, got {growth_rate}")
    net = DenseNet(
        growth_rate, tuple(blocks), num_classes, in_chans=in_chans, proj_drop_rate=drop_rate
    )
    net.features.conv0 = nn.Conv2d(in_chans, 2 * growth_rate, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.features.conv0.weight)
    net.features.norm0 = nn.Identity()  # the first layer normalises
    net.features.pool0 = nn.Identity()
    return net
