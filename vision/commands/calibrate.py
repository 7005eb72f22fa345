"""`coe-vision calibrate`: its options, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from coe_core.support.command import at_least, number_in

if TYPE_CHECKING:
    from coe_core import Choice, OperatingPoint
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
    parser.add_argument(
        "--level",
        type=number_in(0, 1, low_is_in=False),
        default=0.05,
        metavar="P",
        help="of the paired test: simpler systems that are not worse at this level are preferred; 1 takes "
        "the best (default: 0.05)",
    )
    parser.add_argument(
        "--system", metavar="NAME", help="use this one: coe, cascade, single:NAME, ensemble:NAME"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fit, store, and print the operating points."""
    from vision.evaluation.calibrate import calibrate
    from vision.run import load_run, load_run_data

    run = load_run(arguments.run, team=False)
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
    print_points(run, points)


def print_points(run: Run, points: Iterable[OperatingPoint]) -> None:
    """The operating points as a table for the terminal, and why each system was chosen."""
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
        print(f"{point.name}: {reason(run.stored.choices[point.name], point.cost_unit)}")


def shown_cost(cost: float, unit: str) -> str:
    """A mean cost with its unit.

    Example:
        >>> shown_cost(2.5e6, "macs"), shown_cost(3.0, "ms")
        ('2.5 MMACs', '3.000 ms')
    """
    return f"{cost / 1e6:.3g} MMACs" if unit == "macs" else f"{cost:.3f} ms"


def reason(choice: Choice, unit: str) -> str:
    """Who won, by how much, with the interval, in one line."""
    deployed, best, rivals = choice.deployed, choice.best, choice.rivals
    by_cost = choice.criterion == "cost"
    if len(rivals) == 1:
        return f"{deployed} is the only system that reaches it"
    if deployed != best:
        parts, of_best = rivals[deployed].parts, rivals[best].parts
        behind = "dearer" if by_cost else "behind"
        return (
            f"{deployed} ({_networks(parts)}), {_gap(choice, deployed, unit)} {behind} {best} "
            f"({_networks(of_best)}): not worse at level {choice.level:g}"
        )
    others = [name for name in rivals if name != best]
    key = (lambda n: rivals[n].cost) if by_cost else (lambda n: -rivals[n].quality)
    second = min(others, key=key)
    return f"{deployed} ({_networks(rivals[deployed].parts)}), the best; {second} is " + (
        f"{_gap(choice, second, unit)} {'dearer' if by_cost else 'behind'}"
    )


def _networks(count: int) -> str:
    return f"{count} network{'s' * (count > 1)}"


def _gap(choice: Choice, name: str, unit: str) -> str:
    """How far a system is behind the best, with the interval and the p-value."""
    difference = choice.rivals[name].difference
    mean, low, high = difference[:3]
    sure = f"{100 * (1 - choice.level):g}% interval"
    if choice.criterion == "cost":
        shown = [shown_cost(value, unit).split() for value in (mean, low, high)]
        numbers = f"{shown[0][0]} {shown[0][1]} ({sure} {shown[1][0]} to {shown[2][0]}"
    else:
        numbers = f"{-100 * mean:.2f} points ({sure} {-100 * high:.2f} to {-100 * low:.2f}"
    return f"{numbers}, p = {difference.p_value:.2g})"
