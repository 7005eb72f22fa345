"""`coe-vision predict`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe_core.support.command import DONE, IN_PART, at_least
from vision.commands.serve import add_arithmetic, add_system, choose_runtime

if TYPE_CHECKING:
    from rich.table import Table

    from vision.budgets import ResolvedBudget
    from vision.prediction.predictor import Predictor

LONGEST_NAME = 40  # letters of a file in the table, above which its folder is told once


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument(
        "images",
        nargs="+",
        help="image files, folders, shards (.tar), or Parquet tables of images or of their names",
    )
    parser.add_argument(
        "--at",
        help="stored operating point (default: best), or mean multiply-adds such as 100M, or 60%% of "
        "those of no exits",
    )
    parser.add_argument(
        "--threshold", type=float, help="exit when confidence >= this; higher exits fewer"
    )
    parser.add_argument(
        "--format",
        choices=("table", "csv", "jsonl", "parquet"),
        help="(default: table, or by the ending of --out; with --workers parquet)",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    add_system(parser)
    parser.add_argument(
        "--max-pixels",
        type=at_least(1),
        metavar="N",
        help="largest image that is decoded, in pixels (default: Pillow's limit, 89 million)",
    )
    parser.add_argument(
        "--out",
        help="file to write csv or jsonl to; a folder for parquet, and for what workers write",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue --out: images that it holds are left out"
    )
    parser.add_argument(
        "--workers",
        type=at_least(1, 100_000),
        metavar="N",
        help="processes, each on a core or a GPU of a Ray cluster",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="of a running Ray cluster that --workers are of (default: one on this machine)",
    )
    add_arithmetic(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict every image; those that cannot be read are said and counted."""
    if arguments.cluster and not arguments.workers:
        raise ValueError("--cluster is where --workers run: give both")
    if arguments.workers or arguments.format == "parquet":
        return _run_in_pieces(arguments)
    from coe_core.support.progress import progress
    from coe_core.support.reports import print_table
    from vision.prediction.files import predict_files
    from vision.prediction.inputs import find_inputs
    from vision.prediction.predictor import Predictor
    from vision.prediction.results import open_results

    path = arguments.out and Path(arguments.out)
    by_ending = ("csv" if path.suffix == ".csv" else "jsonl") if path else "table"
    kind: Any = arguments.format or by_ending
    if path and kind == "table":
        raise ValueError("--format table is for the terminal; --out writes csv or jsonl")
    if arguments.resume and not path:
        raise ValueError("--resume continues a file: give it as --out FILE")
    predictor = Predictor(
        arguments.run,
        system=arguments.system,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        compiled=arguments.compiled,
        max_pixels=arguments.max_pixels,
    )
    files = find_inputs(arguments.images)
    budget = predictor.resolve(arguments.at, arguments.threshold)
    _choose(predictor, arguments, budget, len(files))
    if kind == "table":
        outcomes = predict_files(predictor, files, budget)
        rows = list(progress(outcomes, len(files), "predicting"))
        print_table(_predictions_table(rows, budget))
        failed = sum(outcome.error is not None for outcome in rows)
    else:
        failed = 0
        with open_results(path, kind, budget.threshold, arguments.resume, budget.system) as results:
            files = [file for file in files if file.name not in results.done]
            outcomes = predict_files(predictor, files, budget)
            for outcome in progress(outcomes, len(files), "predicting"):
                failed += outcome.error is not None
                results.write(outcome)
        if path:
            already = len(results.done)
            left_out = f", {already} were there already" if already else ""
            print(f"{len(files)} predictions written to {path}{left_out}")
    return _status(failed, len(files))


def _status(failed: int, count: int) -> int:
    if failed:
        print(f"coe-vision predict: {failed} of {count} files could not be read", file=sys.stderr)
    return IN_PART if failed else DONE


