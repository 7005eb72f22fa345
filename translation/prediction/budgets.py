"""What a budget means for a run: the system and the threshold that serve it, by what calibration stored."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from coe_core import (
    AimNotReachableError,
    CalibratedCurve,
    OperatingPoint,
    StoredPoints,
    check_fitted_with,
)
from coe_core.stored_points import COE, best_within, has_exits
from coe_core.support.aims import looks_like_an_amount, parse_budget
from coe_core.support.command import nearest
from translation.evaluation.calibrate import find_system, load_points
from translation.evaluation.held_out import fitted_with, held_out_systems
from translation.prediction.engine import Search, Setting

DEFAULT = "best"
_REMEDY = "translate with these settings, or calibrate again (coe-translation decode, calibrate)"


class Budgets:
    """Stored operating points, and the curves that any other budget is read off.

    Args:
        points: file that calibrate wrote; None: there is none.
        decoded: translations of the validation text, which the curves are made of when they are needed.
        used_with: what points must have been fitted with, of a system.
        systems: that there are, what translates where nothing is stored first.
    """

    def __init__(
        self,
        points: Path | None,
        decoded: Path | None,
        used_with: Callable[[str], Mapping[str, Any]],
        systems: list[str],
    ):
        self.stored = StoredPoints({}, {})
        if points is not None and points.is_file():
            self.stored = load_points(points)
        self.decoded = decoded if decoded is not None and decoded.is_file() else None
        self.used_with, self.systems = cache(used_with), systems
        self._curves: dict[str, CalibratedCurve] | None = None
        self._lock = threading.Lock()

    def deployed(self, name: str) -> str:
        """The system that is used at the point of that name: of those there are."""
        chosen = self.stored.deployed(name)
        return chosen if chosen in self.systems else self.systems[0]

    def named(self, system: str | None = None) -> dict[str, OperatingPoint]:
        """Points of a system by their names; None: of each name that of the system deployed at it."""
        if system is not None:
            return self.stored.named(system)
        points = {n: self.stored.named(self.deployed(n)).get(n) for n in self.stored.names}
        return {name: point for name, point in points.items() if point is not None}

    def resolve(
        self,
        budget: str | float | None,
        threshold: float | None,
        system: str | None,
        search: Search,
    ) -> Setting:
        """See `Engine.resolve`.

        Raises:
            ValueError: see there.
            AimNotReachableError: a budget below what the cheapest system spends.
        """
        if budget is not None and threshold is not None:
            raise ValueError("give a budget or a threshold, not both")
        system = None if system is None else self.find_system(system)
        if threshold is not None:
            return self._at_threshold(threshold, system or self.systems[0])
        points = self.named(system)
        if budget is None and not (points and has_exits(system or COE)):
            used_by = system or self.systems[0]
            return Setting("no exits" if has_exits(used_by) else used_by, used_by)
        first = DEFAULT if DEFAULT in points else next(iter(points), DEFAULT)
        name = first if budget is None else str(budget)
        aim = f"macs={name}"
        if name in points or aim in points:
            point = points.get(name) or points[aim]
            return self._of_point(point, system or self.deployed(point.name), search)
        if not looks_like_an_amount(name):
            known = ", ".join(points) or "none"
            of_system = "" if system is None else f" of {system}"
            raise ValueError(
                f"no operating point {name[:80]!r}{of_system}; stored: {known}{nearest(name, points)}; or "
                "give multiply-adds such as 20M or 60%"
            )
        return self._fitted(system, name, search)

    def find_system(self, name: str) -> str:
        """The system of that name, in any case.

        Raises:
            ValueError: there is none (says which there are).
        """
        return find_system(name, self.systems)

    def curve(self, system: str) -> CalibratedCurve | None:
        """BLEU against multiply-adds on the validation text; None: there is none."""
        return self._all_curves().get(system)

    def _all_curves(self) -> dict[str, CalibratedCurve]:
        with self._lock:
            if self._curves is None:
                found = {} if self.decoded is None else _curves(self.decoded)
                self._curves = {name: found[name] for name in self.systems if name in found}
        return self._curves

    def _at_threshold(self, threshold: float, system: str) -> Setting:
        if not has_exits(system):
            raise ValueError(f"{system} always runs whole: it takes no threshold")
        name = f"threshold {threshold:g}"
        curve = (self._curves or {}).get(system)  # a server has loaded it; others need no exit rate
        if curve is None or math.isinf(threshold):
            return Setting(name, system, threshold)
        return Setting(name, system, threshold, curve.at(threshold).exit_rate, curve.num_samples)

    def _of_point(self, point: OperatingPoint, system: str, search: Search) -> Setting:
        self._check(system, point.name, point.fitted_with, search)
        if not has_exits(system):
            return Setting(point.name, system)
        return Setting(point.name, system, point.threshold, point.exit_rate, point.num_samples)

    def _fitted(self, system: str | None, name: str, search: Search) -> Setting:
        """What is best at a cost, of a system, or of those that are deployed for any point."""
        amount, curves = parse_budget(name), self._all_curves()
        whole = curves.get(COE) or max(curves.values(), key=lambda c: c.macs[0], default=None)
        if system is not None:
            curves = {n: curve for n, curve in curves.items() if n == system}
        if not curves or whole is None:
            raise ValueError(
                f"no trade-off curve to read {name!r} off: coe-translation train makes it, or name one of "
                f"the stored points: {', '.join(self.named(system)) or 'none'}"
            )
        macs = amount.absolute(whole.macs[0])
        deployed = {self.deployed(name) for name in self.stored.names} or {self.systems[0]}
        try:
            used_by, index = best_within(curves, deployed, macs)
        except AimNotReachableError as error:
            if len(curves) > 1:
                raise
            (only, curve), *_ = curves.items()
            raise AimNotReachableError(
                f"a mean cost of {macs:g} is below that of {only}, {min(curve.macs):g}: raise the budget"
            ) from error
        curve = curves[used_by]
        self._check(used_by, name, curve.fitted_with, search)
        if not has_exits(used_by):
            return Setting(name, used_by)
        return Setting(
            name, used_by, curve.threshold[index], curve.exit_rate[index], curve.num_samples
        )

    def _check(self, system: str, name: str, fitted: Mapping[str, Any], search: Search) -> None:
        used = {**self.used_with(system), "beam": search.beam, "lenpen": search.lenpen}
        what = "threshold" if has_exits(system) else "operating point"
        check_fitted_with(f"{what} {name!r} of {system}", fitted, used, _REMEDY)


def _curves(decoded: Path) -> dict[str, CalibratedCurve]:
    """By system, out of the translations of a validation text."""
    import datetime

    from translation.evaluation.metrics import Scoring
    from translation.evaluation.translations import Translations

    translations = Translations.load(decoded)
    stored = translations.provenance.get("scoring")
    scoring = Scoring(**stored) if isinstance(stored, dict) else None
    return {
        name: CalibratedCurve.from_curve(
            candidate.stage.curve(cost="macs"),
            rough_weight=0.0,
            num_samples=len(translations),
            data=decoded.stem,
            date=str(translations.provenance.get("date", datetime.date.today().isoformat())),
            fitted_with=fitted_with(translations.provenance, name),
        )
        for name, candidate in held_out_systems(translations, scoring).items()
    }
