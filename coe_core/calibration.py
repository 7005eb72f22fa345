"""Thresholds for a stated aim, fitted on held-out data: all of them at once, O(n log n)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from coe_core.errors import AimNotReachableError

Aim = Literal["best", "macs", "latency", "accuracy_drop", "accuracy"]


class TradeOffCurve(NamedTuple):
    """Every operating point there is, from no exits to all exits. m points, rising exit rate.

    ``threshold[0]`` is infinite: nothing exits. Samples with equal confidence exit together. All
    float64 on the CPU.
    """

    threshold: Float[Tensor, " m"]  # exit when confidence >= threshold; falling
    exit_rate: Float[Tensor, " m"]  # in [0, 1]
    quality: Float[Tensor, " m"]  # mean quality of the final predictions
    cost: Float[Tensor, " m"]  # mean cost per sample, in the unit of the costs given


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with its provenance, to be stored beside the model.

    Higher thresholds mean fewer exits, more computation, and usually better predictions.

    Example:
        >>> point = OperatingPoint(
        ...     "fast", 0.7, "macs", 2e8, 0.26, 0.807, 1.94e8, "macs", 5000, "validation", "2026-01-01"
        ... )
        >>> OperatingPoint.from_dict(point.to_dict()) == point
        True
    """

    name: str
    threshold: float  # exit when confidence >= threshold; infinite: nothing exits
    aim: str  # what it was fitted for
    value: float | None  # the aim's value: a budget, a drop, a quality
    exit_rate: float  # reached on the calibration data
    quality: float  # reached on the calibration data
    cost: float  # reached on the calibration data: mean per sample
    cost_unit: str  # "macs" or "ms"
    num_samples: int  # calibration samples
    data: str  # which data
    date: str  # ISO date of the fit
    guarantee: float | None = None  # probability with which the aim holds, if one was asked for
    rough_weight: float = 0.0  # of the rough logits in the final prediction, see `fit_rough_weight`

    def to_dict(self) -> dict:
        """Plain values for a JSON file; an infinite threshold becomes a string, "inf" or "-inf"."""
        fields = asdict(self)
        if math.isinf(self.threshold):
            fields["threshold"] = str(self.threshold)
        return fields

    @classmethod
    def from_dict(cls, fields: dict) -> OperatingPoint:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field that is missing or unknown.
        """
        known = {field.name for field in dataclass_fields(cls)}
        missing, unknown = known - {"guarantee", "rough_weight"} - set(fields), set(fields) - known
        if missing or unknown:
            raise ValueError(
                f"not an operating point: missing fields {sorted(missing)}, unknown fields "
                f"{sorted(unknown)}; was it written by another version?"
            )
        return cls(**{**fields, "threshold": float(fields["threshold"])})


def _held_out(**arrays: Tensor) -> list[Tensor]:
    """The arrays in float64 on the CPU, checked: finite numbers, one per sample."""
    n = len(arrays["confidence"])
    if n == 0:
        raise ValueError("no samples to calibrate on; give held-out data")
    for name, array in arrays.items():
        if array.shape != (n,):
            raise ValueError(f"{name} has shape {tuple(array.shape)}, but there are {n} samples")
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
    confidence, rough_quality, expert_quality = _held_out(
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
        ValueError: no samples, shapes that disagree, or values that are not finite.

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
    confidence, expert_cost = _held_out(
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
    if not math.isfinite(delegator_cost):
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
    threshold = torch.cat([torch.tensor([torch.inf], dtype=torch.float64), ordered])[ends]
    return TradeOffCurve(threshold, ends.double() / n, reached.double(), cost)


def fit_threshold(curve: TradeOffCurve, aim: Aim, value: float | None = None) -> int:
    """Index of the curve's point that serves the aim best.

    - ``"best"``: highest quality; the cheapest of equals.
    - ``"macs"``, ``"latency"``: highest quality whose mean cost is at most ``value`` (the curve's
      cost must be in that unit); the cheapest of equals.
    - ``"accuracy_drop"``: the cheapest whose quality is at most ``value`` below that of no exits.
    - ``"accuracy"``: the cheapest whose quality is at least ``value``.

    Raises:
        ValueError: unknown aim, or its value missing.
        AimNotReachableError: no point reaches it; says what can be reached.

    Example:
        >>> curve = trade_off_curve(
        ...     torch.tensor([0.9, 0.6]), torch.tensor([1.0, 0.0]), torch.ones(2), 1.0, 10.0
        ... )
        >>> round(curve.threshold[fit_threshold(curve, "macs", 6.0)].item(), 3)
        0.9
    """
    if aim not in ("best", "macs", "latency", "accuracy_drop", "accuracy"):
        raise ValueError(
            f"unknown aim {aim!r}; known: 'best', 'macs', 'latency', 'accuracy_drop', 'accuracy'"
        )
    if aim != "best" and (value is None or math.isnan(value)):
        raise ValueError(f"aim {aim!r} needs a value")
    quality, cost = curve.quality, curve.cost
    slack = 1e-12  # sums in another order differ by rounding
    if aim == "best":
        allowed = torch.ones_like(cost, dtype=torch.bool)
    elif aim in ("macs", "latency"):
        allowed = cost <= value * (1 + slack)
        if not bool(allowed.any()):
            raise AimNotReachableError(
                f"a mean cost of {value:g} is below the delegator's own {float(cost.min()):g}, which "
                "every sample pays; raise the budget or train a smaller delegator"
            )
    else:
        least = float(quality[0]) - value if aim == "accuracy_drop" else value
        allowed = quality >= least - slack * max(1.0, abs(least))
        if not bool(allowed.any()):
            raise AimNotReachableError(
                f"quality {least:g} is not reached at any threshold; the best on this data is "
                f"{float(quality.max()):g} at exit rate {float(curve.exit_rate[quality.argmax()]):.3f}"
            )
    if aim in ("accuracy_drop", "accuracy"):
        score = torch.where(allowed, -cost, -torch.inf)
        tie_break = quality
    else:
        score = torch.where(allowed, quality, -torch.inf)
        tie_break = -cost
    top = torch.nonzero(score >= score.max() - slack * score.max().abs()).flatten()
    return int(top[tie_break[top].argmax()])


def controlled_threshold(
    confidence: Float[Tensor, " n"],
    rough_quality: Float[Tensor, " n"],
    expert_quality: Float[Tensor, " n"],
    drop: float,
    guarantee: float = 0.95,
) -> float:
    """Lowest threshold for which the accuracy drop is at most ``drop`` with the stated probability. OURS.

    The drop is bounded by the rate of harmful exits, samples that end with a wrong rough prediction
    where the expert was right. Thresholds are tested from high to low, each with the exact binomial
    test at level 1 - guarantee, and the walk stops at the first that fails. The rate of harmful
    exits can only rise on the way, and so can their count: going too far needs the test to err at
    the one threshold where the rate passes ``drop``, so no correction for many tests is needed.
    Holds for new samples drawn like the calibration data, whatever the model.

    Args:
        confidence: of the rough predictions, on held-out data.
        rough_quality: 1 where the rough prediction is right, else 0.
        expert_quality: 1 where the selected expert is right, else 0.
        drop: largest accuracy drop, in (0, 1).
        guarantee: probability, in (0, 1), over calibration sets.

    Returns:
        The threshold; infinite (no exits) if the data are too few to guarantee anything.

    Raises:
        ValueError: drop or guarantee outside (0, 1), no samples, shapes that disagree, confidences
            that are not finite, or qualities other than 0 and 1.

    Example:
        >>> sure = torch.linspace(0, 1, 1000)
        >>> round(controlled_threshold(sure, (sure > 0.5).float(), torch.ones(1000), 0.05), 2)
        0.46
    """
    from scipy.stats import binom

    for name, value in (("drop", drop), ("guarantee", guarantee)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    confidence, rough_quality, expert_quality = _held_out(
        confidence=confidence, rough_quality=rough_quality, expert_quality=expert_quality
    )
    for name, array in (("rough_quality", rough_quality), ("expert_quality", expert_quality)):
        if not bool(((array == 0) | (array == 1)).all()):
            raise ValueError(f"{name} must be 1 (right) or 0 (wrong) for every sample")
    harmful = ((rough_quality == 0) & (expert_quality == 1)).double()
    curve = trade_off_curve(confidence, harmful, torch.zeros_like(harmful), 0.0, 0.0)
    n = len(confidence)
    count = (curve.quality * n).round()
    passes = torch.from_numpy(binom.cdf(count.numpy(), n, drop)) <= 1 - guarantee
    failed = torch.nonzero(~passes).flatten()
    last = len(passes) - 1 if len(failed) == 0 else int(failed[0]) - 1
    return float(curve.threshold[last]) if last >= 0 else math.inf


def fit_rough_weight(
    rough_logits: Float[Tensor, "n c"],
    expert_logits: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
) -> float:
    """Weight w of the rough prediction in expert_logits + w * rough_logits. OURS.

    The rough prediction is paid for when an expert runs; log-linear pooling uses it. The held-out
    negative log-likelihood is convex in w; its minimum over [0, 4] is returned.

    Args:
        rough_logits: of the delegator, on held-out data.
        expert_logits: of the selected expert, on the same samples.
        target: labels.

    Raises:
        ValueError: no samples, or shapes that disagree.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> fit_rough_weight(-logits, logits, torch.tensor([0, 1]))  # a rough prediction that misleads
        0.0
    """
    from scipy.optimize import minimize_scalar

    if rough_logits.shape != expert_logits.shape or rough_logits.shape[:1] != target.shape:
        raise ValueError(
            f"rough_logits {tuple(rough_logits.shape)}, expert_logits {tuple(expert_logits.shape)} and "
            f"target {tuple(target.shape)} must agree"
        )
    if len(target) == 0:
        raise ValueError("no samples to fit on; give held-out data")
    rough, expert = rough_logits.double().log_softmax(1), expert_logits.double().log_softmax(1)

    def loss(weight: float) -> float:
        return float(cross_entropy(expert + weight * rough, target))

    best = minimize_scalar(loss, bounds=(0.0, 4.0), method="bounded", options={"xatol": 1e-4})
    return float(best.x) if best.fun < loss(0.0) else 0.0
