"""Networks of one shape run together: their layers side by side, as grouped convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from coe_core import CoEError, count_macs
from vision.networks.size import with_zeros

# Multiply-adds of one network on the whole batch from which the plain loop is faster. Measured by
# benchmarks/divide.py: below, every layer is bound by the cost of calling it, which side by side is
# paid once; above, oneDNN's plain convolutions beat its grouped ones. On a GPU side by side won at every
# size that was measured, the largest of 384M.
SIDE_BY_SIDE_BELOW = 300e6
SIDE_BY_SIDE_BELOW_ON_CUDA = 400e6
_LEAST_IMAGES = 16  # a network too large for that many is always run in the loop

# Layers of which s side by side are one layer, and those that treat every channel alike. No dropout:
# the loop draws for every network anew, and how a network draws would have to be known.
_WIDENED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
_PER_CHANNEL = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.Identity, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten),
)
_CHECKED_IMAGES = 4


class Together:
    """Runs s networks, each on its own images or all on the same; side by side if they are alike. OURS.

    The networks stay as they are, with their own parameters; the wide network that holds them all
    exists only while it runs. Which way is taken depends on the size of the batch alone, so a
    resumed training repeats it.

    Args:
        members: s networks; those of different shapes always run in the loop.
        shape: (channels, side, side) of the images they take.

    Example:
        >>> members = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()) for _ in range(2)]
        >>> together = Together(members, (3, 8, 8))
        >>> together.wide is not None, together(torch.zeros(5, 3, 8, 8)).shape
        (True, torch.Size([5, 2, 4, 6, 6]))
    """

    def __init__(self, members: Sequence[nn.Module] | nn.ModuleList, shape: tuple[int, ...]):
        self.members = cast(Sequence[nn.Module], members)
        self.macs = 0
        self.wide: nn.Module | None = None
        self._frozen: tuple[list, nn.Module] | None = None
        members = self.members
        shapes = [[(name, t.shape) for name, t in m.state_dict().items()] for m in members]
        if len(members) > 1 and all(each == shapes[0] for each in shapes):
            self.wide = _widened(members[0], len(members))
        if self.wide is None:
            return
        try:
            single = with_zeros(deepcopy(members[0]).to("meta"), shape[1])
            like = next(single.parameters())
            image = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
            self.macs = count_macs(single, image)
            same = self.side_by_side(_LEAST_IMAGES) and _same(self.wide, members, shape)
        except (RuntimeError, AssertionError, ValueError, CoEError):
            same = False  # whether the members run at all is not judged here
        if not same:
            self.wide = None

    def side_by_side(self, num_images: int) -> bool:
        """Whether a batch of this size runs side by side rather than in a loop."""
        weights = next(self.members[0].parameters(), None)
        on_cuda = weights is not None and weights.is_cuda
        below = SIDE_BY_SIDE_BELOW_ON_CUDA if on_cuda else SIDE_BY_SIDE_BELOW
        return self.wide is not None and num_images * self.macs < below

    def __call__(
        self, images: Float[Tensor, "n ch h w"] | Sequence[Float[Tensor, "n ch h w"]]
    ) -> Float[Tensor, "n s ..."]:
        """Outputs of all networks.

        Args:
            images: the same for all networks, or a sequence of one batch for each.
        """
        views = [images] * len(self.members) if isinstance(images, Tensor) else images
        return torch.stack(self.each(views), 1)

    def each(self, views: Sequence[Float[Tensor, "_ ch h w"]]) -> list[Tensor]:
        """Output of each network on its own images; batches of different sizes run in the loop."""
        sizes = {len(view) for view in views}
        if self.wide is None or len(sizes) > 1 or not self.side_by_side(len(views[0])):
            return [m(x) for m, x in zip(self.members, views, strict=True)]
        if self.members[0].training or torch.is_grad_enabled():
            return list(run_side_by_side(self.wide, self.members, views).unbind(1))
        joined = self.inference_copy()(_stacked(views))
        return list(joined.unflatten(1, (len(views), -1)).unbind(1))

    def inference_copy(self) -> nn.Module:
        """The wide network with the members' present numbers, kept until one of these changes."""
        assert self.wide is not None, "these networks always run in the loop"
        tensors = [t for m in self.members for t in (*m.parameters(), *m.buffers())]
        state = [(t.data_ptr(), t._version, t.device) for t in tensors]
        if self._frozen is None or self._frozen[0] != state:
            joined = _joined([m.state_dict() for m in self.members])
            copy = deepcopy(self.wide)
            copy.load_state_dict(joined, assign=True)
            self._frozen = state, copy.eval().to(memory_format=torch.channels_last)
        return self._frozen[1]


