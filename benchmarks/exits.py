"""What should exits be decided by? Four kinds of confidence on runs that exist, thresholds of held-out data.

    python benchmarks/exits.py RUN [RUN ...] [--data FOLDER] [--out FOLDER]

For each run and kind the threshold that ends 10, 25, 50 and 75% of the held-out images early, and what it
leads to on the test images: the share that ends, and top-1. For gain the rule is fitted on every second
held-out image and the threshold on the others, as `coe-vision calibrate --confidence gain` does.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import fmean
from typing import get_args

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from coe_core.inference import ConfidenceKind
from coe_core.support.files import write_text
from coe_core.support.reports import csv_text, figure_to, markdown_table, mean_and_spread
from vision.evaluation.predictions import predict_all
from vision.evaluation.stages import CASCADE, COE, fit_stages
from vision.precision import choose_precision
from vision.recipe_networks import run_macs
from vision.run import load_run, load_run_data

KINDS = (*get_args(ConfidenceKind), "gain")
EXITS = (0.1, 0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", help="where the data lie now")
    parser.add_argument("--out", type=Path, default=Path("runs/exits"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [row for folder in arguments.runs for row in of_run(folder, arguments.data)]
    write_text(arguments.out / "exits.csv", csv_text(_COLUMNS, rows))
    table = summary(rows)
    write_text(arguments.out / "exits.md", table)
    draw(rows, arguments.out / "exits.png")
    print(table)


_COLUMNS = ("run", "system", "confidence", "exits asked", "exits", "macs", "top1_percent")


def of_run(folder: Path, data_path: str | None) -> list[list]:
    """A row for each system, kind and share of exits."""
    run = load_run(folder)
    data = load_run_data(run, data_path)
    precision = choose_precision(run.recipe.train.precision)
    validation, test = (
        predict_all(run.networks, split, precision) for split in (data.validation, data.test)
    )
    rows, macs = [], run_macs(run.networks)
    for kind in KINDS:
        for name, stage in fit_stages(validation, test, macs, kind).items():
            curve = stage.validation.curve()
            for exits in (0.0, *EXITS):
                index = int((curve.exit_rate <= exits + 1e-9).sum()) - 1
                reached = stage.test.at(float(curve.threshold[index]))
                quality, cost = 100 * reached.quality, reached.cost["macs"]
                rows.append([folder.name, name, kind, exits, reached.exit_rate, cost, quality])
    return rows


def summary(rows: list[list]) -> str:
    """Top-1 of each system and kind at each share of exits, mean and spread over the runs."""
    headings = ["system", "confidence", *(f"{100 * exits:.0f}% exits" for exits in (0.0, *EXITS))]
    lines = []
    for system in (COE, CASCADE):
        for kind in KINDS:
            cells = [
                [row[6] for row in rows if row[1:4] == [system, kind, exits]]
                for exits in (0.0, *EXITS)
            ]
            if cells[0]:
                lines.append([system, kind, *(mean_and_spread(cell).shown() for cell in cells)])
    return markdown_table(headings, lines, left=(0, 1))


def draw(rows: list[list], path: Path) -> None:
    """Mean top-1 of the collaborations against the share of test images that end early."""
    with figure_to(path, (6, 4)) as figure:
        axes = figure.subplots()
        for kind in KINDS:
            cells = [
                [row for row in rows if row[1:4] == [COE, kind, exits]] for exits in (0.0, *EXITS)
            ]
            shares = [100 * fmean(row[4] for row in cell) for cell in cells]
            axes.plot(shares, [fmean(row[6] for row in cell) for cell in cells], "o-", label=kind)
        axes.set_xlabel("test images that end early, %")
        axes.set_ylabel("top-1 of the collaboration, %")
        axes.legend(title="exits decided by", frameon=False)
        axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
