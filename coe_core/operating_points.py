"""What calibration leaves beside a model: operating points and the curve, with what they were fitted with."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

import torch

from coe_core.calibration import fit_threshold
from coe_core.exit_rules import ExitRule
from coe_core.support.files import as_number
from coe_core.trade_off import TradeOffCurve

MAX_POINTS = 512  # of a stored curve: a threshold between two of them is off by 0.2% of the samples


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
    # What else the threshold depends on: the checkpoint's digest, the kind of confidence, the beam ...
    fitted_with: dict[str, Any] = field(default_factory=dict)
    exit_rule: ExitRule = field(default_factory=ExitRule)  # what exits are decided by

    @classmethod
    def at_index(
        cls,
        curve: TradeOffCurve,
        index: int,
        *,
        name: str,
        aim: str,
        value: float | None,
        cost_unit: str,
        num_samples: int,
        data: str,
        guarantee: float | None = None,
        rough_weight: float = 0.0,
        fitted_with: Mapping[str, Any] | None = None,
        exit_rule: ExitRule | None = None,
    ) -> OperatingPoint:
        """The point of a curve at an index that `fit_threshold` gave, dated today.

        Args:
            curve: on the calibration data.
            index: of its point, in [0, m).
            name: to store it by.
            aim: what it was fitted for.
            value: of the aim.
            cost_unit: of the curve's costs, "macs" or "ms".
            num_samples: calibration samples.
            data: which data.
            guarantee: see `controlled_threshold`.
            rough_weight: see `fit_rough_weight`.
            fitted_with: see `check_fitted_with`.
            exit_rule: what exits are decided by.

        Raises:
            ValueError: an index outside the curve.

        Example:
            >>> ones = torch.ones(2)
            >>> curve = TradeOffCurve(torch.tensor([torch.inf, 0.5]), torch.tensor([0.0, 1.0]), ones, ones)
            >>> OperatingPoint.at_index(
            ...     curve, 1, name="b", aim="best", value=None, cost_unit="ms", num_samples=2, data="d"
            ... ).threshold
            0.5
        """
        if not 0 <= index < len(curve.threshold):
            raise ValueError(f"the curve has no point {index}: it has {len(curve.threshold)}")
        return cls(
            name=name,
            threshold=float(curve.threshold[index]),
            aim=aim,
            value=value,
            exit_rate=float(curve.exit_rate[index]),
            quality=float(curve.quality[index]),
            cost=float(curve.cost[index]),
            cost_unit=cost_unit,
            num_samples=num_samples,
            data=data,
            date=datetime.date.today().isoformat(),
            guarantee=guarantee,
            rough_weight=rough_weight,
            fitted_with=dict(fitted_with or {}),
            exit_rule=exit_rule or ExitRule(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; an infinite threshold becomes a string, "inf" or "-inf"."""
        return _plain(asdict(self), self.exit_rule)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OperatingPoint:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field that is missing, unknown, or of another type.
        """
        _check_fields(cls, values, "an operating point")
        point = {**values, "threshold": as_number(values["threshold"], "threshold")}
        for name in ("exit_rate", "quality", "cost"):
            point[name] = _finite(name, values[name])
        point["rough_weight"] = _finite("rough_weight", values.get("rough_weight", 0.0))
        for name in ("value", "guarantee"):
            if values.get(name) is not None:
                point[name] = _finite(name, values[name])
        for name in ("name", "aim", "cost_unit", "data", "date"):
            check_type(name, values[name], str, "a text")
        check_type("num_samples", values["num_samples"], int, "a whole number")
        check_type("fitted_with", values.get("fitted_with", {}), dict, "an object")
        point["exit_rule"] = _exit_rule(values)
        if not 0 <= point["exit_rate"] <= 1:
            raise ValueError(f"exit_rate must be in [0, 1], got {point['exit_rate']}")
        return cls(**point)


@dataclass(frozen=True)
class CalibratedCurve:
    """The trade-off curve of a team on its calibration data, kept so that any budget can be served.

    Lists of equal length, from no exits (an infinite threshold) to all exits.

    Example:
        >>> curve = CalibratedCurve([math.inf, 0.9], [0.0, 1.0], [1.0, 0.5], [11.0, 1.0], 0.3, 2, "v", "d")
        >>> CalibratedCurve.from_dict(curve.to_dict()) == curve
        True
        >>> curve.at(0.95).exit_rate, curve.at(0.9).macs
        (0.0, 1.0)
    """

    threshold: list[float]  # falling
    exit_rate: list[float]
    quality: list[float]  # such as accuracy in [0, 1]
    macs: list[float]  # mean per sample
    rough_weight: float  # of the rough logits in the final prediction
    num_samples: int
    data: str
    date: str  # ISO date of the fit
    fitted_with: dict[str, Any] = field(default_factory=dict)  # see `check_fitted_with`
    exit_rule: ExitRule = field(default_factory=ExitRule)  # what exits are decided by

    @classmethod
    def from_curve(cls, curve: TradeOffCurve, **provenance: Any) -> CalibratedCurve:
        """Keep at most `MAX_POINTS` of its points, both ends included, evenly spread over the samples."""
        last = len(curve.threshold) - 1
        keep = torch.linspace(0, last, min(MAX_POINTS, last + 1)).round().long().unique()
        threshold, exit_rate, quality, cost = (column[keep].tolist() for column in curve)
        return cls(threshold, exit_rate, quality, cost, **provenance)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; the infinite threshold becomes a string."""
        return _plain(asdict(self), self.exit_rule)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CalibratedCurve:
        """Inverse of `to_dict`.

        Raises:
            ValueError: missing or unknown fields, fields of another type, or lists of unequal length.
        """
        _check_fields(cls, values, "a trade-off curve")
        columns: dict[str, Any] = {}
        for name in ("threshold", "exit_rate", "quality", "macs"):
            check_type(name, values[name], list, "a list")
            columns[name] = [as_number(number, name) for number in values[name]]
            if name != "threshold" and not all(map(math.isfinite, columns[name])):
                raise ValueError(f"{name} must be finite numbers")
        rest = {name: value for name, value in values.items() if name not in columns}
        rest["rough_weight"] = _finite("rough_weight", values["rough_weight"])
        for name in ("data", "date"):
            check_type(name, values[name], str, "a text")
        check_type("num_samples", values["num_samples"], int, "a whole number")
        check_type("fitted_with", values.get("fitted_with", {}), dict, "an object")
        rest["exit_rule"] = _exit_rule(values)
        if len({len(column) for column in columns.values()}) > 1 or not columns["macs"]:
            raise ValueError("not a trade-off curve: its columns differ in length or are empty")
        return cls(**columns, **rest)

    def at(self, threshold: float) -> CurvePoint:
        """What a threshold had on the calibration data."""
        index = max(sum(known >= threshold for known in self.threshold) - 1, 0)
        return CurvePoint(self.exit_rate[index], self.quality[index], self.macs[index])

    def fit(self, macs: float) -> int:
        """Index of the best point whose mean macs are at most ``macs``.

        Raises:
            AimNotReachableError: less than the delegator's own.
        """
        columns = (self.threshold, self.exit_rate, self.quality, self.macs)
        curve = TradeOffCurve(*(torch.tensor(c, dtype=torch.float64) for c in columns))
        return fit_threshold(curve, "macs", macs)


