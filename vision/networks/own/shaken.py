"""Networks regularised by noise in their residual branches: Shake-Shake and PyramidNet + ShakeDrop."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision.networks.own.cifar import StagedNetwork


def _noisy_scale(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """forward * x, whose gradient is that of backward * x."""
    return backward * x + ((forward - backward) * x).detach()


def _stem(in_chans: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_chans, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
    )


class ShakeDrop(nn.Module):
    """Multiply a residual branch, image by image, by noise: forward in [-1, 1], backward in [0, 1].

    With probability 1 - rate an image's branch passes unchanged. In evaluation it is multiplied by
    its mean, 1 - rate. Drawing the gate per image is RECONSTRUCTED.

    Args:
        rate: probability of noise, in [0, 1].

    Raises:
        ValueError: rate outside [0, 1].

    Example:
        >>> ShakeDrop(0.25).eval()(torch.ones(1, 1, 1, 1)).item()
        0.75
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"ShakeDrop's rate is a probability in [0, 1], got {rate}")
        self.rate = rate

    def forward(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n ch h w"]:
        """The branch, scaled."""
        if not self.training:
            return x * (1 - self.rate)
        draws = torch.rand(3, len(x), 1, 1, 1, device=x.device, dtype=torch.float32)
        passes = draws[0] >= self.rate
        forward = torch.where(passes, 1.0, 2 * draws[1] - 1).to(x.dtype)
        return _noisy_scale(x, forward, torch.where(passes, 1.0, draws[2]).to(x.dtype))


class _PyramidUnit(nn.Module):
    """Norm, 1x1, norm, relu, 3x3, norm, relu, 1x1, norm; the shortcut averages and adds zeros."""

    def __init__(self, in_width: int, width: int, stride: int, rate: float):
        super().__init__()
        out = 4 * width
        self.branch = nn.Sequential(
            nn.BatchNorm2d(in_width),
            nn.Conv2d(in_width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shake = ShakeDrop(rate)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride > 1 else nn.Identity()
        self.added = out - in_width

    def forward(self, x: Tensor) -> Tensor:
        shortcut = nn.functional.pad(self.pool(x), (0, 0, 0, 0, 0, self.added))
        return self.shake(self.branch(x)) + shortcut


class PyramidNet(StagedNetwork):
    """PyramidNet with bottlenecks and ShakeDrop: every unit is a little wider than the last. PAPER.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        depth: 9 n + 2 for n units in each of three stages; 272 has n = 30.
        alpha: channels added over the network (before a bottleneck's factor of 4). Unit l of 3 n has
            round(stem + alpha * l / (3 n)) of them.
        stem: channels of the first convolution.
        shake_drop: p_L of the last unit; p_l = p_L * l / (3 n).

    Raises:
        ValueError: a depth that is not 9 n + 2, a stem below 1, or an alpha below 0.

    Example:
        >>> PyramidNet(10, depth=11, alpha=6, stem=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        depth: int = 272,
        alpha: float = 200.0,
        stem: int = 16,
        shake_drop: float = 0.5,
    ):
        per_stage, left = divmod(depth - 2, 9)
        if left or per_stage < 1:
            raise ValueError(
                f"pyramidnet: depth={depth} is not 9 n + 2 for units n >= 1 per stage; near are "
                f"{9 * max(1, per_stage) + 2} and {9 * (max(0, per_stage) + 1) + 2}"
            )
        if stem < 1 or alpha < 0:
            raise ValueError(
                f"pyramidnet: stem must be at least 1 and alpha at least 0, got {stem} and {alpha}"
            )
        units = 3 * per_stage
        first = _stem(in_chans, stem)
        layers, channels = [], stem
        for unit in range(1, units + 1):
            width = round(stem + alpha * unit / units)
            stride = 2 if unit > 1 and (unit - 1) % per_stage == 0 else 1
            layers.append(_PyramidUnit(channels, width, stride, shake_drop * unit / units))
            channels = 4 * width
        last = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        super().__init__(first, layers, last, channels, num_classes)


class _HalvesShortcut(nn.Module):
    """Two 1x1 convolutions, the second one pixel further, side by side."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.first = nn.Conv2d(in_width, width // 2, 1, bias=False)
        self.second = nn.Conv2d(in_width, width - width // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        shifted = nn.functional.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        step = self.stride
        halves = self.first(x[:, :, ::step, ::step]), self.second(shifted[:, :, ::step, ::step])
        return self.norm(torch.cat(halves, 1))


class _ShakeBlock(nn.Module):
    """Two branches of two 3x3 convolutions, mixed at random: other weights forward and backward."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(in_width, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )

        self.branch1, self.branch2 = branch(), branch()
        same = stride == 1 and in_width == width
        self.shortcut = nn.Identity() if same else _HalvesShortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.branch1(x), self.branch2(x)
        if self.training:
            draws = torch.rand(2, len(x), 1, 1, 1, device=x.device).to(x.dtype)
            mixed = _noisy_scale(first, draws[0], draws[1])
            mixed = mixed + _noisy_scale(second, 1 - draws[0], 1 - draws[1])
        else:
            mixed = (first + second) / 2
        return self.shortcut(x) + mixed


class ShakeShake(StagedNetwork):
    """Shake-Shake-26 2 x width d: three stages of four blocks with two branches each. PAPER.

    Args:
        num_classes: outputs.
        in_chans: channels of the images.
        width: channels of the first stage; it doubles from stage to stage.
        depth: 6 m + 2 for m blocks in each stage.
        stem: channels of the first convolution.

    Raises:
        ValueError: a depth that is not 6 m + 2, a width below 2, or a stem below 1.

    Example:
        >>> ShakeShake(10, width=4, depth=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int, in_chans: int = 3, width: int = 96, depth: int = 26, stem: int = 16
    ):
        num_blocks, left = divmod(depth - 2, 6)
        if left or num_blocks < 1:
            raise ValueError(f"shake_shake: depth={depth} is not 6 m + 2 for blocks m >= 1")
        if width < 2 or stem < 1:
            raise ValueError(
                f"shake_shake: width must be at least 2 and stem at least 1, got {width} and {stem}"
            )
        first = _stem(in_chans, stem)
        layers, channels = [], stem
        for index in range(3 * num_blocks):
            stride = 2 if index and index % num_blocks == 0 else 1
            out = width * 2 ** (index // num_blocks)
            layers.append(_ShakeBlock(channels, out, stride))
            channels = out
        super().__init__(first, layers, [nn.ReLU(inplace=True)], channels, num_classes)
