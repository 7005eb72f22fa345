"""PWLU: piecewise linear activations whose shape is learned, per channel or per layer."""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from coe_core.distributed import in_process_group
from vision.networks.pwlu.operator import piecewise_linear, plain_piecewise_linear

REACH = 3.0  # bounds are this many standard deviations from the mean
MOMENTUM = 0.1  # of a batch in the running statistics
NARROWEST = 1e-3  # distance of the bounds


class PWLU(nn.Module):
    """A learned activation: N linear pieces between two bounds, a line beyond each. PAPER (method, 8).

    It has two phases. In the *statistics* phase it is a frozen ReLU that keeps the running mean and
    deviation of what it sees in training. `start_learning` sets the bounds to mean -/+ 3 deviations,
    the values at the N + 1 knots back to ReLU's, and from there on everything is learned. The phase is a
    buffer: it is part of every checkpoint. Parameters are vectors (the knots of all channels
    behind one another), which optimisers like timm's spare from weight decay; in the statistics phase their
    gradient is 0, not missing.

    Args:
        num_channels: one function for each; None: one for the whole layer.
        intervals: N, at least 1.
        dim: of the channels in the input; not used with one function for the layer.

    Raises:
        ValueError: intervals or num_channels below 1.

    Example:
        >>> act = PWLU(num_channels=2, intervals=2)
        >>> act.start_learning()
        >>> act(torch.tensor([[-4.0, 1.5], [0.0, 9.0]])).tolist()
        [[0.0, 1.5], [0.0, 9.0]]
    """

    running_mean: Tensor
    running_std: Tensor
    learning: Tensor

    def __init__(self, num_channels: int | None = None, intervals: int = 16, dim: int = 1):
        super().__init__()
        if intervals < 1 or (num_channels is not None and num_channels < 1):
            raise ValueError(
                "pwlu: intervals and num_channels must be at least 1, got "
                f"{intervals} and {num_channels}"
            )
        self.num_channels, self.intervals, self.dim = num_channels, intervals, dim
        count = num_channels or 1
        self.left = nn.Parameter(torch.empty(count))
        self.right = nn.Parameter(torch.empty(count))
        self.knots = nn.Parameter(torch.empty(count * (intervals + 1)))
        self.left_slope = nn.Parameter(torch.empty(count))
        self.right_slope = nn.Parameter(torch.empty(count))
        self.register_buffer("running_mean", torch.zeros(count))
        self.register_buffer("running_std", torch.ones(count))
        self.register_buffer("learning", torch.zeros((), dtype=torch.bool))
        self._learning = False  # the buffer's value: reading that would wait for the device
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """Bounds from the statistics, and ReLU between and beyond them."""
        reach = (REACH * self.running_std).clamp(min=NARROWEST)
        self.left.copy_(self.running_mean - reach)
        self.right.copy_(self.running_mean + reach)
        part = torch.linspace(0, 1, self.intervals + 1, device=self.left.device)
        knots = self.left[:, None] + part * (self.right - self.left)[:, None]
        self.knots.copy_(knots.relu().flatten())
        self.left_slope.zero_()
        self.right_slope.fill_(1)

    def start_learning(self) -> None:
        """End the statistics phase; on all ranks alike, from the statistics of all of them."""
        if in_process_group():
            moments = torch.stack(
                [self.running_mean, self.running_std.square() + self.running_mean.square()]
            )
            dist.all_reduce(moments)
            mean, square = moments / dist.get_world_size()
            self.running_mean.copy_(mean)
            self.running_std.copy_((square - mean.square()).clamp(min=0).sqrt())
        self._reset()
        self.learning.fill_(True)
        self._learning = True

    @property
    def is_learning(self) -> bool:
        """Whether the statistics phase is over."""
        return self._learning

    def forward(self, x: Float[Tensor, " *any"]) -> Float[Tensor, " *any"]:
        """The activation of every element; same shape, dtype and memory format."""
        if self._learning:
            knots = self.knots.view(-1, self.intervals + 1)
            # Bounds that meet would leave no intervals.
            right = torch.maximum(self.right, self.left + NARROWEST)
            parameters = self.left, right, knots, self.left_slope, self.right_slope
            dim = None if self.num_channels is None else self.dim
            if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
                return plain_piecewise_linear(x, *parameters, dim)
            return piecewise_linear(x, *parameters, dim)
        if not self.training:
            return x.relu()
        self._measure(x.detach())
        return _FrozenReLU.apply(x, *self.parameters())

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        dims = list(range(x.ndim))
        if self.num_channels is not None:
            del dims[self.dim]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        self.running_mean.lerp_(mean.reshape(-1).to(self.running_mean.dtype), MOMENTUM)
        self.running_std.lerp_(variance.sqrt().reshape(-1).to(self.running_std.dtype), MOMENTUM)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if (stored := state_dict.get(f"{prefix}learning")) is not None:
            self._learning = bool(stored)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, intervals={self.intervals}, learning={self._learning}"


class _FrozenReLU(torch.autograd.Function):
    """ReLU with gradients of 0 for parameters that take no part yet."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y, *parameters)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        y, *parameters = ctx.saved_tensors
        return gradient * (y > 0), *(torch.zeros_like(p) for p in parameters)


def start_learning(network: nn.Module) -> list[PWLU]:
    """End the statistics phase of every PWLU of a network that is still in it.

    Returns:
        Those that were.

    Example:
        >>> len(start_learning(nn.Sequential(PWLU(3), nn.Linear(3, 3), PWLU())))
        2
    """
    waiting = [m for m in network.modules() if isinstance(m, PWLU) and not m.is_learning]
    for module in waiting:
        module.start_learning()
    return waiting
