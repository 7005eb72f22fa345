"""The trade-off curve: quality and cost at every threshold, on held-out data, in O(n log n)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from coe_core._checks import real


class TradeOffCurve(NamedTuple):
    """Every operating point there is, from no exits to all exits. m points, rising exit rate.

    ``threshold[0]`` is infinite: nothing exits. Samples with equal confidence exit together. All
    float64 on the CPU.
    """

    threshold: Float[Tensor, " m"]  # exit when confidence >= threshold; falling
    exit_rate: Float[Tensor, " m"]  # in [0, 1]
    quality: Float[Tensor, " m"]  # mean quality of the final predictions
    cost: Float[Tensor, " m"]  # mean cost per sample, in the unit of the costs given


def held_out(**arrays: Tensor) -> list[Tensor]:
    """The arrays in float64 on the CPU, checked: finite numbers, one per sample."""
    n = len(arrays["confidence"])
    if n == 0:
        raise ValueError("no samples to calibrate on; give held-out data")
    for name, array in arrays.items():
        if array.shape != (n,):
            raise ValueError(f"{name} has shape {tuple(array.shape)}, but there are {n} samples")
        if array.is_complex():
            raise ValueError(f"{name} must be real numbers, got {array.dtype}")
        bad = int((~torch.isfinite(array)).sum())
        if bad:
            raise ValueError(f"{name} holds {bad} values that are not finite of {n}")
    return [array.detach().cpu().double() for array in arrays.values()]


def trade_off_curve(
    confidence: Float[Tensor, " n"],
    rough_quality: Float[Tensor, " n"],
    expert_quality: Float[Tensor, " n"],
    delegator_cost: float,
    expert_cost: float | Float[Tensor, " n"],
) -> TradeOffCurve:
    """Quality and cost at every threshold: sort by confidence and accumulate. Method section 5.

    Args:
        confidence: of the rough predictions, on held-out data.
        rough_quality: of the rough prediction of each sample (1 right, 0 wrong; or any score).
        expert_quality: of the selected expert's prediction of each sample.
        delegator_cost: MACs, milliseconds, ...: paid for every sample.
        expert_cost: of the selected expert: one number, or one per sample. Paid by those that stay.

    Raises:
        ValueError: no samples, shapes that disagree, or values that are not finite.

    Example:
        >>> curve = trade_off_curve(
        ...     torch.tensor([0.9, 0.6]), torch.tensor([1.0, 0.0]), torch.ones(2), 1.0, 10.0
        ... )
        >>> curve.exit_rate.tolist(), curve.quality.tolist(), curve.cost.tolist()
        ([0.0, 0.5, 1.0], [1.0, 1.0, 0.5], [11.0, 6.0, 1.0])
    """
    confidence, rough_quality, expert_quality = held_out(
        confidence=confidence, rough_quality=rough_quality, expert_quality=expert_quality
    )
    return corpus_trade_off_curve(
        confidence,
        rough_quality[:, None],
        expert_quality[:, None],
        lambda sums: sums[:, 0] / len(confidence),
        delegator_cost,
        expert_cost,
    )


def corpus_trade_off_curve(
    confidence: Float[Tensor, " n"],
    rough_statistics: Float[Tensor, "n d"],
    expert_statistics: Float[Tensor, "n d"],
    quality: Callable[[Float[Tensor, "m d"]], Float[Tensor, " m"]],
    delegator_cost: float,
    expert_cost: float | Float[Tensor, " n"],
) -> TradeOffCurve:
    """As `trade_off_curve`, for a quality of the whole corpus that is no mean over samples. OURS.

    BLEU, chrF or F1 are functions of counts that add up over samples. The counts of every operating
    point come from two cumulative sums along the sorted confidences, so all points cost O(n log n),
    whatever ``quality`` makes of the sums.

    Args:
        confidence: of the rough predictions, on held-out data.
        rough_statistics: of the rough prediction of each sample: numbers that add up, such as counts
            of matching n-grams. Sums of whole numbers below 2**53 are exact.
        expert_statistics: of the selected expert's prediction of each sample.
        quality: sums over all samples, one row for each operating point -> its quality.
        delegator_cost: MACs, milliseconds, ...: paid for every sample (a mean, if it varies).
        expert_cost: of the selected expert: one number, or one per sample. Paid by those that stay.

    Raises:
        ValueError: no samples, shapes that disagree, or values (also sums) that are not finite.

    Example:
        >>> rough = torch.tensor([[1.0, 2.0], [0.0, 2.0]])  # right words, words
        >>> expert = torch.tensor([[2.0, 2.0], [2.0, 3.0]])
        >>> precision = lambda sums: sums[:, 0] / sums[:, 1]
        >>> curve = corpus_trade_off_curve(torch.tensor([0.9, 0.6]), rough, expert, precision, 1.0, 10.0)
        >>> curve.quality.tolist()
        [0.8, 0.6..., 0.25]
    """
    n = len(confidence)
    expert_cost = torch.as_tensor(expert_cost, dtype=torch.float64)
    confidence, expert_cost = held_out(
        confidence=confidence,
        expert_cost=expert_cost.expand(n) if expert_cost.ndim == 0 else expert_cost,
    )
    rough, expert = (
        rough_statistics.detach().cpu().double(),
        expert_statistics.detach().cpu().double(),
    )
    if rough.shape != expert.shape or rough.shape[:1] != (n,):
        raise ValueError(
            f"rough_statistics {tuple(rough.shape)} and expert_statistics {tuple(expert.shape)} must be "
            f"equal, with a row for each of {n} samples"
        )
    bad = int((~torch.isfinite(rough)).sum() + (~torch.isfinite(expert)).sum())
    if bad:
        raise ValueError(f"the statistics hold {bad} values that are not finite")
    if delegator_cost != delegator_cost or not math.isfinite(
        real("delegator_cost", delegator_cost)
    ):
        raise ValueError(f"delegator_cost must be finite, got {delegator_cost}")
    order = torch.argsort(confidence, descending=True, stable=True)
    ordered = confidence[order]
    # Prefix m exits; a prefix counts only where the next confidence is lower (ties leave together).
    last_of_tie = torch.ones(n, dtype=torch.bool)
    last_of_tie[:-1] = ordered[1:] < ordered[:-1]
    ends = torch.cat([torch.zeros(1, dtype=torch.long), torch.nonzero(last_of_tie).flatten() + 1])

    def of_exits(values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values[:1]), values[order].cumsum(0)])[ends]

    def of_the_rest(values: Tensor) -> Tensor:  # summed from the end, so exactly 0 if all exit
        return torch.cat([values[order].flip(0).cumsum(0).flip(0), torch.zeros_like(values[:1])])[
            ends
        ]

    reached = quality(of_exits(rough) + of_the_rest(expert))
    if reached.shape != ends.shape:
        raise ValueError(
            f"quality gave {tuple(reached.shape)} for {len(ends)} operating points; one number each is due"
        )
    cost = delegator_cost + of_the_rest(expert_cost) / n
    for name, values in (("quality", reached), ("cost", cost)):
        bad = int((~values.isfinite()).sum())
        if bad:
            raise ValueError(
                f"{name} is not finite at {bad} of {len(ends)} operating points: sums over {n} samples "
                "overflow, or the quality is not defined there"
            )
    threshold = torch.cat([torch.tensor([torch.inf], dtype=torch.float64), ordered])[ends]
    return TradeOffCurve(threshold, ends.double() / n, reached.double(), cost)
