"""Files of operating points and of the stored curve: one schema for both tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from coe_core.chosen import Choice, shown_amount
from coe_core.errors import AimNotReachableError
from coe_core.operating_points import CalibratedCurve, OperatingPoint, check_type
from coe_core.support.files import read_json, write_json

COE, CASCADE = "CoE", "cascade"  # of systems: the first is that of a file that names none


def has_exits(system: str) -> bool:
    """Whether a system has a threshold to exit by.

    Example:
        >>> has_exits("CoE"), has_exits("cascade"), has_exits("single:expert")
        (True, True, False)
    """
    return system in (COE, CASCADE)


class StoredPoints(NamedTuple):
    """A file of operating points."""

    points: dict[str, list[OperatingPoint]]  # by system: "CoE", "cascade", "single:expert"
    provenance: dict[str, Any]  # of the file; often empty
    choices: Mapping[str, Choice] = MappingProxyType(
        {}
    )  # by name of a point: which system's to use

    def named(self, system: str = COE) -> dict[str, OperatingPoint]:
        """One system's by their names; of equal names the last counts."""
        return {point.name: point for point in self.points.get(system, [])}

    def deployed(self, name: str) -> str:
        """The system whose point of this name is to be used; where none was chosen, the collaboration.

        Example:
            >>> StoredPoints({}, {}).deployed("best")
            'CoE'
        """
        return self.choices[name].deployed if name in self.choices else COE

    def used(self, name: str) -> OperatingPoint | None:
        """The point of this name of the system that is deployed at it; None: there is none.

        Example:
            >>> StoredPoints({}, {}).used("best") is None
            True
        """
        return self.named(self.deployed(name)).get(name)

    @property
    def names(self) -> list[str]:
        """Of all points that a system is deployed at."""
        known = dict.fromkeys(point.name for points in self.points.values() for point in points)
        return [name for name in known if self.used(name) is not None]


def best_within(
    curves: Mapping[str, CalibratedCurve], deployed: Collection[str], macs: float
) -> tuple[str, int]:
    """The deployed system of the best held-out quality at a mean cost, and the point on its curve.

    Where all that are deployed cost more, of the others.

    Args:
        curves: of each system.
        deployed: systems that are used at any stored point.
        macs: mean multiply-adds.

    Raises:
        AimNotReachableError: all cost more; names the cheapest.
    """
    fits = {}
    for name, curve in curves.items():
        with contextlib.suppress(AimNotReachableError):
            fits[name] = curve.fit(macs)
    fits = {name: at for name, at in fits.items() if name in deployed} or fits
    if not fits:
        name = min(curves, key=lambda n: (min(curves[n].macs), has_exits(n)))
        raise AimNotReachableError(
            f"a mean cost of {shown_amount(macs)} is below that of every system; the cheapest that exists "
            f"is {name} at {shown_amount(min(curves[name].macs))}: raise the budget"
        )
    # Of equals one without exits, which is simpler.
    best = max(fits, key=lambda n: (curves[n].quality[fits[n]], not has_exits(n)))
    return best, fits[best]


def save_points(path: str | Path, task: str, stored: StoredPoints) -> None:
    """Write operating points as JSON, whole or not at all: the one schema of both tasks.

    Args:
        path: of the file; one that is there is replaced.
        task: "vision" or "translation".
        stored: what to write.

    Example:
        >>> import tempfile
        >>> save_points(Path(tempfile.mkdtemp()) / "points.json", "vision", StoredPoints({}, {}))
    """
    points = {
        system: [point.to_dict() for point in entries] for system, entries in stored.points.items()
    }
    content = {"task": task, "points": points, "provenance": stored.provenance}
    if stored.choices:
        content["choices"] = {name: choice.to_dict() for name, choice in stored.choices.items()}
    write_json(path, content)


