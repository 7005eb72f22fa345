"""Every system fitted to stated aims on a translated held-out text, and the one to deploy for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import coe_core
from coe_core import (
    AimNotReachableError,
    Candidate,
    Choice,
    OperatingPoint,
    StoredPoints,
    check_fitted_with,
    choose,
    fit_systems,
)
from coe_core.calibration import AimKind
from coe_core.support.aims import Aim, parse_aim
from coe_core.support.command import nearest
from translation.evaluation.held_out import fitted_with, held_out_systems
from translation.evaluation.metrics import Scoring
from translation.evaluation.systems import CASCADE, COE, NO_EXITS
from translation.evaluation.translations import Translations

__all__ = [
    "CASCADE",
    "COE",
    "KINDS",
    "LEVEL",
    "calibrate",
    "check_points",
    "find_system",
    "load_points",
    "save_points",
]

TASK = "translation"  # of stored points
KINDS = ("best", "bleu_drop", "chrf_drop", "macs", "latency")
LEVEL = 0.05  # of the test by which a system is worse than the best
_REMEDY = "decode and calibrate with these settings (coe-translation decode, calibrate)"


def check_points(
    points: Sequence[OperatingPoint], provenance: Mapping[str, Any], system: str
) -> None:
    """Refuse points that were fitted with other settings than translations were decoded with.

    Raises:
        ValueError: as `check_fitted_with`.
    """
    settings = fitted_with(provenance, system)
    for point in points:
        check_fitted_with(
            f"threshold {point.name!r} of {system}", point.fitted_with, settings, _REMEDY
        )


class Calibration(NamedTuple):
    """What was fitted and chosen, and what could not be met."""

    points: dict[str, list[OperatingPoint]]  # by system
    choices: dict[str, Choice]  # by aim
    unmet: list[str]  # a line about each aim that a system with exits cannot meet


def calibrate(
    translations: Translations,
    aims: Sequence[str],
    data: str,
    scoring: Scoring | None = None,
    *,
    level: float = LEVEL,
    system: str | None = None,
) -> Calibration:
    """Fit every system to every aim, and choose for each the one to deploy.

    Budgets and "best" go by BLEU. Latencies are in milliseconds a sentence, as the set was decoded. A drop
    is from the best that any system reaches without exits, a part of a cost from the collaboration's.

    Args:
        translations: of a held-out text.
        aims: as typed, see `coe_core.support.aims`.
        data: which data these are.
        scoring: see `held_out_systems`.
        level: of the paired test, see `coe_core.choose`.
        system: the one to use; None: whichever is best.

    Raises:
        ValueError: an aim that is not understood, a system that there is not, or a level outside (0, 1].
        AimNotReachableError: no system meets any of them.
    """
    parsed = [parse_aim(aim, KINDS) for aim in aims]
    metrics = dict.fromkeys(map(_metric, parsed))
    systems = {metric: held_out_systems(translations, scoring, metric) for metric in metrics}
    if system is not None:
        only = find_system(system, list(next(iter(systems.values()))))
        systems = {metric: {only: of_metric[only]} for metric, of_metric in systems.items()}
    points: dict[str, list[OperatingPoint]] = {}
    choices: dict[str, Choice] = {}
    unmet = []
    for aim in parsed:
        candidates = systems[_metric(aim)]
        try:
            choices[aim.text], fitted = _fit(translations, candidates, aim, data, level)
        except AimNotReachableError as error:
            unmet.append(f"{aim.text}: {error}")
            continue
        for name, point in fitted.items():
            points.setdefault(name, []).append(point)
        unmet += [
            f"{name}, {aim.text}: reached by {choices[aim.text].deployed}, not by {name}"
            for name in (COE, CASCADE)
            if name in candidates and name not in fitted
        ]
    if not choices:
        raise AimNotReachableError("; ".join(unmet))
    return Calibration(points, choices, unmet)


def _metric(aim: Aim) -> str:
    return "chrF" if aim.kind == "chrf_drop" else "BLEU"


def _fit(
    translations: Translations,
    candidates: Mapping[str, Candidate],
    aim: Aim,
    data: str,
    level: float,
) -> tuple[Choice, dict[str, OperatingPoint]]:
    """The choice for an aim, and the point of every system that reaches it."""
    unit = "ms" if aim.kind == "latency" else "macs"
    kind = cast(AimKind, "accuracy_drop" if aim.kind in ("bleu_drop", "chrf_drop") else aim.kind)
    stages = {name: candidate.stage for name, candidate in candidates.items()}
    whole = {name: stage.at(NO_EXITS).cost[unit] for name, stage in stages.items()}
    value = aim.absolute(whole.get(COE, max(whole.values())))
    choice = choose(candidates, kind, value, cost=unit, level=level)
    fitted = {
        name: OperatingPoint.at_index(
            stages[name].curve(cost=unit),
            index,
            name=aim.text,
            aim=aim.kind,
            value=value,
            cost_unit=unit,
            num_samples=len(translations),
            data=data,
            fitted_with=fitted_with(translations.provenance, name),
        )
        for name, index in fit_systems(stages, kind, value, cost=unit).items()
    }
    return choice, fitted


def find_system(text: str, systems: Sequence[str]) -> str:
    """The system of that name, in any case; a control's also without what it is.

    Args:
        text: as it is written.
        systems: that there are.

    Raises:
        ValueError: there is none (says which there are).

    Example:
        >>> find_system("Large", ["CoE", "single:large"])
        'single:large'
        >>> find_system("each", ["CoE", "single:each.de-en", "single:each.fr-en"])
        Traceback (most recent call last):
        ValueError: each is one network for each direction, and is not told that of a sentence: name
        the one that is wanted, single:each.de-en, single:each.fr-en
    """
    by_lower = {system.lower(): system for system in systems}
    by_lower |= {s.partition(":")[2].lower(): s for s in systems if ":" in s}
    if text.lower() not in by_lower:
        name = text.lower().rpartition(":")[2]
        if of_direction := [s for s in systems if s.lower().startswith(f"single:{name}.")]:
            raise ValueError(
                f"{text[:80]} is one network for each direction, and is not told that of a sentence: name "
                f"the one that is wanted, {', '.join(of_direction)}"
            )
        raise ValueError(
            f"no system {text[:80]!r}; there are: {', '.join(systems)}{nearest(text, systems)}"
        )
    return by_lower[text.lower()]


def save_points(path: str | Path, stored: StoredPoints) -> None:
    """Write them as JSON, whole or not at all, see `coe_core.save_points`."""
    coe_core.save_points(path, TASK, stored)


def load_points(path: str | Path) -> StoredPoints:
    """Inverse of `save_points`; of an older file, without choices, all is the collaboration's.

    Raises:
        ValueError: no such file, or not one of these.
    """
    if not Path(path).is_file():
        what = "not a regular file" if Path(path).exists() else "no such file"
        raise ValueError(f"{path}: {what}; coe-translation calibrate writes it")
    return coe_core.load_points(path, TASK)
