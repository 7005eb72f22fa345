"""What a prediction may cost: a stored operating point, an amount of multiply-adds, or a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coe_core import CalibratedCurve, ExitRule, OperatingPoint, check_fitted_with
from coe_core.support.aims import looks_like_an_amount, parse_budget
from vision.errors import RunError

if TYPE_CHECKING:
    from vision.run import Run


@dataclass(frozen=True)
class ResolvedBudget:
    """What was asked for, resolved to the numbers that inference needs."""

    name: str
    threshold: float  # exit when confidence >= threshold
    rough_weight: float
    exit_rate: float | None  # on the calibration data; None: the run has no curve
    num_samples: int | None  # of the calibration data
    rule: ExitRule = field(default_factory=ExitRule)  # what exits are decided by


def check_threshold(threshold: float) -> float:
    """The threshold as a number of at least 0.

    Raises:
        ValueError: NaN or below 0.
    """
    threshold = float(threshold)
    if math.isnan(threshold) or threshold < 0:
        raise ValueError(
            f"threshold must be at least 0, got {threshold}; 0 exits all, above 1 exits none"
        )
    return threshold


def resolve_budget(
    run: Run, budget: str | float | None = None, threshold: float | None = None
) -> ResolvedBudget:
    """The threshold that serves a budget. Thresholds are the run's own, fitted on validation data.

    Args:
        run: with its operating points and its curve.
        budget: name of a stored operating point, or mean multiply-adds per image: "100M", or "60%" of
            those of no exits; None means "best".
        threshold: instead of a budget; on the largest probability of the rough prediction.

    Raises:
        ValueError: both a budget and a threshold, a threshold that is NaN or below 0, or an amount that is
            none.
        RunError: an unknown budget (names those stored), a run that was never calibrated, or thresholds
            that were fitted with another checkpoint.
        AimNotReachableError: a budget below the delegator's own multiply-adds.
    """
    curve, points = run.curve, run.operating_points
    if threshold is not None:
        if budget is not None:
            raise ValueError(f"give a budget or a threshold, not both: {budget!r} and {threshold}")
        return _at(run, check_threshold(threshold), f"threshold {float(threshold):g}")
    name = "best" if budget is None else str(budget)
    if name in points:
        point = points[name]
        _check_fitted(run, f"operating point {name!r}", point)
        return ResolvedBudget(
            name,
            point.threshold,
            point.rough_weight,
            point.exit_rate,
            point.num_samples,
            point.exit_rule,
        )
    is_number = isinstance(budget, int | float)
    amount = (
        parse_budget(name if budget is None else budget)
        if is_number or looks_like_an_amount(name)
        else None
    )
    if amount is not None and curve is not None:
        _check_fitted(run, "the trade-off curve", curve)
        macs = amount.absolute(curve.macs[0])  # the curve begins without exits
        return _at(run, curve.threshold[curve.fit(macs)], name, curve.exit_rule)
    stored = ", ".join(points) or "none; run `coe-vision calibrate` first"
    if amount is not None:
        raise RunError(
            f"{run.folder} holds no trade-off curve to find a threshold for {name} on: run "
            f"`coe-vision calibrate` again; operating points stored: {stored}"
        )
    also = "; multiply-adds such as 100M or 60% are understood too" if curve is not None else ""
    raise RunError(f"{run.folder} has no operating point {name!r}; stored: {stored}{also}")


def _check_fitted(run: Run, what: str, fitted: OperatingPoint | CalibratedCurve) -> None:
    """Refuse what was fitted with other weights, as where a run's checkpoint was replaced.

    Raises:
        RunError: it was.
    """
    remedy = f"run `coe-vision calibrate` on {run.checkpoint}"
    try:
        used_with = run.fitted_with(fitted.exit_rule)
        check_fitted_with(f"{what} of {run.folder}", fitted.fitted_with, used_with, remedy)
    except ValueError as error:
        raise RunError(str(error)) from error


def _at(run: Run, threshold: float, name: str, rule: ExitRule | None = None) -> ResolvedBudget:
    rule = rule or ExitRule()
    curve, best = run.curve, run.operating_points.get("best")
    for fitted in (curve, best):
        if fitted is not None:
            _check_fitted(run, "the weight of the rough prediction", fitted)
    if curve is None:
        return ResolvedBudget(name, threshold, best.rough_weight if best else 0.0, None, None)
    # What share exits is known where the curve goes by the same.
    exit_rate = curve.at(threshold).exit_rate if curve.exit_rule == rule else None
    return ResolvedBudget(name, threshold, curve.rough_weight, exit_rate, curve.num_samples, rule)
