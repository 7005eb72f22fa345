"""Files of operating points and of the stored curve: one schema for both tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coe_core.operating_points import CalibratedCurve, OperatingPoint, check_type
from coe_core.support.files import read_json, write_json

COE = "CoE"  # the system of a file that names none


class StoredPoints(NamedTuple):
    """A file of operating points."""

    points: dict[str, list[OperatingPoint]]  # by system: "CoE", "cascade"
    provenance: dict[str, Any]  # of the file; often empty

    def named(self, system: str = COE) -> dict[str, OperatingPoint]:
        """One system's by their names; of equal names the last counts."""
        return {point.name: point for point in self.points.get(system, [])}


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
    write_json(path, {"task": task, "points": points, "provenance": stored.provenance})


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
        StoredPoints(points={'CoE': []}, provenance={'commit': '1234'})
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
    return StoredPoints(points, provenance)


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


def save_curve(path: str | Path, task: str, curve: CalibratedCurve) -> None:
    """Write a stored curve as JSON, whole or not at all.

    Args:
        path: of the file; one that is there is replaced.
        task: see `save_points`.
        curve: what to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "curve.json"
        >>> curve = CalibratedCurve([0.9], [1.0], [0.5], [1.0], 0.3, 2, "v", "2026-01-01")
        >>> save_curve(path, "vision", curve)
        >>> load_curve(path, "vision") == curve
        True
    """
    write_json(path, {"task": task, **curve.to_dict()}, indent=None)


def load_curve(path: str | Path, task: str) -> CalibratedCurve:
    """Inverse of `save_curve`; older files name no task.

    Raises:
        ValueError: no such file, a damaged one, or a curve of another task.

    Example:
        >>> load_curve("nowhere.json", "vision")
        Traceback (most recent call last):
        ValueError: nowhere.json cannot be read: No such file or directory
    """
    values = read_json(path)
    try:
        _check_task(task, values)
        return CalibratedCurve.from_dict({k: v for k, v in values.items() if k != "task"})
    except ValueError as error:
        raise ValueError(f"{path} holds no trade-off curve of ours: {error}") from error


def _check_task(task: str, values: Mapping[str, Any]) -> None:
    written_for = values.get("task", task)
    if written_for != task:
        raise ValueError(f"it is of the task {written_for}, not of {task}")
