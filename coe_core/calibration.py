"""Thresholds for a stated aim, and the weight of the rough prediction: fitted on held-out data."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from coe_core._checks import check_targets, real
from coe_core.errors import AimNotReachableError
from coe_core.trade_off import TradeOffCurve, held_out, trade_off_curve

LARGEST_LOSS = 1e100  # of one sample, in nats; no logits of a network come near it
AimKind = Literal["best", "macs", "latency", "accuracy_drop", "accuracy"]


def fit_threshold(curve: TradeOffCurve, aim: AimKind, value: float | None = None) -> int:
    """Index of the curve's point that serves the aim best.

    - ``"best"``: highest quality; the cheapest of equals.
    - ``"macs"``, ``"latency"``: highest quality whose mean cost is at most ``value`` (the curve's
      cost must be in that unit); the cheapest of equals.
    - ``"accuracy_drop"``: the cheapest whose quality is at most ``value`` below that of no exits.
    - ``"accuracy"``: the cheapest whose quality is at least ``value``.

    Raises:
        ValueError: unknown aim, its value missing or no number, or a curve that is empty or not finite.
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
    quality, cost = curve.quality, curve.cost
    if len(cost) == 0 or not bool((quality.isfinite() & cost.isfinite()).all()):
        raise ValueError(
            f"a curve of {len(cost)} points, some of them not finite, has no best one; see trade_off_curve"
        )
    if aim == "best":
        value = 0.0  # it has none
    elif value is None or value != value:
        raise ValueError(f"aim {aim!r} needs a value")
    else:
        value = real(f"the value of aim {aim!r}", value)
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
    top = torch.nonzero(allowed & (score >= score.max() - slack * score.max().abs())).flatten()
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
        >>> confidence = torch.linspace(0, 1, 1000)
        >>> round(controlled_threshold(confidence, (confidence > 0.5).float(), torch.ones(1000), 0.05), 2)
        0.46
    """
    from scipy.stats import binom

    for name, value in (("drop", drop), ("guarantee", guarantee)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    confidence, rough_quality, expert_quality = held_out(
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
        ValueError: no samples, shapes that disagree, logits that are not finite, or labels that are no
            classes.

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
    check_targets(target, *rough_logits.shape)
    for name, logits in (("rough_logits", rough_logits), ("expert_logits", expert_logits)):
        bad = int((~logits.isfinite()).any(1).sum())
        if bad:
            raise ValueError(
                f"{name} are not finite in {bad} of {len(logits)} samples; the network has diverged: train "
                "it with a lower learning rate"
            )
    rough, expert = (
        logits.double().log_softmax(1).clamp(min=-LARGEST_LOSS)  # else 0 times infinity is NaN
        for logits in (rough_logits, expert_logits)
    )

    def loss(weight: float) -> float:
        return float(cross_entropy(expert + weight * rough, target.long()))

    best = minimize_scalar(loss, bounds=(0.0, 4.0), method="bounded", options={"xatol": 1e-4})
    return float(best.x) if best.fun < loss(0.0) else 0.0