def run_side_by_side(
    wide: nn.Module, members: Sequence[nn.Module] | nn.ModuleList, views: Sequence[Tensor]
) -> Tensor:
    """One pass of the wide network with the members' parameters; their running statistics are kept."""
    s = len(members)
    parameters = _joined([dict(m.named_parameters()) for m in members])
    buffers = [dict(m.named_buffers()) for m in members]
    joined = _joined(buffers)
    wide.train(members[0].training)
    outputs = functional_call(wide, (parameters, joined), (_stacked(views),))
    if wide.training:
        for name, value in joined.items():
            parts = value.chunk(s) if value.ndim else [value] * s
            for member, part in zip(buffers, parts, strict=True):
                member[name].copy_(part)
    return outputs.unflatten(1, (s, -1))


def _stacked(views: Sequence[Tensor]) -> Float[Tensor, "n s_ch h w"]:
    return torch.cat(list(views), 1).contiguous(memory_format=torch.channels_last)


def _joined(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all members behind one another; of numbers (counts of batches) the first."""
    names = states[0]
    return {
        name: torch.cat([state[name] for state in states])
        if names[name].ndim
        else names[name].clone()
        for name in names
    }


class _Linears(nn.Module):
    """s linear layers, each on its part of the features; without numbers."""

    def __init__(self, s: int, layer: nn.Linear):
        super().__init__()
        self.s = s
        out, features = layer.weight.shape
        self.weight = nn.Parameter(torch.empty(s * out, features, device="meta"))
        self.bias: nn.Parameter | None = None
        if layer.bias is not None:
            self.bias = nn.Parameter(torch.empty(s * out, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.unflatten(0, (self.s, -1))
        parts = torch.einsum("nsi,soi->nso", x.unflatten(1, (self.s, -1)), weight).flatten(1)
        return parts if self.bias is None else parts + self.bias


def _widened(network: nn.Module, s: int) -> nn.Module | None:
    """s copies of the network side by side, without numbers; None: it has layers that cannot be."""
    wide = deepcopy(network).to("meta")
    for parent, name, layer in list(_layers(wide)):
        new: nn.Module
        if type(layer) is nn.Conv2d:
            kernel, stride, padding, dilation = (
                cast(tuple[int, int], values)
                for values in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            )
            new = nn.Conv2d(
                s * layer.in_channels,
                s * layer.out_channels,
                kernel,
                stride,
                padding,
                dilation,
                s * layer.groups,
                layer.bias is not None,
                layer.padding_mode,
                device="meta",
            )
        elif type(layer) is nn.BatchNorm2d:
            new = nn.BatchNorm2d(
                s * layer.num_features,
                layer.eps,
                layer.momentum,
                layer.affine,
                layer.track_running_stats,
                device="meta",
            )
        elif type(layer) is nn.Linear:
            new = _Linears(s, layer)
        elif type(layer) in _PER_CHANNEL:
            continue
        else:
            return None
        setattr(parent, name, new)
    known = (_Linears, *_WIDENED)
    bare = [m for m in wide.modules() if not isinstance(m, known) and list(m.parameters(False))]
    return None if bare or type(wide) in (*_WIDENED, *_PER_CHANNEL) else wide


def _layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module without parts, with its parent and its name there."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if not list(child.children()):
                yield parent, name, child


@torch.no_grad()
def _same(
    wide: nn.Module, members: Sequence[nn.Module] | nn.ModuleList, shape: tuple[int, ...]
) -> bool:
    """Whether the wide network does what the members do: how they join their layers is not seen.

    Tried on copies with random numbers, since initial ones may hide a branch behind zeros, in training
    (running statistics too) and in evaluation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loop = [deepcopy(member).cpu().double() for member in members]
        for tensor in (t for m in loop for t in (*m.parameters(), *m.buffers())):
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        copies = deepcopy(loop)
        views = [torch.randn(_CHECKED_IMAGES, *shape, dtype=torch.float64) for _ in loop]
        for training in (True, False):
            for network in (*loop, *copies):
                network.train(training)
            alone = torch.stack([network(x) for network, x in zip(loop, views, strict=True)], 1)
            if not torch.allclose(alone, run_side_by_side(wide, copies, views)):
                return False
    kept = zip(nn.ModuleList(loop).buffers(), nn.ModuleList(copies).buffers(), strict=True)
    return all(torch.allclose(*pair) for pair in kept)