def load_points(path: str | Path, task: str) -> StoredPoints:
    """Inverse of `save_points`; also of the two schemas of older versions, which name no task.

    Args:
        path: of the file.
        task: that the points must be of.

    Raises:
        ValueError: no such file, a damaged one, or points of another task.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "points.json"
        >>> save_points(path, "vision", StoredPoints({"CoE": []}, {"commit": "1234"}))
        >>> load_points(path, "vision")
        StoredPoints(points={'CoE': []}, provenance={'commit': '1234'}, choices={})
    """
    values = read_json(path)
    try:
        return _points_from(task, values)
    except ValueError as error:
        raise ValueError(f"{path} holds no operating points of ours: {error}") from error


def _points_from(task: str, values: dict[str, Any]) -> StoredPoints:
    if "points" not in values:
        if task != "vision":
            raise ValueError("it has no points")
        # vision's older schema: points by name, of one system
        values = {"points": {COE: list(values.values())}}
    _check_task(task, values)
    provenance = values.get("provenance", {})
    check_type("points", values["points"], dict, "an object")
    check_type("provenance", provenance, dict, "an object")
    points = {}
    for system, entries in values["points"].items():
        check_type(f"points of {system}", entries, list, "a list")
        for point in entries:
            check_type(f"a point of {system}", point, dict, "an object")
        points[system] = [OperatingPoint.from_dict(point) for point in entries]
    choices = values.get("choices", {})
    check_type("choices", choices, dict, "an object")
    chosen = {name: Choice.from_dict(choice) for name, choice in choices.items()}
    for name, choice in chosen.items():
        if all(point.name != name for point in points.get(choice.deployed, [])):
            raise ValueError(
                f"{name!r:.60} is to be served by {choice.deployed!r:.60}, which has no such point"
            )
    return StoredPoints(points, provenance, chosen)


def stored_point(text: str, task: str, system: str = COE) -> OperatingPoint:
    """The operating point that FILE:NAME names, such as thresholds.json:macs=60%.

    Args:
        text: file and name.
        task: see `load_points`.
        system: whose points.

    Raises:
        ValueError: no such file or name (says which there are).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "points.json"
        >>> save_points(path, "translation", StoredPoints({"CoE": []}, {}))
        >>> stored_point(f"{path}:fast", "translation")
        Traceback (most recent call last):
        ValueError: ...points.json has no threshold named 'fast'; it has: none
    """
    path, _, name = text.rpartition(":")
    points = load_points(path, task).named(system)
    if name not in points:
        known = ", ".join(points) or "none"
        raise ValueError(f"{path} has no threshold named {name!r}; it has: {known}")
    return points[name]


def save_curves(path: str | Path, task: str, curves: Mapping[str, CalibratedCurve]) -> None:
    """Write stored curves as JSON, whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        task: see `save_points`.
        curves: by system.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "curve.json"
        >>> curve = CalibratedCurve([0.9], [1.0], [0.5], [1.0], 0.3, 2, "v", "2026-01-01")
        >>> save_curves(path, "vision", {"CoE": curve})
        >>> load_curves(path, "vision") == {"CoE": curve}
        True
    """
    content = {system: curve.to_dict() for system, curve in curves.items()}
    write_json(path, {"task": task, "curves": content}, indent=None)


def load_curves(path: str | Path, task: str) -> dict[str, CalibratedCurve]:
    """Inverse of `save_curves`; older files hold one curve, the collaboration's, or name no task.

    Raises:
        ValueError: no such file, a damaged one, or curves of another task.

    Example:
        >>> load_curves("nowhere.json", "vision")
        Traceback (most recent call last):
        ValueError: nowhere.json cannot be read: No such file or directory
    """
    values = read_json(path)
    try:
        _check_task(task, values)
        if "curves" not in values:
            values = {"curves": {COE: {k: v for k, v in values.items() if k != "task"}}}
        check_type("curves", values["curves"], dict, "an object")
        for system, curve in values["curves"].items():
            check_type(f"the curve of {system}", curve, dict, "an object")
        return {s: CalibratedCurve.from_dict(curve) for s, curve in values["curves"].items()}
    except ValueError as error:
        raise ValueError(f"{path} holds no trade-off curve of ours: {error}") from error


def _check_task(task: str, values: Mapping[str, Any]) -> None:
    written_for = values.get("task", task)
    if written_for != task:
        raise ValueError(f"it is of the task {written_for}, not of {task}")
