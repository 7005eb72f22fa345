"""What a prediction may cost: a stored operating point, an amount of multiply-adds, or a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coe_core import (
    CalibratedCurve,
    ExitRule,
    OperatingPoint,
    check_fitted_with,
)
from coe_core.stored_points import COE, best_within, has_exits
from coe_core.support.aims import looks_like_an_amount, parse_budget
from vision.errors import RunError
from vision.systems import ENSEMBLE, find_system, systems_of

if TYPE_CHECKING:
    from vision.run import Run


@dataclass(frozen=True)
class ResolvedBudget:
    """What was asked for, resolved to the numbers that inference needs."""

    name: str
    threshold: float  # exit when confidence >= threshold
    rough_weight: float
    exit_rate: (
        float | None
    )  # on the calibration data; None: nothing can exit, or the run has no curve
    num_samples: int | None  # of the calibration data
    rule: ExitRule = field(default_factory=ExitRule)  # what exits are decided by
    system: str = COE  # that answers, see `vision.systems`


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
    run: Run,
    budget: str | float | None = None,
    threshold: float | None = None,
    system: str | None = None,
) -> ResolvedBudget:
    """System and threshold that serve a budget. Thresholds are the run's own, fitted on validation data.

    Args:
        run: with its operating points and its curves.
        budget: name of a stored operating point, or mean multiply-adds per image: "100M", or "60%" of
            those of no exits; None means "best".
        threshold: instead of a budget, of the collaboration where no system is named; on the largest
            probability of the rough prediction.
        system: to use, see `vision.systems`; None: the one that `calibrate` chose for the operating point,
            for multiply-adds, of those that it chose for any point, the one with the best held-out accuracy
            at that cost.

    Raises:
        ValueError: both a budget and a threshold, a threshold that is NaN or below 0, or an amount that is
            none.
        RunError: an unknown budget (names those stored) or system, a run that was never calibrated, or
            thresholds that were fitted with another checkpoint.
        AimNotReachableError: a budget below the multiply-adds of the cheapest system; names it.
    """
    if system is not None:
        system = find_system(run.recipe, system)
    if threshold is not None:
        if budget is not None:
            raise ValueError(f"give a budget or a threshold, not both: {budget!r} and {threshold}")
        system = system or (COE if run.recipe.has_team else _only_system(run))
        if not has_exits(system):
            raise ValueError(f"{system} always runs whole: it takes no threshold")
        return _at(run, check_threshold(threshold), f"threshold {float(threshold):g}", system)
    name = "best" if budget is None else str(budget)
    used_by = system or _system_of(run, name, asked=budget is not None)
    points = run.stored.named(used_by)
    if name in points:
        point = points[name]
        _check_fitted(run, f"operating point {name!r}", point)
        exit_rate = point.exit_rate if has_exits(used_by) else None
        return ResolvedBudget(
            name,
            point.threshold,
            point.rough_weight,
            exit_rate,
            point.num_samples,
            point.exit_rule,
            used_by,
        )
    if budget is None and not has_exits(used_by):
        return ResolvedBudget(used_by, math.inf, 0.0, None, None, system=used_by)
    is_number = isinstance(budget, int | float)
    amount = (
        parse_budget(name if budget is None else budget)
        if is_number or looks_like_an_amount(name)
        else None
    )
    curves = {n: c for n, c in run.curves.items() if system in (None, n)}
    if amount is not None and curves:
        for curve in curves.values():
            _check_fitted(run, "the trade-off curve", curve)
        reference = run.curves.get(COE) or max(curves.values(), key=lambda c: c.macs[0])
        deployed = {run.stored.deployed(name) for name in run.operating_points}
        used_by, at = best_within(curves, deployed, amount.absolute(reference.macs[0]))
        return _at(run, curves[used_by].threshold[at], name, used_by, curves[used_by].exit_rule)
    of_system = "" if system is None else f" of {system}"
    stored = ", ".join(points if system else run.operating_points)
    stored = stored or "none; run `coe-vision calibrate` first"
    if amount is not None:
        raise RunError(
            f"{run.folder} holds no trade-off curve{of_system} to find a threshold for {name} on: run "
            f"`coe-vision calibrate` again; operating points stored: {stored}"
        )
    also = "; multiply-adds such as 100M or 60% are understood too" if curves else ""
    raise RunError(
        f"{run.folder} has no operating point {name!r}{of_system}; stored: {stored}{also}"
    )


def _system_of(run: Run, name: str, asked: bool) -> str:
    """The system that a stored name is used of; where none is stored the collaboration, or all there is."""
    if name in run.operating_points:
        return run.stored.deployed(name)
    if run.recipe.has_team or asked or run.operating_points:
        return COE
    return _only_system(run)


def _only_system(run: Run) -> str:
    """What a run without a collaboration answers with before it is calibrated: its only ensemble.

    Raises:
        RunError: it has several.
    """
    ensembles = [name for name in systems_of(run.recipe) if name.startswith(ENSEMBLE)]
    if len(ensembles) == 1:
        return ensembles[0]
    raise RunError(
        f"{run.folder} has the systems {', '.join(systems_of(run.recipe))}: name one (--system), or let "
        "`coe-vision calibrate` choose"
    )


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


def _at(
    run: Run, threshold: float, name: str, system: str, rule: ExitRule | None = None
) -> ResolvedBudget:
    rule = rule or ExitRule()
    if not has_exits(system):
        return ResolvedBudget(name, math.inf, 0.0, None, None, system=system)
    curve, best = run.curves.get(system), run.stored.named(system).get("best")
    for fitted in (curve, best):
        if fitted is not None:
            _check_fitted(run, "the weight of the rough prediction", fitted)
    if curve is None:
        weight = best.rough_weight if best else 0.0
        return ResolvedBudget(name, threshold, weight, None, None, system=system)
    # What share exits is known where the curve goes by the same.
    exit_rate = curve.at(threshold).exit_rate if curve.exit_rule == rule else None
    return ResolvedBudget(
        name, threshold, curve.rough_weight, exit_rate, curve.num_samples, rule, system
    )