class CurvePoint(NamedTuple):
    """One point of a stored curve."""

    exit_rate: float
    quality: float
    macs: float


def check_fitted_with(
    what: str, fitted_with: Mapping[str, Any], used_with: Mapping[str, Any], remedy: str
) -> None:
    """Refuse a threshold where what it was fitted with is not what it is used with.

    Settings that only one side knows are not compared: files of older versions know none.

    Args:
        what: is refused, for the message: "operating point 'best'".
        fitted_with: settings by name, as stored: a digest of the checkpoint, the confidence, the beam ...
        used_with: the same settings here.
        remedy: what to do.

    Raises:
        ValueError: a setting differs; the message says which, both values, and the remedy.

    Example:
        >>> check_fitted_with("threshold 'fast'", {"beam": 5}, {"beam": 5, "router": "learned"}, "")
        >>> check_fitted_with("threshold 'fast'", {"beam": 5}, {"beam": 1}, "calibrate again")
        Traceback (most recent call last):
        ValueError: threshold 'fast' was fitted with beam 5, not 1: calibrate again
    """
    differing = [
        f"{name} {_short(fitted_with[name])}, not {_short(used_with[name])}"
        for name in fitted_with
        if name in used_with and fitted_with[name] != used_with[name]
    ]
    if differing:
        raise ValueError(f"{what} was fitted with {'; '.join(differing)}: {remedy}")


def _short(value: Any) -> str:
    text = str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return f"{text[:12]}..." if is_digest else text


def _check_fields(record: type, values: Mapping[str, Any], what: str) -> None:
    known = {entry.name for entry in fields(record)}
    needed = {
        entry.name
        for entry in fields(record)
        if entry.default is MISSING and entry.default_factory is MISSING
    }
    missing, unknown = needed - set(values), set(values) - known
    if missing or unknown:
        raise ValueError(
            f"not {what}: missing fields {sorted(missing)}, unknown fields {sorted(unknown, key=str)}; "
            "was it written by another version?"
        )


def check_type(name: str, value: Any, kind: type, called: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be {called}, got {value!r:.60}")


def _finite(name: str, value: Any) -> float:
    number = as_number(value, name)
    if math.isinf(number):
        raise ValueError(f"{name} must be a finite number, got {number}")
    return number


def _plain(fields: dict[str, Any], exit_rule: ExitRule) -> dict[str, Any]:
    """The values with infinite thresholds as texts; without an exit rule that is the default."""
    threshold = fields["threshold"]
    several = threshold if isinstance(threshold, list) else [threshold]
    texts = [str(number) if math.isinf(number) else number for number in several]
    del fields["exit_rule"]
    rule = exit_rule.to_dict()
    fields["threshold"] = texts if isinstance(threshold, list) else texts[0]
    return {**fields, "exit_rule": rule} if rule else fields


def _exit_rule(values: Mapping[str, Any]) -> ExitRule:
    stored = values.get("exit_rule", {})
    check_type("exit_rule", stored, dict, "an object")
    return ExitRule.from_dict(stored)