def _run_in_pieces(arguments: argparse.Namespace) -> int:
    """Predict into a folder of files, in this process or by workers of a Ray cluster."""
    from coe_core.support.progress import ProgressLine
    from vision.prediction import pieces as in_pieces
    from vision.prediction.inputs import find_inputs

    kind: Any = arguments.format or "parquet"
    if not arguments.out or kind not in ("parquet", "jsonl"):
        raise ValueError(
            "--workers, and --format parquet, write a folder: give --out FOLDER, and --format parquet "
            "or jsonl"
        )
    if arguments.workers and (arguments.compiled or arguments.runtime == "onnxruntime"):
        raise ValueError(
            f"--{'compiled' if arguments.compiled else 'runtime onnxruntime'} does not go with --workers"
        )
    job = in_pieces.Job(
        arguments.run,
        arguments.out,
        str(Path.cwd()),
        kind,
        arguments.at,
        arguments.threshold,
        arguments.system,
        arguments.batch_size,
        arguments.precision,
        arguments.max_pixels,
    )
    predictor = job.predictor()
    inputs = find_inputs(arguments.images)
    images = failed = 0
    with in_pieces.planned(job, inputs, predictor, arguments.resume) as pieces:
        total = sum(len(piece.inputs) for piece in pieces)
        with ProgressLine(total, "predicting") as line:
            for done in _predicted(job, pieces, predictor, arguments):
                images, failed = images + done.images, failed + done.unreadable
                line.advance(done.images)
    already = len(inputs) - total
    left_out = f", {already} were there already" if already else ""
    print(f"{images} predictions written to {arguments.out}{left_out}")
    return _status(failed, images)


def _predicted(job, pieces, predictor, arguments: argparse.Namespace) -> Iterator[Any]:
    """What becomes of each piece, here or on a cluster."""
    from vision.prediction.pieces import predict_piece

    if not pieces:
        return
    if arguments.workers is None:
        budget = predictor.resolve(job.at, job.threshold)
        _choose(predictor, arguments, budget, sum(len(piece.inputs) for piece in pieces))
        yield from (predict_piece(predictor, budget, piece, job) for piece in pieces)
        return
    from vision.prediction.cluster import cluster, predict_pieces

    with cluster(arguments.cluster, arguments.workers) as num_gpus:
        yield from predict_pieces(pieces, job, arguments.workers, num_gpus)


def _choose(
    predictor: Predictor, arguments: argparse.Namespace, budget: ResolvedBudget, images: int
) -> None:
    """What predicts fastest; said where that was measured, beside the predictions."""
    chosen = choose_runtime(predictor, arguments, [budget.system], images)
    if chosen.threads.measured:
        print(f"computing with {chosen.threads}", file=sys.stderr)
    if chosen.runtime:
        print(f"networks by {chosen.runtime}", file=sys.stderr)


def _route(exited: bool | None, expert: int | None, system: str) -> str:
    if exited is None:
        return system
    return "ended early" if exited else f"expert {expert}"


def _folder_left_out(names: Sequence[str]) -> str:
    """The folder of all files, with its separator, where names would not fit a table; else nothing.

    Example:
        >>> _folder_left_out(["/photos/a.jpg", f"/photos/of/{40 * 'x'}.jpg"]), _folder_left_out(["a/b.jpg"])
        ('/photos/', '')
    """
    folders = {os.path.dirname(name) for name in names}
    if max(map(len, names), default=0) <= LONGEST_NAME or len(set(map(os.path.isabs, folders))) > 1:
        return ""
    common = os.path.join(os.path.commonpath(folders), "")
    return common if all(name.startswith(common) for name in names) else ""


def _predictions_table(outcomes: Sequence, budget: ResolvedBudget) -> Table:
    from rich.text import Text

    from coe_core.support.reports import rich_table
    from vision.data.files import printable

    names = [outcome.file for outcome in outcomes]
    folder = _folder_left_out(names)
    names = [name[len(folder) :] for name in names]
    rows: list[list[str | Text]] = [
        [printable(name), Text(printable(outcome.error), "red"), "", "", "", ""]
        if outcome.error is not None
        else [
            printable(name),
            outcome.label,
            f"{outcome.probability:.3f}",
            _route(outcome.exited, outcome.expert, budget.system),
            f"{outcome.confidence:.3f}",
            f"{outcome.macs / 1e6:.3g}",
        ]
        for name, outcome in zip(names, outcomes, strict=True)
    ]
    title = budget.system
    if any(outcome.exited is not None for outcome in outcomes):
        title = f"{budget.system}, threshold {budget.threshold:.4f}"
    if folder:
        title += f"; files in {printable(folder)}"
    headings = ("file", "label", "probability", "route", "confidence", "MMACs")
    return rich_table(headings, rows, title, left=(0, 1, 3))
