"""routing.json: what a runner must know of an export beside its networks. One schema for both adapters.

Standard library only: every export carries this file inside its runner.py (see `exports.standalone`).

| key | what it is |
|---|---|
| format | 2; exports of format 1 are read too |
| task | "vision" or "translation" |
| confidence | "max_probability", "margin", "entropy" or "gain"; "probability" or "log_probability" |
| system | which of the run's systems it is: CoE, cascade, single:NAME, ensemble:NAME |
| delegator, experts | of each network: file (or folder), macs (or null), weights: "float32" or "int8" |
| default | name, threshold and rough_weight that hold if none is asked for |
| operating_points | by name: threshold, rough_weight, and what they were fitted for |
| files | by name: bytes and sha256 of every file but runner.py, which may be changed |
| provenance | checkpoint, date, packages |
| sha256 | of all the rest of this table |
| classes, preprocess, curve, opset | vision only |
| search, end, max_source_tokens, max_target_tokens, selection, sentencepiece | translation only |

Infinite thresholds are the words "inf" and "-inf": JSON has no numbers for them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

FORMAT = 2
ALONE = ("single:", "ensemble:")  # systems without a delegator: one network, which is in its place
CONFIDENCES = {
    "vision": ("max_probability", "margin", "entropy", "gain"),
    "translation": ("probability", "log_probability"),
}


class DamagedExportError(ValueError):
    """routing.json or a file that it names is missing, damaged or not what it says; names it."""


def read_routing(folder: str | Path, task: str, verify: bool = True) -> dict[str, Any]:
    """Content of an export's routing.json, checked; thresholds are numbers, format 1 is brought to 2.

    Args:
        folder: of the export.
        task: that the export must be of.
        verify: compare the content's digest, too.

    Raises:
        DamagedExportError: missing, not JSON, of another format or task, changed, or with a value of
            another type than the table above has.
    """
    path = Path(folder) / "routing.json"
    if not path.is_file():
        raise DamagedExportError(f"{folder} is not an export: it has no file routing.json")
    try:
        routing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedExportError(f"{path} is damaged: not JSON ({error})") from error
    try:
        _check(isinstance(routing, dict), "is no table of names and values")
        version = routing.get("format")
        _check(
            type(version) is int and version in (1, FORMAT),
            f"has format {_shown(version)}, this runner reads 1 to {FORMAT}",
        )
        if version == 1:
            routing = _from_format_1(routing)
        _check(
            routing.get("task") == task,
            f"is of task {_shown(routing.get('task'))}, this runner is for {task}",
        )
        _check_common(routing)
        (_check_images if task == "vision" else _check_translation)(routing)
    except _WrongError as wrong:
        raise DamagedExportError(f"{path} {wrong}") from wrong
    if verify and version == FORMAT and routing.get("sha256") != content_digest(routing):
        raise DamagedExportError(
            f"{path} is not as it was exported (its digest differs): copy it again, or leave digests "
            "unchecked if you changed it"
        )
    for name in routing["files"]:
        if (place := Path(folder) / name).exists() and not place.is_file():
            raise DamagedExportError(f"{place} is no regular file: copy the whole export again")
    for point in (routing["default"], *routing["operating_points"].values()):
        point["threshold"] = float(point["threshold"])
        point["rough_weight"] = float(point["rough_weight"])
    return routing


def verify_files(folder: str | Path, routing: dict[str, Any], names: Sequence[str]) -> None:
    """Compare files with their digests in routing.json; those of format 1 have none.

    Args:
        folder: of the export.
        routing: of `read_routing`.
        names: files or folders of the export; the weights beside NAME in NAME.data go with it.

    Raises:
        DamagedExportError: a file that is missing or differs; names it.
    """
    for name in names:
        files = [
            file
            for file in routing["files"]
            if file in (name, f"{name}.data") or file.startswith(f"{name}/")
        ]
        if not files and routing["format"] == FORMAT:
            raise DamagedExportError(f"{Path(folder) / 'routing.json'} has no digest of {name}")
        for file in files:
            path, stored = Path(folder) / file, routing["files"][file]
            if not path.is_file():
                raise DamagedExportError(f"{path} is missing: copy the whole export")
            size = path.stat().st_size
            if size != stored["bytes"]:
                raise DamagedExportError(
                    f"{path} is damaged: it has {size:,} bytes, exported were {stored['bytes']:,}; "
                    "copy it again"
                )
            digest = file_digest(path)
            if digest != stored["sha256"]:
                raise DamagedExportError(
                    f"{path} is damaged: its sha256 begins {digest[:12]}, that of the export "
                    f"{stored['sha256'][:12]}; copy it again"
                )


def content_digest(routing: dict[str, Any]) -> str:
    """sha256 of the values, whatever their order and layout."""
    content = {name: value for name, value in routing.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's content, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def stored_setting(
    routing: dict[str, Any], at: str | None = None, threshold: float | None = None
) -> tuple[float, float]:
    """Threshold and rough weight of a stored operating point, of a threshold of one's own, or the default.

    Raises:
        ValueError: both, an operating point that is not stored (lists those that are), or a threshold
            outside the range of the export's confidence.
    """
    if at is not None and threshold is not None:
        raise ValueError(
            f"give an operating point or a threshold, not both: {at!r} and {threshold:g}"
        )
    points = routing["operating_points"]
    if at is not None and at not in points:
        raise ValueError(f"no operating point {at!r}; stored: {', '.join(points) or 'none'}")
    point = routing["default"] if at is None else points[at]
    chosen = float(point["threshold"] if threshold is None else threshold)
    if math.isnan(chosen) or (chosen < 0 and routing["confidence"] != "log_probability"):
        raise ValueError(
            f"threshold must be at least 0, got {chosen:g}: 0 ends all early, inf none"
            if routing["confidence"] != "log_probability"
            else f"threshold must be a number, got {chosen:g}: -inf ends all early, inf none"
        )
    return chosen, float(point["rough_weight"])


class OneLineParser(argparse.ArgumentParser):
    """argparse's, without abbreviated options; what is wrong is said in one line, without the usage."""

    def __init__(self, description: str):
        super().__init__("runner.py", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def run_as_command(name: str, call: Callable[[], int]) -> int:
    """Exit status of a runner's command: what is wrong with its input is one line on stderr."""
    try:
        status = call()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f"{name}: needs {error.name}: pip install {error.name}", file=sys.stderr)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:  # the libraries' too
        reason = " ".join(str(error).split()) or "not enough memory"
        print(f"{name}: {reason}", file=sys.stderr)
    return 2


