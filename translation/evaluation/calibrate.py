"""Thresholds for stated aims, fitted on a translated validation set and stored with their provenance."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from coe_core import AimNotReachableError, OperatingPoint, fit_threshold
from translation.evaluation.metrics import CorpusQuality
from translation.evaluation.systems import CASCADE, COE, Routed, routed_systems
from translation.evaluation.translations import Translations

AIMS = "best, bleu_drop=POINTS, chrf_drop=POINTS, macs=AMOUNT, latency=MILLISECONDS"
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}


def parse_aim(text: str) -> tuple[str, float | None]:
    """Kind and value of an aim: a budget may be an amount (20M), or a part of that of no exits (60%).

    A part is returned as a negative number, -0.6.

    Raises:
        ValueError: unknown, or a value that is not a number above 0 (a drop may be 0).

    Example:
        >>> parse_aim("macs=20M"), parse_aim("macs=60%"), parse_aim("bleu_drop=0.5"), parse_aim("best")
        (('macs', 20000000.0), ('macs', -0.6), ('bleu_drop', 0.5), ('best', None))
    """
    kind, sign, value = text.partition("=")
    if kind not in ("best", "bleu_drop", "chrf_drop", "macs", "latency"):
        raise ValueError(f"unknown aim {text!r}; known: {AIMS}")
    if kind == "best":
        if sign:
            raise ValueError(f"aim 'best' takes no value, got {text!r}")
        return kind, None
    scale = 1.0
    if value[-1:] in _UNITS and kind == "macs":
        value, scale = value[:-1], _UNITS[value[-1]]
    elif value.endswith("%") and kind in ("macs", "latency"):
        value, scale = value[:-1], -0.01
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (0 <= number < math.inf) or (number == 0 and not kind.endswith("drop")):
        raise ValueError(f"aim {text!r} needs a number; known: {AIMS}")
    return kind, number * scale


def fit(system: Routed, made: Translations, aim: str, data: str) -> OperatingPoint:
    """The operating point of a system that serves an aim best on these translations.

    Budgets and "best" go by BLEU. Latencies are in milliseconds a sentence, as the set was decoded.

    Raises:
        ValueError: as `parse_aim`.
        AimNotReachableError: the aim is below what the delegator alone spends.
    """
    kind, value = parse_aim(aim)
    quality = CorpusQuality("chrF" if kind == "chrf_drop" else "BLEU", made.reference)
    curve = system.curve(quality, "seconds" if kind == "latency" else "macs")
    unit = "macs"
    if kind == "latency":
        curve, unit = curve._replace(cost=curve.cost * 1000), "ms"
    wanted = value
    if value is not None and value < 0:
        wanted = -value * float(curve.cost[0])
    how = {"bleu_drop": "accuracy_drop", "chrf_drop": "accuracy_drop"}.get(kind, kind)
    place = fit_threshold(curve, how, wanted)
    return OperatingPoint(
        name=aim,
        threshold=float(curve.threshold[place]),
        aim=kind,
        value=wanted,
        exit_rate=float(curve.exit_rate[place]),
        quality=float(curve.quality[place]),
        cost=float(curve.cost[place]),
        cost_unit=unit,
        num_samples=len(made),
        data=data,
        date=date.today().isoformat(),
    )


class AllPoints(NamedTuple):
    """Operating points by system, and what could not be met."""

    points: dict[str, list[OperatingPoint]]
    unmet: list[str]  # a line about each aim that a system cannot meet


def fit_all(made: Translations, aims: Sequence[str], data: str) -> AllPoints:
    """Operating points of CoE and of the cascade, if it was decoded, for every aim that each can meet.

    Raises:
        ValueError: as `parse_aim`.
        AimNotReachableError: CoE can meet none of them.
    """
    systems = routed_systems(made)
    found: dict[str, list[OperatingPoint]] = {}
    unmet = []
    for name in (COE, CASCADE):
        if name not in systems:
            continue
        found[name] = []
        for aim in aims:
            try:
                found[name].append(fit(systems[name], made, aim, data))
            except AimNotReachableError as error:
                unmet.append(f"{name}, {aim}: {error}")
        if name == COE and not found[name]:
            raise AimNotReachableError("; ".join(unmet))
    return AllPoints(found, unmet)


def save_points(
    path: str | Path, points: dict[str, list[OperatingPoint]], provenance: dict
) -> None:
    """Write them as JSON, whole or not at all."""
    part = Path(f"{path}.part")
    plain = {system: [one.to_dict() for one in some] for system, some in points.items()}
    part.write_text(
        json.dumps({"points": plain, "provenance": provenance}, indent=1, ensure_ascii=False) + "\n"
    )
    os.replace(part, path)


def load_points(path: str | Path) -> dict[str, list[OperatingPoint]]:
    """Inverse of `save_points`.

    Raises:
        ValueError: no such file, or not one of these.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; coe-translation calibrate writes it")
    try:
        points = json.loads(Path(path).read_text(encoding="utf-8"))["points"]
        return {
            system: [OperatingPoint.from_dict(one) for one in some]
            for system, some in points.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not what coe-translation calibrate writes ({error!r})"
        ) from error


def stored_threshold(text: str) -> float:
    """The threshold of CoE that FILE:NAME names, such as thresholds.json:macs=60%.

    Raises:
        ValueError: no such file or name (says which there are).
    """
    path, _, name = text.rpartition(":")
    points = load_points(path).get(COE, [])
    for point in points:
        if point.name == name:
            return point.threshold
    known = ", ".join(point.name for point in points)
    raise ValueError(f"{path} has no threshold named {name!r}; it has: {known}")
