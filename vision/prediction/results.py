"""Predictions of files as JSON lines or CSV, on stdout or in a file that an interrupted run continues."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, TextIO

from vision.errors import RunError
from vision.prediction.files import FilePrediction
from vision.run import write_text

Format = Literal["csv", "jsonl"]
COLUMNS = [field.name for field in fields(FilePrediction)]


def heading(kind: Format) -> str:
    """First line of a file of this format; empty for JSON lines.

    Example:
        >>> heading("csv")[:15], heading("jsonl")
        ('file,threshold,', '')
    """
    return ",".join(COLUMNS) + "\n" if kind == "csv" else ""


def line(outcome: FilePrediction, kind: Format) -> str:
    """One outcome, with its newline. An infinite threshold is written as a string."""
    values = asdict(outcome)
    if math.isinf(outcome.threshold):
        values["threshold"] = str(outcome.threshold)
    if kind == "jsonl":
        return json.dumps(values) + "\n"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values.values())
    return text.getvalue()


def open_results(path: Path, kind: Format, threshold: float, resume: bool) -> tuple[TextIO, set]:
    """The file to append to, and the names of the files it holds already.

    A last line that an interruption cut off is removed.

    Args:
        path: of the results.
        kind: their format.
        threshold: that the further lines are predicted at.
        resume: continue a file that exists.

    Raises:
        RunError: the file exists and ``resume`` is off; it is no file of this format; it was
            written at another threshold.
    """
    if not path.exists():
        write_text(path, heading(kind))
        return path.open("a", encoding="utf-8"), set()
    if not resume:
        raise RunError(f"{path} exists and is left as it is; --resume continues it")
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # without a line that was cut off
    if not whole.startswith(heading(kind)):
        raise RunError(
            f"{path} does not begin as {kind} of `coe-vision predict`; choose another file"
        )
    records = _records(path, whole.removeprefix(heading(kind)), kind)
    done = set()
    for file, written_at in records:
        if float(written_at) != threshold:
            raise RunError(
                f"{path} was written at threshold {written_at}, now it is {threshold}; choose "
                "another file, or the same --at or --threshold"
            )
        done.add(file)
    if whole != text:
        write_text(path, whole)
    return path.open("a", encoding="utf-8"), done


def _records(path: Path, text: str, kind: Format) -> Iterable[tuple[str, str]]:
    """File and threshold of every line."""
    try:
        if kind == "jsonl":
            rows = [json.loads(row) for row in text.splitlines()]
        else:
            rows = list(csv.DictReader(io.StringIO(text), COLUMNS))
        return [(row["file"], row["threshold"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is not {kind} of `coe-vision predict` ({error}); choose another file"
        ) from error
