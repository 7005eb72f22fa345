"""`coe-vision calibrate`: its options, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from coe_core.support.command import at_least, number_in

if TYPE_CHECKING:
    from rich.table import Table

    from coe_core import OperatingPoint


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument(
        "aims",
        nargs="+",
        metavar="AIM",
        help="best, macs=100M or macs=60%% (of no exits), latency=20 (ms) or latency=60%%, "
        "accuracy_drop=0.5%%, accuracy=90%%",
    )
    parser.add_argument("--data", help="where the data lie now")
    parser.add_argument(
        "--guarantee",
        type=number_in(0, 1, low_is_in=False, high_is_in=False),
        metavar="P",
        help="accuracy_drop holds with probability P, such as 0.95",
    )
    parser.add_argument(
        "--confidence",
        choices=("max_probability", "margin", "entropy", "gain"),
        default="max_probability",
        help="what exits are decided by: of the rough prediction, or what an expert is expected to gain",
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), help="at which latency is measured (default: 64)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fit, store, and print the operating points."""
    from coe_core.support.reports import print_table
    from vision.evaluation.calibrate import calibrate
    from vision.run import load_run, load_run_data

    run = load_run(arguments.run)
    data = load_run_data(run, arguments.data, decode=("validation",))
    points = calibrate(
        run,
        data,
        arguments.aims,
        guarantee=arguments.guarantee,
        confidence=arguments.confidence,
        batch_size=arguments.batch_size,
    )
    print_table(points_table(points))


def points_table(points: Iterable[OperatingPoint]) -> Table:
    """The operating points as a table for the terminal."""
    from coe_core.support.reports import rich_table

    rows = [
        [
            point.name,
            f"{point.threshold:.4f}",
            f"{100 * point.exit_rate:.1f}",
            f"{100 * point.quality:.2f}",
            f"{point.cost / 1e6:.3g} MMACs"
            if point.cost_unit == "macs"
            else f"{point.cost:.3f} ms",
        ]
        for point in points
    ]
    headings = ("name", "threshold", "exits %", "top-1 %", "mean cost")
    return rich_table(headings, rows, "operating points, fitted on validation data")
