"""Residual networks for small images and CPU budgets: neither timm nor torchvision has this size."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; the shortcut averages where the block strides."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                # Odd sides are rounded up, as by the convolution.
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(in_width, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(out + self.shortcut(x))


_MOST_STAGES = 16  # each halves the side: 65,536 pixels become one


class SmallResNet(nn.Module):
    """CIFAR-style residual network: a 3x3 stem, stages that halve the side and double the width.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        width: channels of the first stage.
        blocks: residual blocks per stage.
        stages: number of stages; stage s has width * 2**s channels.
        stem_stride: stride of the stem: 2 or more for images larger than about 64.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> SmallResNet(num_classes=10, width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        width: int = 16,
        blocks: int = 1,
        stages: int = 3,
        stem_stride: int = 1,
    ):
        super().__init__()
        sizes = {"width": width, "blocks": blocks, "stages": stages, "stem_stride": stem_stride}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"small_resnet: {name} must be at least 1, got {size}")
        if stages > _MOST_STAGES:
            raise ValueError(f"small_resnet: stages must be at most {_MOST_STAGES}, got {stages}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, width, 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        layers, in_width = [], width
        for stage in range(stages):
            for block in range(blocks):
                out_width = width * 2**stage
                layers.append(_Block(in_width, out_width, 2 if stage and block == 0 else 1))
                in_width = out_width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_width, num_classes)
        )

    def forward(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        """Logits of a batch of images."""
        return self.head(self.blocks(self.stem(x)))
