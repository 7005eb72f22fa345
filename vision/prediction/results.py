"""Predictions of files as JSON lines or CSV, on stdout or in a file that an interrupted run continues.

Names of files are bytes: one that is not UTF-8 is written as the bytes it has (CSV) or as JSON's escape
of them, so that a continued run knows it again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from coe_core.support.files import FULL, as_number, write_bytes
from coe_core.support.locks import locked
from vision.errors import RunError
from vision.prediction.files import FilePrediction
from vision.systems import COE

Format = Literal["csv", "jsonl"]
COLUMNS = [field.name for field in fields(FilePrediction)]


class Results:
    """Where predictions are written, one whole record each.

    Args:
        out: binary stream.
        kind: format.
        done: names of the files it held before.
    """

    def __init__(self, out: BinaryIO, kind: Format, done: frozenset[str] = frozenset()):
        self.out, self.kind, self.done = out, kind, done

    def write(self, outcome: FilePrediction) -> None:
        """Add one outcome, so that it is there even if the process ends."""
        self.out.write(record(outcome, self.kind))
        self.out.flush()


def heading(kind: Format) -> bytes:
    """First line of a file of this format; empty for JSON lines.

    Example:
        >>> heading("csv")[:15], heading("jsonl")
        (b'file,threshold,', b'')
    """
    return (",".join(COLUMNS) + "\n").encode() if kind == "csv" else b""


def record(outcome: FilePrediction, kind: Format) -> bytes:
    r"""One outcome, with its line feed. An infinite threshold is written as a string.

    Example:
        >>> record(FilePrediction("two\rlines.png", math.inf), "csv")
        b'"two\rlines.png",inf,,,,,,,,CoE\n'
    """
    values = asdict(outcome)
    if math.isinf(outcome.threshold):
        values["threshold"] = str(outcome.threshold)
    if kind == "jsonl":
        return json.dumps(values).encode() + b"\n"
    text = io.StringIO(newline="")
    # What ends a line is quoted, and a carriage return in a name must be.
    csv.writer(text, lineterminator="\r\n").writerow(values.values())
    return text.getvalue().removesuffix("\r\n").encode(errors="surrogateescape") + b"\n"


@contextmanager
def open_results(
    path: Path | None,
    kind: Format,
    threshold: float,
    resume: bool = False,
    system: str = COE,
) -> Iterator[Results]:
    """The file to add predictions to, locked for this process; without a path, stdout.

    A last record that an interruption cut off, wherever, is removed.

    Args:
        path: of the results.
        kind: their format.
        threshold: that the further ones are predicted at.
        resume: continue a file that exists.
        system: that predicts them.

    Raises:
        RunError: the file exists and ``resume`` is off; it is no regular file, or none of this format; it
            was written by another system or at another threshold.
        LockedError: another process writes to it.
    """
    if path is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(heading(kind))
        yield Results(sys.stdout.buffer, kind)
        return
    if not path.parent.is_dir():
        raise RunError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        kind_of = "folder" if path.is_dir() else "pipe or a device"
        raise RunError(f"{path} is a {kind_of}; without --out predictions go to standard output")
    with locked(path, "choose another --out"):
        done: frozenset[str] = frozenset()
        if not path.exists():
            write_bytes(path, heading(kind))
        elif not resume:
            raise RunError(f"{path} exists and is left as it is; --resume continues it")
        else:
            done = _continued(path, kind, threshold, system)
        with path.open("ab") as out:
            try:
                yield Results(out, kind, done)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise OSError(error.errno, error.strerror, str(path)) from error


def _continued(path: Path, kind: Format, threshold: float, system: str) -> frozenset[str]:
    """Names of the files that the results hold; what was cut off is removed."""
    content, first = path.read_bytes(), heading(kind)
    if len(content) < len(first) and first.startswith(content):  # cut inside the heading
        write_bytes(path, first)
        return frozenset()
    if not content.startswith(first):
        raise RunError(
            f"{path} does not begin as {kind} of `coe-vision predict`; choose another file"
        )
    whole = content[: _end_of_records(content, kind)]
    names = set()
    for file, written_at, written_by in _records(path, whole[len(first) :], kind):
        if written_at != threshold:
            raise RunError(
                f"{path} was written at threshold {written_at:g}, now it is {threshold:g}; choose "
                "another file, or the same --at or --threshold"
            )
        if written_by != system:
            raise RunError(
                f"{path} was written by the system {written_by}, now it is {system}; choose another "
                "file, or the same --at or --system"
            )
        names.add(file)
    if whole != content:
        write_bytes(path, whole)
    return frozenset(names)


def _end_of_records(content: bytes, kind: Format) -> int:
    """Where the last record ends: at a line feed that, in CSV, is in no quoted name."""
    if kind == "jsonl":
        return content.rfind(b"\n") + 1
    start = end = 0
    for number, part in enumerate(content.split(b'"')):  # every second part is quoted
        place = part.rfind(b"\n")
        if number % 2 == 0 and place >= 0:
            end = start + place + 1
        start += len(part) + 1
    return end


class _Written(NamedTuple):
    file: str
    threshold: float
    system: str


def _records(path: Path, content: bytes, kind: Format) -> list[_Written]:
    """File, threshold and system of every record."""
    try:
        text = content.decode(errors="surrogateescape")
        if kind == "jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line]
        else:
            lines = csv.reader(io.StringIO(text, newline=""), strict=True)
            rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
            rows = [{**row, "threshold": float(row["threshold"])} for row in rows]
        written = [
            _Written(
                row["file"],
                as_number(row["threshold"], "threshold"),
                row.get("system", COE),  # lines of older versions name none
            )
            for row in rows
        ]
        if not all(isinstance(row.file, str) and isinstance(row.system, str) for row in written):
            raise ValueError("a file's name, or a system's, is no text")
        return written
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise RunError(
            f"{path} is not {kind} of `coe-vision predict` ({error}); choose another file"
        ) from error
