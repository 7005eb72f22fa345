"""Thresholds for stated aims, fitted on a translated validation set and stored with their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import coe_core
from coe_core import (
    AimNotReachableError,
    OperatingPoint,
    StoredPoints,
    check_fitted_with,
    fit_threshold,
)
from coe_core.calibration import AimKind
from coe_core.support.aims import Aim, parse_aim
from translation.evaluation.metrics import Scoring
from translation.evaluation.systems import CASCADE, COE, RoutedSystem, routed_systems
from translation.evaluation.translations import DELEGATOR_ALONE, EXPERT_ALONE, Translations

TASK = "translation"  # of stored points
KINDS = ("best", "bleu_drop", "chrf_drop", "macs", "latency")
_ROUTERS = {COE: "learned", CASCADE: "cascade"}
_REMEDY = "decode and calibrate with these settings (coe-translation decode, calibrate)"


def fitted_with(provenance: Mapping[str, Any], system: str) -> dict[str, Any]:
    """What a system's thresholds depend on, out of the provenance of decoded translations.

    The names are those of the points' ``fitted_with``: checkpoint (SHA-256), confidence, beam, lenpen,
    router, direction (such as de-en); of a cascade the digests of its two networks in place of the team's.
    What a file of an older version does not know is left out.

    Args:
        provenance: of `Translations`.
        system: "CoE" or "cascade".

    Example:
        >>> fitted_with({"confidence": "probability", "beam": 5, "date": "2026-01-01"}, "CoE")
        {'confidence': 'probability', 'beam': 5, 'router': 'learned'}
    """
    settings = {name: provenance.get(name) for name in ("confidence", "beam", "lenpen")}
    settings |= {"router": _ROUTERS[system], "direction": provenance.get("direction")}
    if system == CASCADE:
        digests = provenance.get("controls_sha256") or {}
        settings |= {name: digests.get(name) for name in (DELEGATOR_ALONE, EXPERT_ALONE)}
    else:
        settings["checkpoint"] = provenance.get("checkpoint_sha256")
    return {name: value for name, value in settings.items() if value is not None}


def check_points(
    points: Sequence[OperatingPoint], provenance: Mapping[str, Any], system: str
) -> None:
    """Refuse thresholds that were fitted with other settings than translations were decoded with.

    Raises:
        ValueError: as `check_fitted_with`.
    """
    settings = fitted_with(provenance, system)
    for point in points:
        check_fitted_with(
            f"threshold {point.name!r} of {system}", point.fitted_with, settings, _REMEDY
        )


def fit(
    system: RoutedSystem, aim: Aim, data: str, settings: Mapping[str, Any] | None = None
) -> OperatingPoint:
    """The operating point of a system that serves an aim best on the translations that it is made of.

    Budgets and "best" go by BLEU. Latencies are in milliseconds a sentence, as the set was decoded.

    Args:
        system: see `routed_systems`.
        aim: see `coe_core.support.aims`.
        data: which data these are.
        settings: that they were decoded with, see `fitted_with`.

    Raises:
        AimNotReachableError: the aim is below what the delegator alone spends.
    """
    metric = "chrF" if aim.kind == "chrf_drop" else "BLEU"
    unit = "macs"
    if aim.kind == "latency":
        curve, unit = system.stages.curve(metric, "seconds"), "ms"
        curve = curve._replace(cost=curve.cost * 1000)
    else:
        curve = system.stages.curve(metric, "macs")
    value = aim.absolute(float(curve.cost[0]))
    kind = "accuracy_drop" if aim.kind in ("bleu_drop", "chrf_drop") else aim.kind
    return OperatingPoint.at_index(
        curve,
        fit_threshold(curve, cast(AimKind, kind), value),
        name=aim.text,
        aim=aim.kind,
        value=value,
        cost_unit=unit,
        num_samples=len(system.first.text),
        data=data,
        fitted_with=settings,
    )


class AllPoints(NamedTuple):
    """Operating points by system, and what could not be met."""

    points: dict[str, list[OperatingPoint]]
    unmet: list[str]  # a line about each aim that a system cannot meet


def fit_all(
    translations: Translations, aims: Sequence[str], data: str, scoring: Scoring | None = None
) -> AllPoints:
    """Operating points of CoE and of the cascade, if it was decoded, for every aim that each can meet.

    Args:
        translations: of a validation set.
        aims: as typed, see `coe_core.support.aims`.
        data: which data these are.
        scoring: see `routed_systems`.

    Raises:
        ValueError: an aim that is not understood.
        AimNotReachableError: CoE can meet none of them.
    """
    parsed = [parse_aim(aim, KINDS) for aim in aims]
    systems = routed_systems(translations, scoring)
    points: dict[str, list[OperatingPoint]] = {}
    unmet = []
    for name in (COE, CASCADE):
        if name not in systems:
            continue
        settings = fitted_with(translations.provenance, name)
        points[name] = []
        for aim in parsed:
            try:
                points[name].append(fit(systems[name], aim, data, settings))
            except AimNotReachableError as error:
                unmet.append(f"{name}, {aim.text}: {error}")
        if name == COE and not points[name]:
            raise AimNotReachableError("; ".join(unmet))
    return AllPoints(points, unmet)


def save_points(
    path: str | Path, points: dict[str, list[OperatingPoint]], provenance: dict[str, Any]
) -> None:
    """Write them as JSON, whole or not at all, see `coe_core.save_points`."""
    coe_core.save_points(path, TASK, StoredPoints(points, provenance))


def load_points(path: str | Path) -> dict[str, list[OperatingPoint]]:
    """Inverse of `save_points`.

    Raises:
        ValueError: no such file, or not one of these.
    """
    if not Path(path).is_file():
        what = "not a regular file" if Path(path).exists() else "no such file"
        raise ValueError(f"{path}: {what}; coe-translation calibrate writes it")
    return coe_core.load_points(path, TASK).points
