"""Does `controlled_threshold` keep its promise? Coverage over resampled calibration sets.

    python benchmarks/guarantee.py RUN [RUN ...] [--resamplings 200] [--out FOLDER]

The test set of a run is taken as the population: its accuracies at any threshold are known exactly.
Calibration sets are drawn from it with replacement; on each a threshold is fitted, and the drop that
this threshold has on the population is compared with the drop that was asked for. Beside it the plain
fit (cheapest point whose drop *on the calibration set* is small enough), which promises nothing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from scipy.stats import binomtest
from torch import Tensor

from coe_core import confidence, controlled_threshold, fit_threshold, trade_off_curve
from coe_core.support.files import write_text
from coe_core.support.reports import (
    csv_text,
    figure_to,
    markdown_table,
    print_table,
    rich_table,
)
from vision.data.load import load_data
from vision.evaluation.predictions import predict_all
from vision.precision import choose_precision
from vision.run import load_run

DROPS = (0.005, 0.01, 0.02)
SIZES = (300, 1000, 5000)
GUARANTEE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--resamplings", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/guarantee"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder in arguments.runs:
        population = of_run(folder)
        for size in SIZES:
            for drop in DROPS:
                kept_and_rates = coverage(*population, size, drop, arguments.resamplings)
                rows.append([folder.name, size, 100 * drop, *kept_and_rates])
                print(*rows[-1], flush=True)
    report(rows, arguments.resamplings, arguments.out)


def of_run(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, and whether the rough and the selected expert's prediction are right, on test data."""
    run = load_run(folder)
    test = load_data(run.recipe.data).test
    predictions = predict_all(run.networks, test, choose_precision(run.recipe.train.precision))
    return (
        confidence(predictions.rough_logits),
        predictions.right(predictions.rough_logits),
        predictions.right(predictions.selected_logits),
    )


def coverage(
    confidences: Tensor, rough: Tensor, expert: Tensor, size: int, drop: float, resamplings: int
) -> tuple[float, float, float, float]:
    """Part of the calibration sets whose threshold keeps the drop, and mean exit rate; controlled, plain."""
    generator = torch.Generator().manual_seed(0)
    full = float(expert.mean())
    kept, exits = [0, 0], [0.0, 0.0]
    for _ in range(resamplings):
        rows = torch.randint(len(confidences), (size,), generator=generator)
        sample = confidences[rows], rough[rows], expert[rows]
        curve = trade_off_curve(*sample, 0.0, 1.0)
        plain = float(curve.threshold[fit_threshold(curve, "accuracy_drop", drop)])
        for way, threshold in enumerate((controlled_threshold(*sample, drop, GUARANTEE), plain)):
            ends = confidences >= threshold
            reached = float(torch.where(ends, rough, expert).mean())
            kept[way] += full - reached <= drop + 1e-9
            exits[way] += float(ends.float().mean())
    return tuple(
        value for way in (0, 1) for value in (kept[way] / resamplings, exits[way] / resamplings)
    )


def report(rows: list[list], resamplings: int, out: Path) -> None:
    heading = [
        *("run", "calibration images", "drop, points", "kept", "exit rate"),
        *("kept, plain fit", "exit rate, plain fit"),
    ]
    cells = [
        [run, str(size), f"{drop:g}", *(f"{100 * value:.1f} %" for value in parts)]
        for run, size, drop, *parts in rows
    ]
    print_table(rich_table(heading, cells, f"{resamplings} resamplings, asked for {GUARANTEE:.0%}"))
    write_text(out / "table.md", markdown_table(heading, cells))
    write_text(out / "guarantee.csv", csv_text(heading, rows))
    draw(rows, resamplings, out / "guarantee.png")
    print(f"{out / 'table.md'}, {out / 'guarantee.csv'}, {out / 'guarantee.png'}")


def draw(rows: list[list], resamplings: int, file: Path) -> None:
    """Coverage of every setting with its 95% interval, both ways of fitting."""
    with figure_to(file, (8, 4)) as figure:
        axes = figure.subplots()
        for way, (name, marker) in enumerate({"controlled": "o", "plain fit": "x"}.items()):
            values = [row[3 + 2 * way] for row in rows]
            tests = [binomtest(round(value * resamplings), resamplings) for value in values]
            ends = [test.proportion_ci(0.95) for test in tests]
            low = [value - end.low for value, end in zip(values, ends, strict=True)]
            high = [end.high - value for value, end in zip(values, ends, strict=True)]
            places = [place + 0.15 * way for place in range(len(rows))]
            axes.errorbar(places, values, yerr=[low, high], fmt=marker, capsize=2, label=name)
        axes.axhline(GUARANTEE, linestyle="--", color="grey", linewidth=1, label="asked for")
        names = [f"{size}\n{drop:g}" for _, size, drop, *_ in rows]
        axes.set_xticks(range(len(rows)), names)
        axes.set_xlabel("calibration images; drop allowed, points of top-1")
        axes.set_ylabel("part of the sets that keep it")
        axes.set_ylim(0, 1.03)
        axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    main()
