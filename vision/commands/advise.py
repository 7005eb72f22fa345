"""`coe-vision advise`: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from coe_core.support.command import add_overrides, at_least


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("data", help="a folder of images (train/CLASS/image), or a recipe")
    add_overrides(parser, "such as data.size=64")
    parser.add_argument(
        "--seen",
        type=at_least(1),
        default=100_000,
        metavar="IMAGES",
        help="training images that each network sees in all (default: 100000, a few minutes)",
    )
    parser.add_argument("--out", help="folder of the short run (default: runs/advise/NAME)")


def run(arguments: argparse.Namespace) -> None:
    """Train for a short while, then print what to expect and by which numbers."""
    from coe_core.support.reports import NONE, print_table, rich_table
    from vision.evaluation.advise import NAMES, advise, small_recipe

    recipe = small_recipe(arguments.data, tuple(arguments.overrides))
    name = Path(arguments.data).resolve().stem
    folder = Path(arguments.out) if arguments.out else Path("runs/advise") / name
    advice = advise(recipe, folder, arguments.seen)
    rows = [
        [
            NAMES[point.system],
            f"{100 * point.exit_rate:.0f}",
            f"{point.macs / 1e6:.3g}",
            f"{point.top1:.1f}",
            NONE
            if point.above_line is None
            else f"{point.above_line:+.1f} ± {point.standard_error:.1f}",
        ]
        for point in advice.points
    ]
    headings = ("predictor", "exits %", "MMACs", "top-1 %", "over the line of single networks")
    trained = advice.recipe.train.epochs
    title = f"{name}: {advice.num_samples} held-out images after {trained} short epochs"
    print_table(rich_table(headings, rows, title, left=(0,)))
    for line in advice.lines:
        print(line)
