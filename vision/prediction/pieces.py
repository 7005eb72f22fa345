"""Many images in pieces: each piece becomes a file of results, whole or not at all, on any machine.

Which images are in which piece follows from the inputs alone, so a stopped prediction continues with the
pieces that have no file yet, with as many processes as there are then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from coe_core.support.files import json_text, read_json, whole_file, write_json
from coe_core.support.locks import lock_path, locked
from vision.budgets import ResolvedBudget
from vision.data.files import printable
from vision.errors import RunError
from vision.prediction.files import FilePrediction, predict_files
from vision.prediction.inputs import Input
from vision.prediction.predictor import Predictor
from vision.prediction.results import record
from vision.run import load_run

PartFormat = Literal["parquet", "jsonl"]
PLAN = "plan.json"
IN_PIECE = 2048  # images; a piece is lost at most where a process is killed


class Piece(NamedTuple):
    """Images that are predicted together and written to one file."""

    number: int
    inputs: list[Input]


class Predicted(NamedTuple):
    """What became of a piece."""

    number: int
    images: int
    unreadable: int


class Job(NamedTuple):
    """How pieces are predicted: all that another process needs beside them. Plain values.

    Args:
        run: folder or checkpoint.
        out: folder of the results.
        start: folder that relative names start from; it lies at the same place on every machine.
        kind: format of the results.
        at: operating point or multiply-adds; None: see `Predictor.resolve`.
        threshold: instead of it.
        system: see `Predictor`.
        batch_size: see `Predictor`.
        precision: see `Predictor`.
        max_pixels: see `Predictor`.
    """

    run: str
    out: str
    start: str
    kind: PartFormat
    at: str | None = None
    threshold: float | None = None
    system: str | None = None
    batch_size: int = 64
    precision: str = "auto"
    max_pixels: int | None = None

    def predictor(self) -> Predictor:
        """The predictor of a process, whose weights all processes of a machine share."""
        return Predictor(
            load_run(self.run, team=False, mapped=True),
            system=self.system,
            batch_size=self.batch_size,
            precision=self.precision,
            max_pixels=self.max_pixels,
        )

    def part(self, number: int) -> Path:
        """The file of a piece."""
        return Path(self.out) / f"part-{number:06d}.{self.kind}"


def predict_piece(
    predictor: Predictor, budget: ResolvedBudget, piece: Piece, job: Job
) -> Predicted:
    """Predict a piece and write its file.

    Raises:
        RunError: a network of the run has diverged.
        OSError: the file cannot be written.
    """
    outcomes = list(predict_files(predictor, piece.inputs, budget))
    with whole_file(job.part(piece.number)) as part:
        if job.kind == "jsonl":
            part.write_bytes(b"".join(record(outcome, "jsonl") for outcome in outcomes))
        else:
            _write_parquet(part, outcomes)
    unreadable = sum(outcome.error is not None for outcome in outcomes)
    return Predicted(piece.number, len(outcomes), unreadable)


def _write_parquet(path: Path, outcomes: Sequence[FilePrediction]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {
        "str": pyarrow.string(),
        "float": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "int": pyarrow.int64(),
    }
    fields = dataclasses.fields(FilePrediction)
    schema = pyarrow.schema([(f.name, kinds[str(f.type).partition(" ")[0]]) for f in fields])
    rows = [
        dataclasses.asdict(outcome) | {"file": printable(outcome.file)}  # UTF-8 alone
        for outcome in outcomes
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


@contextmanager
def planned(
    job: Job, inputs: Sequence[Input], predictor: Predictor, resume: bool, size: int = IN_PIECE
) -> Iterator[list[Piece]]:
    """The pieces that are still to be predicted, with the folder of results locked.

    Args:
        job: how.
        inputs: all of them.
        predictor: of the job.
        resume: continue a folder that holds some.
        size: images of a piece.

    Raises:
        RunError: the folder holds results and ``resume`` is off, or they were made otherwise (says how).
        LockedError: another process writes to it.
    """
    out = Path(job.out)
    if out.exists() and not out.is_dir():
        raise RunError(f"{printable(out)} is a file; results in pieces need a folder")
    if not out.parent.is_dir():
        raise RunError(
            f"{printable(out)} cannot be made: there is no folder {printable(out.parent)}"
        )
    out.mkdir(exist_ok=True)
    lock = lock_path(out).name
    with locked(out, "choose another --out"):
        plan = _plan(job, inputs, predictor, size)
        if any(entry.name != lock for entry in out.iterdir()):
            _check_plan(out, plan, resume)
        else:
            write_json(out / PLAN, plan)
        pieces = [
            Piece(number, list(inputs[start : start + size]))
            for number, start in enumerate(range(0, len(inputs), size))
        ]
        yield [piece for piece in pieces if not job.part(piece.number).exists()]


def _plan(job: Job, inputs: Sequence[Input], predictor: Predictor, size: int) -> dict[str, Any]:
    budget = predictor.resolve(job.at, job.threshold)
    names = hashlib.sha256()
    for one in inputs:
        names.update(os.fsencode(one.name) + b"\0")
    return {
        "checkpoint": predictor.run.fitted_with()["checkpoint"],
        "system": budget.system,
        "threshold": budget.threshold,
        "format": job.kind,
        "images": len(inputs),
        "names": names.hexdigest(),
        "images_in_a_piece": size,
    }


def _check_plan(out: Path, plan: dict[str, Any], resume: bool) -> None:
    if not (out / PLAN).is_file():
        raise RunError(f"{printable(out)} holds other files; choose a new folder with --out")
    if not resume:
        raise RunError(
            f"{printable(out)} holds predictions and is left as it is; --resume continues them"
        )
    try:
        kept = read_json(out / PLAN)
    except ValueError as error:
        raise RunError(f"{error}; choose a new folder with --out") from error
    for name, value in json.loads(json_text(plan)).items():  # as it was written
        if kept.get(name) != value:
            told = f"{name} {kept.get(name)!r}, now {value!r}"
            if name in ("names", "images"):
                told = f"other images ({kept.get('images')}, now {plan['images']})"
            raise RunError(
                f"{printable(out)} was begun with {told}; give the same, or choose a new folder with --out"
            )
