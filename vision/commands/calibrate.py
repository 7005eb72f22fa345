"""`coe-vision calibrate`: its options, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from coe_core.support.command import add_level_option, at_least, number_in

if TYPE_CHECKING:
    from coe_core import OperatingPoint
    from vision.run import Run


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
    add_level_option(parser)
    parser.add_argument(
        "--system", metavar="NAME", help="use this one: coe, cascade, single:NAME, ensemble:NAME"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fit, store, and print the operating points."""
    from coe_core.support.aims import parse_aim
    from vision.evaluation.calibrate import AIMS, calibrate
    from vision.run import load_run, load_run_data
    from vision.systems import find_system

    for aim in arguments.aims:  # before anything is decoded, which can take long
        parse_aim(aim, AIMS)
    run = load_run(arguments.run, team=False)
    if arguments.system is not None:
        find_system(run.recipe, arguments.system)
    data = load_run_data(run, arguments.data, decode=("validation",))
    points = calibrate(
        run,
        data,
        arguments.aims,
        guarantee=arguments.guarantee,
        confidence=arguments.confidence,
        batch_size=arguments.batch_size,
        level=arguments.level,
        system=arguments.system,
    )
    print_points(run, points, is_named=arguments.system is not None)


def print_points(run: Run, points: Iterable[OperatingPoint], *, is_named: bool = False) -> None:
    """The operating points as a table for the terminal, and why each system was chosen, or by whom."""
    from coe_core.chosen import reason, shown_cost
    from coe_core.support.reports import print_table, rich_table

    points = list(points)
    rows = [
        [
            point.name,
            run.stored.deployed(point.name),
            f"{point.threshold:.4f}",
            f"{100 * point.exit_rate:.1f}",
            f"{100 * point.quality:.2f}",
            shown_cost(point.cost, point.cost_unit),
        ]
        for point in points
    ]
    headings = ("name", "system", "threshold", "exits %", "top-1 %", "mean cost")
    title = "operating points, fitted on validation data"
    print_table(rich_table(headings, rows, title, left=(0, 1)))
    for point in points:
        choice = run.stored.choices[point.name]
        why = reason(choice, point.cost_unit, points=100)
        if is_named:
            why = f"{choice.deployed}, as --system says; no other was compared"
        print(f"{point.name}: {why}")
