"""Networks of conditional computation, after their papers, in one family of blocks; own, untrained.

A block is a depthwise 3 x 3 convolution and a perceptron of two 1 x 1 convolutions with a residual path.
Every variant changes only the perceptron, or who runs the block. Routers compute in full; what they choose is
then drawn (`drawn`: one tensor a block), since untrained routers choose at no stated rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

CLASSES, KERNELS, EXPERTS = 1000, 4, 4
DEPTHS = (2, 4, 3)  # blocks at a quarter, an eighth, a sixteenth of the image's side
WIDEN = 4  # a perceptron's hidden channels for each channel

Way = Literal["published", "fast"]


def drawn_instead(scores: Tensor, drawn: Tensor) -> Tensor:
    """The drawn scores, after those of the router, which no compiler may leave out."""
    return scores * 0 + drawn


class Perceptron(nn.Module):
    """Two 1 x 1 convolutions with an activation: the plain network's."""

    routes = 0  # scores that are drawn for an image (or a position)

    def __init__(self, channels: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or WIDEN * channels
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.narrow = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        return self.narrow(self.widen(x).relu())


class MixedConv2d(nn.Module):
    """A 1 x 1 convolution whose kernel is a mixture for every image: CondConv, dynamic convolution.

    Args:
        dynamic: Chen et al. (2020): weights are a softmax (temperature 30) of two layers; else Yang et
            al. (2019): sigmoids of one.
        way: "published": one convolution whose groups are the images; "fast": a batched matrix product.
    """

    def __init__(self, channels: int, out: int, dynamic: bool, way: Way):
        super().__init__()
        self.dynamic, self.way = dynamic, way
        self.weight = nn.Parameter(torch.randn(KERNELS, out * channels) * channels**-0.5)
        self.bias = nn.Parameter(torch.zeros(KERNELS, out))
        self.attend: nn.Module = nn.Linear(channels, KERNELS)
        if dynamic:
            layers = (
                nn.Linear(channels, channels // 4),
                nn.ReLU(),
                nn.Linear(channels // 4, KERNELS),
            )
            self.attend = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        mix = self.attend(x.mean((2, 3)))
        mix = (mix / 30).softmax(1) if self.dynamic else mix.sigmoid()
        weight, bias = mix @ self.weight, mix @ self.bias
        if self.way == "published":
            kernels = weight.view(-1, channels, 1, 1)
            grouped = x.reshape(1, n * channels, height, width)
            return conv2d(grouped, kernels, bias.flatten(), groups=n).view(n, -1, height, width)
        rows = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        kernels = weight.view(n, -1, channels).transpose(1, 2)
        out = torch.baddbmm(bias[:, None], rows, kernels)
        return out.view(n, height, width, -1).permute(0, 3, 1, 2)


class MixedPerceptron(Perceptron):
    def __init__(self, channels: int, dynamic: bool, way: Way):
        super().__init__(channels)
        self.widen = MixedConv2d(channels, WIDEN * channels, dynamic, way)
        self.narrow = MixedConv2d(WIDEN * channels, channels, dynamic, way)


class ExpertsPerceptron(nn.Module):
    """Top-1 mixture of perceptrons (Switch, Fedus et al. 2021), chosen for each image or position.

    Rows are gathered by expert and put back; none is dropped.
    """

    routes = EXPERTS

    def __init__(self, channels: int, by_position: bool):
        super().__init__()
        self.by_position = by_position
        self.router = nn.Linear(channels, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, WIDEN * channels),
                nn.ReLU(),
                nn.Linear(WIDEN * channels, channels),
            )
            for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor, drawn: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)
        n, height, width, channels = rows.shape
        if self.by_position:
            rows = rows.reshape(-1, channels)
            scores, drawn = self.router(rows), drawn.reshape(-1, EXPERTS)
        else:
            scores = self.router(rows.mean((1, 2)))
        gate, choice = drawn_instead(scores, drawn).softmax(-1).max(-1)
        out = torch.empty_like(rows)
        for j, expert in enumerate(self.experts):
            index = (choice == j).nonzero().flatten()
            out.index_copy_(0, index, expert(rows.index_select(0, index)))
        out = out * gate.view(-1, *(1 for _ in out.shape[1:]))
        return out.view(n, height, width, channels).permute(0, 3, 1, 2)


class GatedPerceptron(Perceptron):
    """Half of the hidden channels of every image are kept (Gao et al. 2019): by a mask, as published.

    All are computed; the papers count half.
    """

    def __init__(self, channels: int, kept: float = 0.5):
        super().__init__(channels)
        self.kept = kept
        self.gate = nn.Linear(channels, WIDEN * channels)

    def forward(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        scores = self.gate(x.mean((2, 3))).relu()
        kept = scores.topk(round(self.kept * scores.shape[1]), 1)
        mask = torch.zeros_like(scores).scatter(1, kept.indices, kept.values)
        return self.narrow(self.widen(x).relu() * mask[:, :, None, None])


class Block(nn.Module):
    """Depthwise convolution and perceptron on a residual path."""

    def __init__(self, channels: int, perceptron: nn.Module):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.perceptron = perceptron
        self.routes = perceptron.routes

    def body(self, x: Tensor, drawn: Tensor | None) -> Tensor:
        return self.perceptron(self.norm(self.depthwise(x)), drawn)

    def forward(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        return x + self.body(x, drawn)


class SkippedBlock(Block):
    """A block that a gate skips for some images (SkipNet, Wang et al. 2018).

    Args:
        masked: compute it for all and mask, as it is published; else only those that stay run it.
    """

    def __init__(self, channels: int, masked: bool):
        super().__init__(channels, Perceptron(channels))
        self.masked, self.routes = masked, 1
        self.gate = nn.Linear(channels, 1)

    def forward(self, x: Tensor, drawn: Tensor) -> Tensor:
        runs = drawn_instead(self.gate(x.mean((2, 3))), drawn)[:, 0] > 0
        if self.masked:
            return x + runs.to(x.dtype)[:, None, None, None] * self.body(x, None)
        index = runs.nonzero().flatten()
        rows = x.permute(0, 2, 3, 1)  # index_select forgets channels_last
        some = rows.index_select(0, index).permute(0, 3, 1, 2)
        ran = (some + self.body(some, None)).permute(0, 2, 3, 1)
        return rows.index_copy(0, index, ran).permute(0, 3, 1, 2)


class Conditional(nn.Module):
    """Stem, three stages, classifier.

    Args:
        width: channels of the first stage; the others have twice and four times as many.
        make: (channels, number of the block) -> block.
        outputs: of the classifier.
    """

    def __init__(
        self, width: int, make: Callable[[int, int], Block] | None = None, outputs: int = CLASSES
    ):
        super().__init__()
        make = make or (lambda channels, _: Block(channels, Perceptron(channels)))
        widths = [width, 2 * width, 4 * width]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width))
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in pairwise(widths))
        number, self.stages = 0, nn.ModuleList()
        for channels, depth in zip(widths, DEPTHS, strict=True):
            blocks = [make(channels, number + i) for i in range(depth)]
            self.stages.append(nn.ModuleList(blocks))
            number += depth
        self.head = nn.Linear(widths[-1], outputs)

    @property
    def routes(self) -> list[int]:
        """Scores to draw, block by block; 0: none."""
        return [block.routes for stage in self.stages for block in stage]

    def forward(self, x: Tensor, drawn: Sequence[Tensor] = ()) -> Tensor:
        scores = iter(drawn)
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.downs[number - 1](x)
            for block in stage:
                x = block(x, next(scores)) if block.routes else block(x)
        return self.head(x.mean((2, 3)))


class Stage(nn.Module):
    """One of three parts of a multi-exit network: features and logits (MSDNet, BranchyNet)."""

    def __init__(self, network: Conditional, number: int):
        super().__init__()
        self.first = network.stem if number == 0 else network.downs[number - 1]
        self.blocks = nn.Sequential(*network.stages[number])
        channels = self.blocks[-1].norm.num_features
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.blocks(self.first(x))
        return features, self.head(features.mean((2, 3)))