class _WrongError(Exception):
    """What is wrong with the content, to be said after the file's name."""


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _WrongError(otherwise)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _of(table: dict[str, Any], name: str, where: str = "") -> Any:
    _check(name in table, f"is damaged: it has no {where}{name}")
    return table[name]


def _typed(table: dict[str, Any], name: str, kind: type, where: str = "", low: int = 0) -> Any:
    """The value under a name: a table, a list, a text, or a whole number of at least ``low``."""
    value = _of(table, name, where)
    kinds = {dict: "a table", list: "a list", str: "a text", int: f"a whole number from {low}"}
    fits = type(value) is kind and not (isinstance(value, int) and value < low)
    _check(fits, f"is damaged: {where}{name} is {_shown(value)}, not {kinds[kind]}")
    return value


def _number(table: dict[str, Any], name: str, where: str, infinite: bool = False) -> float:
    """A number; where it may be infinite, also the words for that."""
    value = _of(table, name, where)
    try:
        words = infinite and value in ("inf", "-inf")
        number = float(value) if words or type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.nan
    fits = not math.isnan(number) and (infinite or math.isfinite(number))
    _check(fits, f"is damaged: {where}{name} is {_shown(value)}, not a number")
    return number


def _file(table: dict[str, Any], name: str, where: str = "") -> str:
    """A path inside the export."""
    value: str = _typed(table, name, str, where)
    _check_path(value, f"{where}{name}")
    return value


def _check_path(value: str, where: str) -> None:
    inside = not any(part in ("", ".", "..") for part in value.split("/"))
    plain = not any(sign in value for sign in "\\:\0")
    _check(inside and plain, f"is damaged: {where} is {_shown(value)}, not a file of the export")


def _check_common(routing: dict[str, Any]) -> None:
    kind, known = _typed(routing, "confidence", str), CONFIDENCES[routing["task"]]
    _check(kind in known, f"is damaged: confidence is {_shown(kind)}, known: {', '.join(known)}")
    experts = _typed(routing, "experts", list)
    system = _typed(routing, "system", str) if "system" in routing else ""
    _check(bool(experts) or system.startswith(ALONE), "is damaged: it has no experts")
    networks = [("delegator.", _typed(routing, "delegator", dict))]
    for j, expert in enumerate(experts):
        _check(type(expert) is dict, f"is damaged: experts[{j}] is {_shown(expert)}, not a table")
        networks.append((f"experts[{j}].", expert))
    for where, network in networks:
        _file(network, "file", where)
        if network.get("macs") is not None:
            _typed(network, "macs", int, where)
    points = _typed(routing, "operating_points", dict)
    settings = [("default.", _typed(routing, "default", dict))]
    for name, point in points.items():
        where = f"operating_points.{_shown(name)}"
        _check(type(point) is dict, f"is damaged: {where} is {_shown(point)}, not a table")
        settings.append((f"{where}.", point))
    for where, point in settings:
        threshold = _number(point, "threshold", where, infinite=True)
        within = threshold >= 0 or kind == "log_probability"
        _check(within, f"is damaged: {where}threshold is {threshold:g}, below 0")
        _number(point, "rough_weight", where)
    for name, entry in _typed(routing, "files", dict).items():
        where = f"files.{_shown(name)}"
        _check_path(name, where)
        _check(type(entry) is dict, f"is damaged: {where} is {_shown(entry)}, not a table")
        _typed(entry, "bytes", int, f"{where}.")
        _typed(entry, "sha256", str, f"{where}.")


