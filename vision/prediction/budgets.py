"""What a prediction may cost: a stored operating point, an amount of multiply-adds, or a threshold."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import torch

from coe_core import TradeOffCurve, fit_threshold
from vision.errors import RunError

if TYPE_CHECKING:
    from vision.run import Run

MAX_POINTS = 512  # of a stored curve: a threshold between two of them is off by 0.2% of the samples
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class CalibratedCurve:
    """The trade-off curve of a run on its validation split, kept so that any budget can be served.

    Lists of equal length, from no exits (an infinite threshold) to all exits.

    Example:
        >>> curve = CalibratedCurve([math.inf, 0.9], [0.0, 1.0], [1.0, 0.5], [11.0, 1.0], 0.3, 2, "v", "d")
        >>> CalibratedCurve.from_dict(curve.to_dict()) == curve
        True
        >>> curve.at(0.95), curve.at(0.9)
        ((0.0, 11.0), (1.0, 1.0))
    """

    threshold: list[float]  # falling
    exit_rate: list[float]
    quality: list[float]  # accuracy in [0, 1]
    macs: list[float]  # mean per image
    rough_weight: float  # of the rough logits in the final prediction
    num_samples: int
    data: str
    date: str  # ISO date of the fit

    @classmethod
    def from_curve(cls, curve: TradeOffCurve, **provenance) -> CalibratedCurve:
        """At most `MAX_POINTS` of its points, both ends included, evenly spread over the samples."""
        last = len(curve.threshold) - 1
        keep = torch.linspace(0, last, min(MAX_POINTS, last + 1)).round().long().unique()
        return cls(*(column[keep].tolist() for column in curve), **provenance)

    def to_dict(self) -> dict:
        """Plain values for a JSON file; the infinite threshold becomes a string."""
        finite = [str(t) if math.isinf(t) else t for t in self.threshold]
        return {**asdict(self), "threshold": finite}

    @classmethod
    def from_dict(cls, values: dict) -> CalibratedCurve:
        """Inverse of `to_dict`.

        Raises:
            ValueError: missing or unknown fields, or lists of unequal length.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ValueError(f"not a trade-off curve: fields {sorted(set(values) ^ known)}")
        curve = cls(**{**values, "threshold": [float(t) for t in values["threshold"]]})
        lengths = {len(getattr(curve, name)) for name in TradeOffCurve._fields[:3]}
        if lengths != {len(curve.macs)} or not curve.macs:
            raise ValueError("not a trade-off curve: its columns differ in length or are empty")
        return curve

    def at(self, threshold: float) -> tuple[float, float]:
        """Exit rate and mean macs that a threshold had on the calibration data."""
        index = sum(t >= threshold for t in self.threshold) - 1
        index = max(index, 0)
        return self.exit_rate[index], self.macs[index]

    def fit(self, macs: float) -> int:
        """Index of the best point whose mean macs are at most ``macs``.

        Raises:
            AimNotReachableError: less than the delegator's own.
        """
        columns = (self.threshold, self.exit_rate, self.quality, self.macs)
        return fit_threshold(
            TradeOffCurve(*(torch.tensor(c, dtype=torch.float64) for c in columns)), "macs", macs
        )


@dataclass(frozen=True)
class Budget:
    """What was asked for, resolved to the numbers that inference needs."""

    name: str
    threshold: float  # exit when confidence >= threshold
    rough_weight: float
    exit_rate: float | None  # on the calibration data; None: the run has no curve
    num_samples: int | None  # of the calibration data


def parse_macs(text: str | float) -> float | None:
    """Multiply-adds from "100M", "macs=1.5G", "20k" or a number; None if it is none of these.

    Example:
        >>> parse_macs("macs=1.5G"), parse_macs("100M"), parse_macs(2e4), parse_macs("fast")
        (1500000000.0, 100000000.0, 20000.0, None)
    """
    text = str(text).strip().removeprefix("macs=").lower()
    unit = _UNITS.get(text[-1:], 1.0)
    try:
        macs = float(text[:-1] if unit != 1.0 else text) * unit
    except ValueError:
        return None
    return macs if math.isfinite(macs) and macs > 0 else None


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
) -> Budget:
    """The threshold that serves a budget. Thresholds are the run's own, fitted on validation data.

    Args:
        run: with its operating points and its curve.
        budget: name of a stored operating point, or mean multiply-adds per image such as "100M";
            None means "best".
        threshold: instead of a budget.

    Raises:
        ValueError: both a budget and a threshold, or a threshold that is NaN or below 0.
        RunError: an unknown budget (names those stored), or a run that was never calibrated.
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
        return Budget(name, point.threshold, point.rough_weight, point.exit_rate, point.num_samples)
    macs = parse_macs(name)
    if macs is not None and curve is not None:
        return _at(run, curve.threshold[curve.fit(macs)], name)
    stored = ", ".join(points) or "none; run `coe-vision calibrate` first"
    if macs is not None:
        raise RunError(
            f"{run.folder} holds no trade-off curve to find a threshold for {name} on: run "
            f"`coe-vision calibrate` again; operating points stored: {stored}"
        )
    also = "; multiply-adds such as 100M are understood too" if curve is not None else ""
    raise RunError(f"{run.folder} has no operating point {name!r}; stored: {stored}{also}")


def _at(run: Run, threshold: float, name: str) -> Budget:
    curve, best = run.curve, run.operating_points.get("best")
    if curve is None:
        return Budget(name, threshold, best.rough_weight if best else 0.0, None, None)
    return Budget(name, threshold, curve.rough_weight, curve.at(threshold)[0], curve.num_samples)
