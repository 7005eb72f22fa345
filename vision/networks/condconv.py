"""CondConv in a network that is already built: kernels mixed for each image."""

from __future__ import annotations

import re
from typing import cast

import torch
from jaxtyping import Float
from timm.layers import CondConv2d, Conv2dSame
from torch import Tensor, nn

from vision.networks.names import found_by


class RoutedConv2d(nn.Module):
    """Convolution whose kernel is a mixture, weighted by the image. PAPER (method, section 8).

    kernel = sum_e alpha_e(x) W_e with alpha = sigmoid(linear(mean of x over positions)). timm's
    `CondConv2d` with the routing that timm keeps in its blocks, so that it stands wherever a
    convolution stood.

    Args:
        conv: what it replaces.
        num_experts: kernels to mix, at least 2.
        keep_weights: start from the convolution's own kernel (all kernels are it, and a little noise);
            else all are drawn anew with its deviation.
    """

    def __init__(self, conv: nn.Conv2d, num_experts: int, keep_weights: bool = False):
        super().__init__()
        kernel, stride, padding, dilation = (
            cast(tuple[int, int], values)
            for values in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        )
        self.conv = CondConv2d(
            conv.in_channels,
            conv.out_channels,
            kernel,
            stride,
            "same" if type(conv) is Conv2dSame else padding,
            dilation,
            conv.groups,
            conv.bias is not None,
            num_experts,
            device=conv.weight.device,
        )
        self.routing = nn.Linear(conv.in_channels, num_experts, device=conv.weight.device)
        with torch.no_grad():
            # At the start alpha is about 1/2: the mixture has the scale of the convolution.
            spread = conv.weight.std()
            if keep_weights:
                noise = 0.1 * spread * torch.randn_like(self.conv.weight)
                self.conv.weight.copy_(conv.weight.flatten() * 2 / num_experts + noise)
                self.routing.weight.mul_(0.1)
                self.routing.bias.zero_()
            else:
                self.conv.weight.normal_().mul_(spread * 2 / num_experts**0.5)
            if conv.bias is not None:
                self.conv.bias.copy_(conv.bias * 2 / num_experts)

    def forward(self, x: Float[Tensor, "n in h w"]) -> Float[Tensor, "n out h2 w2"]:
        """The convolution, every image with its own kernel."""
        return self.conv(x, self.routing(x.mean((2, 3))).sigmoid())


def replace_convolutions(
    model: nn.Module, num_experts: int = 4, *, where: str | None = None, keep_weights: bool = False
) -> int:
    """Replace convolutions by mixtures, in place; returns how many were replaced.

    Args:
        model: any network of `torch.nn.Conv2d`.
        num_experts: kernels to mix in each, at least 2.
        where: regular expression; convolutions whose dotted name it finds, such as
            ``^blocks\\.[4-6]\\.``. None: the later half, as published networks do, without stem, head and
            squeeze-and-excitation.
        keep_weights: see `RoutedConv2d`.

    Raises:
        ValueError: fewer than 2 kernels, or nothing to replace.

    Example:
        >>> from vision.networks.own.small_resnet import SmallResNet
        >>> replace_convolutions(SmallResNet(10, width=4), num_experts=4, where=r"blocks\\.2\\.conv")
        2
    """
    if num_experts < 2:
        raise ValueError(f"condconv mixes at least 2 kernels, got {num_experts}")
    mixable = [path for path, m in model.named_modules() if _mixable(m)]
    if where is not None:
        chosen = found_by(where, mixable)
    else:
        chosen = [path for path in mixable[1:] if not re.search(_NOT_BY_DEFAULT, path)]
        chosen = chosen[len(chosen) // 2 :]
    if not chosen:
        raise ValueError(
            f"no convolution of {type(model).__name__} to replace"
            + (f" where {where!r} matches" if where is not None else "")
            + f"; it has {', '.join(mixable[:3]) or 'none'}{', ...' if len(mixable) > 3 else ''}"
        )
    for path in chosen:
        parent, _, child = path.rpartition(".")
        old = cast(nn.Conv2d, model.get_submodule(path))
        setattr(model.get_submodule(parent), child, RoutedConv2d(old, num_experts, keep_weights))
    return len(chosen)


def _mixable(module: nn.Module) -> bool:
    """Plain convolutions, and timm's that pad like TensorFlow's."""
    if type(module) is Conv2dSame:
        return True
    return type(module) is nn.Conv2d and module.padding_mode == "zeros"


_NOT_BY_DEFAULT = r"(^|\.)(se|stem|conv_stem|conv_head|head|classifier|fc)(\.|$)"
