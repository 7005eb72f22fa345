"""Experts only where they learn: each runs on its portion and on a drawn part of the rest (OURS)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coe_core._checks import whole


class Drawn(NamedTuple):
    """Which experts run on which samples of a batch."""

    portion: Int[Tensor, " n"]  # the expert of whose portion each sample is; it always runs
    by_all: Bool[Tensor, " n"]  # drawn: every expert runs
    runs: Bool[Tensor, "n k"]
    factor: Float[
        Tensor, "n k"
    ]  # on the weight (W2): 1 within the portion, 1 / chance or 0 outside

    def rows(self) -> list[Int[Tensor, " m"]]:
        """The samples of each expert, in the order of the batch."""
        return [column.nonzero()[:, 0] for column in self.runs.unbind(1)]


def draw_rest(
    portion: Int[Tensor, " n"],
    num_experts: int,
    rate: float,
    generator: torch.Generator | None = None,
) -> Drawn:
    """Draw the samples that all experts see; the others are seen by the expert of their portion alone.

    OURS. With the focus r of (W2) an expert's loss weighs (1 - r) on the samples outside its portion and
    (1 - r) + r k within: most of its work is for a small part of its gradient. A part ``rate`` of every
    portion is drawn for all, and weighs 1 / its chance with the other experts, so the expected loss is
    that of all samples. A step costs (1 + (k - 1) rate) / k of what it did.

    Portions whose sizes differ by one at most leave equally many samples undrawn, so all experts run on
    equally many.

    Args:
        portion: the expert that each sample is given to, in [0, k); on any device.
        num_experts: k.
        rate: part of each portion that is drawn, in (0, 1]; of a portion that is not empty one at least.
        generator: of random numbers on the CPU; None: torch's own.

    Raises:
        ValueError: a rate outside (0, 1], no experts, or a portion that names none of them.

    Example:
        >>> drawn = draw_rest(torch.tensor([0, 0, 1, 1]), num_experts=2, rate=0.5)
        >>> drawn.by_all.sum().item(), drawn.runs.sum(0).tolist()  # 3 of 4 samples each, not all 4
        (2, [3, 3])
    """
    whole("num_experts", num_experts, least=1)
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be in (0, 1], got {rate}")
    on_cpu = portion.detach().long().cpu()
    if on_cpu.numel() and not 0 <= int(on_cpu.min()) <= int(on_cpu.max()) < num_experts:
        raise ValueError(
            f"portion holds experts {int(on_cpu.min())}..{int(on_cpu.max())}, "
            f"but there are {num_experts} experts (0..{num_experts - 1})"
        )
    sizes = torch.bincount(on_cpu, minlength=num_experts)
    even = int(sizes.max()) - int(sizes.min()) <= 1
    least = sizes.min().expand(num_experts) if even else sizes
    undrawn = torch.minimum(((1 - rate) * least).round().long(), (least - 1).clamp(min=0))
    shuffled = torch.randperm(len(on_cpu), generator=generator)
    by_portion = shuffled[on_cpu[shuffled].argsort(stable=True)]
    place = torch.arange(len(on_cpu)) - (sizes.cumsum(0) - sizes)[on_cpu[by_portion]]
    by_all = torch.ones_like(on_cpu, dtype=torch.bool)
    by_all[by_portion] = place >= undrawn[on_cpu[by_portion]]
    chance = (sizes - undrawn) / sizes.clamp(min=1)
    own = torch.nn.functional.one_hot(on_cpu, num_experts).bool()
    factor = torch.where(own, 1.0, (by_all / chance[on_cpu])[:, None])
    device = portion.device
    runs = own | by_all[:, None]
    return Drawn(portion, by_all.to(device), runs.to(device), factor.to(device))


def check_sample_rest(rate: float, scores: str, held_out: float, agreement_weight: float) -> None:
    """Raise a ValueError for a rate outside (0, 1], or for what needs every expert on every sample."""
    if not 0 < rate <= 1:
        raise ValueError(f"sample_rest must be in (0, 1], got {rate}")
    if rate == 1:
        return
    if scores in ("evidence", "sum"):
        raise ValueError(
            f"sample_rest: scores {scores!r} need what every expert says of every sample before portions "
            "are cut; take scores 'selection'"
        )
    for name, value in (("held_out", held_out), ("agreement_weight", agreement_weight)):
        if value > 0:
            raise ValueError(
                f"sample_rest: {name} {value} needs every expert on every sample; set it to 0"
            )
