"""What a budget means for a run: the system and the threshold that serve it, by what calibration stored."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coe_core import CalibratedCurve, OperatingPoint, check_fitted_with
from coe_core.stored_points import COE
from coe_core.support.aims import looks_like_an_amount, parse_budget
from coe_core.support.command import nearest
from translation.evaluation.calibrate import CASCADE, fitted_with, load_points
from translation.prediction.engine import Search, Setting

DEFAULT = "best"
_REMEDY = "translate with these settings, or calibrate again (coe-translation decode, calibrate)"


class Budgets:
    """Stored operating points, and the curve that any other budget is read off.

    Args:
        points: file that calibrate wrote; None: there is none.
        decoded: translations of the validation text, which the curve is made of when it is needed.
        used_with: what thresholds must have been fitted with, by system.
        systems: that there are.
    """

    def __init__(
        self,
        points: Path | None,
        decoded: Path | None,
        used_with: Mapping[str, Mapping[str, Any]],
        systems: list[str],
    ):
        self.points = load_points(points) if points is not None and points.is_file() else {}
        self.decoded = decoded if decoded is not None and decoded.is_file() else None
        self.used_with, self.systems = used_with, systems
        self._curves: dict[str, CalibratedCurve] | None = None
        self._lock = threading.Lock()

    def named(self, system: str) -> dict[str, OperatingPoint]:
        """Points of a system by their names."""
        return {point.name: point for point in self.points.get(system, [])}

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
            AimNotReachableError: a budget below what the delegator alone spends.
        """
        if budget is not None and threshold is not None:
            raise ValueError("give a budget or a threshold, not both")
        system = COE if system is None else self.find_system(system)
        if system not in (COE, CASCADE):
            return self._alone(budget, threshold, system)
        if threshold is not None:
            return self._at(system, f"threshold {threshold:g}", threshold)
        points = self.named(system)
        if budget is None and not points:
            return Setting("no exits", system)
        name = DEFAULT if budget is None else str(budget)
        aim = f"macs={name}"
        if name in points or aim in points:
            point = points.get(name) or points[aim]
            self._check(system, point.name, point.fitted_with, search)
            return Setting(point.name, system, point.threshold, point.exit_rate, point.num_samples)
        if not looks_like_an_amount(name):
            known = ", ".join(points) or "none"
            raise ValueError(
                f"no operating point {name[:80]!r} of {system}; stored: {known}{nearest(name, points)}; or "
                "give multiply-adds such as 20M or 60%"
            )
        return self._fitted(system, name, search)

    def find_system(self, name: str) -> str:
        """The system of that name, in any case.

        Raises:
            ValueError: there is none (says which there are).
        """
        by_lower = {system.lower(): system for system in self.systems}
        by_lower |= {s.partition(":")[2].lower(): s for s in self.systems if ":" in s}
        if name.lower() not in by_lower:
            raise ValueError(
                f"no system {name[:80]!r}; there are: {', '.join(self.systems)}"
                f"{nearest(name, self.systems)}"
            )
        return by_lower[name.lower()]

    def curve(self, system: str) -> CalibratedCurve | None:
        """BLEU against multiply-adds on the validation text; None: there is none."""
        with self._lock:
            if self._curves is None:
                self._curves = {} if self.decoded is None else _curves(self.decoded)
        return self._curves.get(system)

    @staticmethod
    def _alone(budget: str | float | None, threshold: float | None, system: str) -> Setting:
        if budget is not None or threshold is not None:
            raise ValueError(
                f"{system} always runs whole: it takes no budget and no threshold beside --system"
            )
        return Setting(system, system)

    def _at(self, system: str, name: str, threshold: float) -> Setting:
        curve = (self._curves or {}).get(system)  # a server has loaded it; others need no exit rate
        if curve is None or math.isinf(threshold):
            return Setting(name, system, threshold)
        return Setting(name, system, threshold, curve.at(threshold).exit_rate, curve.num_samples)

    def _fitted(self, system: str, name: str, search: Search) -> Setting:
        amount, curve = parse_budget(name), self.curve(system)
        if curve is None:
            raise ValueError(
                f"no trade-off curve to read {name!r} off: coe-translation train makes it, or name one of "
                f"the stored points: {', '.join(self.named(system)) or 'none'}"
            )
        self._check(system, name, curve.fitted_with, search)
        index = curve.fit(amount.absolute(curve.macs[0]))
        return Setting(
            name, system, curve.threshold[index], curve.exit_rate[index], curve.num_samples
        )

    def _check(self, system: str, name: str, fitted: Mapping[str, Any], search: Search) -> None:
        used = {**self.used_with.get(system, {}), "beam": search.beam, "lenpen": search.lenpen}
        check_fitted_with(f"threshold {name!r} of {system}", fitted, used, _REMEDY)


def _curves(decoded: Path) -> dict[str, CalibratedCurve]:
    """By system, out of the translations of a validation text."""
    import datetime

    from translation.evaluation.metrics import Scoring
    from translation.evaluation.systems import routed_systems
    from translation.evaluation.translations import Translations

    translations = Translations.load(decoded)
    stored = translations.provenance.get("scoring")
    systems = routed_systems(translations, Scoring(**stored) if isinstance(stored, dict) else None)
    return {
        name: CalibratedCurve.from_curve(
            systems[name].stages.curve("BLEU", "macs"),
            rough_weight=0.0,
            num_samples=len(translations),
            data=decoded.stem,
            date=str(translations.provenance.get("date", datetime.date.today().isoformat())),
            fitted_with=fitted_with(translations.provenance, name),
        )
        for name in (COE, CASCADE)
        if name in systems
    }