def _check_images(routing: dict[str, Any]) -> None:
    classes = _typed(routing, "classes", list)
    texts = bool(classes) and all(type(name) is str for name in classes)
    _check(texts, f"is damaged: classes is {_shown(classes)}, not a list of names")
    preprocess = _typed(routing, "preprocess", dict)
    sides = _of(preprocess, "size", "preprocess.")  # of a square, or height and width
    sides = [sides] if type(sides) is int else sides
    fits = type(sides) is list and len(sides) in (1, 2) and all(type(s) is int for s in sides)
    fits = fits and min(sides) >= 1
    _check(
        fits, f"is damaged: preprocess.size is {_shown(preprocess['size'])}, not one side or two"
    )
    _typed(preprocess, "channels", int, "preprocess.", low=1)
    value, known = _of(preprocess, "resize", "preprocess."), ("exact", "crop")
    fits = type(value) is str and value in known
    _check(fits, f"is damaged: preprocess.resize is {_shown(value)}, known: {known}")
    values = preprocess.get("range")
    if values is not None:  # of pixels of more than 8 bits
        fits = type(values) is list and len(values) == 2
        fits = fits and all(type(v) in (int, float) for v in values) and values[0] < values[1]
        _check(
            fits, f"is damaged: preprocess.range is {_shown(values)}, not a low and a high value"
        )
    for where in ("delegator", *range(len(routing["experts"]))):
        network = routing["delegator"] if where == "delegator" else routing["experts"][where]
        _check(network.get("macs") is not None, f"is damaged: {where} has no macs")


def _check_translation(routing: dict[str, Any]) -> None:
    search = _typed(routing, "search", dict)
    _typed(search, "beam", int, "search.", low=1)
    _typed(search, "max_length", int, "search.", low=1)
    _number(search, "lenpen", "search.")
    _typed(routing, "end", str)
    _typed(routing, "max_source_tokens", int, low=2)
    if routing.get("max_target_tokens") is not None:  # unknown in format 1
        _typed(routing, "max_target_tokens", int, low=2)
    if routing.get("system", "CoE") == "CoE" or routing.get("selection") is not None:
        _file(routing, "selection")
    if _of(routing, "sentencepiece") is not None:
        _file(routing, "sentencepiece")
    targets = routing.get("targets", [])  # older exports know of none
    texts = type(targets) is list and all(type(name) is str for name in targets)
    _check(texts, f"is damaged: targets is {_shown(targets)}, not a list of languages")


def tag_of(routing: dict[str, Any], target: str | None) -> str:
    """What a source sentence begins with, for an export that translates into several languages.

    Args:
        routing: of the export.
        target: language that is wanted.

    Raises:
        ValueError: a language that there is not, or none where one is due.

    Example:
        >>> tag_of({"targets": ["de", "fr"]}, "fr"), tag_of({}, None)
        ('<2fr> ', '')
    """
    known = routing.get("targets", [])
    if target is None and not known:
        return ""
    if target not in known:
        asked = "say into which language" if target is None else f"no language {target!r:.60}"
        there = ", ".join(known) or "one language: name none"
        raise ValueError(f"{asked}; the export translates into {there}")
    return f"<2{target}> "


def _from_format_1(routing: dict[str, Any]) -> dict[str, Any]:
    """The older routing.json of either task in today's form; it has no digests."""
    _check("classes" in routing or "thresholds" in routing, "is damaged: it is of no task")
    if "classes" in routing:
        return {"task": "vision", "files": {}, **routing}
    thresholds = _typed(routing, "thresholds", dict)
    count = _typed(routing, "num_experts", int, low=1)
    _check(count < 10_000, f"is damaged: num_experts is {count}")
    given = {
        name: value for name, value in routing.items() if name not in ("thresholds", "default")
    }
    return {
        "task": "translation",
        "delegator": {"file": "delegator"},
        "experts": [{"file": f"expert_{j}"} for j in range(count)],
        "selection": "selection",
        "default": {"threshold": _of(routing, "default"), "rough_weight": 0.0},
        "operating_points": {
            name: {"threshold": value, "rough_weight": 0.0} for name, value in thresholds.items()
        },
        "files": {},
        **given,
    }
