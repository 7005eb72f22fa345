"""A study: one recipe, several variants, several seeds; one table with spread and paired tests.

    python benchmarks/study.py recipes/study/specialisation.yaml [--data FOLDER] [--out FOLDER]

Every variant is trained under the identical recipe and budget. The controls are trained once a seed,
beside the baseline variant (no objective reaches them). Runs that are finished are kept: the same
command continues where it stopped. Thresholds and pooling weights are fitted on validation data; the
table is read off test data.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import matplotlib
import torch
import yaml
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from coe_core import fit_threshold
from vision.data.load import ImageData, load_data
from vision.evaluation.predictions import Predictions, predict_all
from vision.evaluation.stages import FittedStage, fit_stages
from vision.evaluation.table import budgets
from vision.precision import choose_precision
from vision.recipe import load_recipe
from vision.recipe_networks import RunMacs, run_macs
from vision.run import load_run, write_text
from vision.training.train import train

# What is measured of every run; percentages on test data.
METRICS = {
    "CoE": "selected expert, no exits",
    "cascade": "delegator's and expert's network trained alone, no exits",
    "CoE, mean": "at the MACs of the largest single network below the expert's, or near them",
    "cascade, mean": "the cascade at the same mean MACs",
    "single, mean": "that single network, if there is one",
    "CoE, expert": "at the expert's MACs",
    "single, expert": "the expert's network trained alone",
    "rough": "the delegator's rough prediction",
    "selected": "the selected expert's own answer, the rough one not pooled with it",
    "best two": "mean of the two best selected experts' probabilities, at the MACs of both",
    "random": "an expert at random: mean of the experts",
    "all": "mean of all experts' probabilities",
    "oracle": "some expert is right",
    "captured": "(CoE - random) / (oracle - random)",
}
DRAWN = ("CoE", "CoE, mean", "cascade, mean", "single, expert", "random", "oracle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
    out = arguments.out or Path("runs/study") / arguments.study.stem
    out.mkdir(parents=True, exist_ok=True)
    common = [
        *study.get("overrides", []),
        *([f"data.path={arguments.data}"] if arguments.data else []),
    ]
    baseline = study["baseline"]
    names = [baseline, *(name for name in study["variants"] if name != baseline)]
    grid = [(seed, name) for seed in study["seeds"] for name in names]
    results: dict[tuple[str, int], dict[str, float]] = {}
    data: ImageData | None = None
    start, trained = time.monotonic(), 0
    for number, (seed, name) in enumerate(grid, 1):
        kept = run_folder(out, name, seed) / "result.json"
        if not kept.is_file():
            if data is None:
                data = load_data(load_recipe(study["recipe"], common).data)
            overrides = [*common, *study["variants"][name], f"seed={seed}"]
            controls = None if name == baseline else run_folder(out, baseline, seed)
            result = run_once(study["recipe"], overrides, kept.parent, data, controls)
            write_text(kept, json.dumps(result, indent=2) + "\n")
            trained += 1
            left = (time.monotonic() - start) / trained * (len(grid) - number)
            parts = ", ".join(f"{m} {result[m]:.1f}" for m in ("CoE", "cascade", "oracle"))
            print(
                f"{number}/{len(grid)} {name}, seed {seed}: {parts}; {left:.0f} s left", flush=True
            )
        results[name, seed] = json.loads(kept.read_text(encoding="utf-8"))
    report(names, study["seeds"], results, out)


def run_folder(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(' ', '_').replace('/', '_')}-s{seed}"


def run_once(
    recipe_name: str, overrides: list[str], folder: Path, data: ImageData, controls: Path | None
) -> dict[str, float]:
    """Train and measure one run; ``controls`` is the run whose controls stand beside it, None its own."""
    if controls is not None:
        overrides = [*overrides, "controls={}"]
    recipe = load_recipe(recipe_name, overrides)
    with contextlib.redirect_stdout(io.StringIO()):  # the study has its own progress
        train(recipe, folder, resume=True, data=data)
    validation, test, macs = predictions(folder, data)
    if controls is not None:
        beside = predictions(controls, data)
        validation = dataclasses.replace(validation, control_logits=beside[0].control_logits)
        test = dataclasses.replace(test, control_logits=beside[1].control_logits)
        macs = dataclasses.replace(macs, controls=beside[2].controls)
    return measure(validation, test, macs)


def predictions(folder: Path, data: ImageData) -> tuple[Predictions, Predictions, RunMacs]:
    """Of a finished run, on validation and test data."""
    run = load_run(folder)
    precision = choose_precision(run.recipe.train.precision)
    validation, test = (
        predict_all(run.networks, split, precision) for split in (data.validation, data.test)
    )
    return validation, test, run_macs(run.networks)


def measure(validation: Predictions, test: Predictions, macs: RunMacs) -> dict[str, float]:
    """`METRICS` of one run, in percent."""

    def accuracy(logits: torch.Tensor) -> float:
        return float(test.right(logits).mean())

    def at(stage: FittedStage, budget: float) -> float:
        curve = stage.validation.curve()
        threshold = float(curve.threshold[fit_threshold(curve, "macs", budget)])
        return stage.test.at(threshold).quality

    experts = torch.stack([test.right(logits) for logits in test.expert_logits.unbind(1)], 1)
    stages = fit_stages(validation, test, macs)
    smaller = [m for m in budgets(macs) if m < 0.99 * macs.expert]
    mean = max(smaller, default=macs.delegator + 0.5 * macs.expert)
    single = [name for name, m in macs.controls.items() if m == mean]
    values = {
        "CoE": float(stages["CoE"].test.qualities["accuracy"].final.mean()),
        "cascade": float(stages["cascade"].test.qualities["accuracy"].final.mean()),
        "CoE, mean": at(stages["CoE"], mean),
        "cascade, mean": at(stages["cascade"], mean),
        "single, mean": accuracy(test.control_logits[single[0]]) if single else float("nan"),
        "CoE, expert": at(stages["CoE"], macs.expert),
        "single, expert": accuracy(test.control_logits["expert"]),
        "rough": accuracy(test.rough_logits),
        "selected": accuracy(test.selected_logits),
        "best two": accuracy(best_two(test)),
        "random": float(experts.mean()),
        "all": accuracy(test.expert_logits.softmax(2).mean(1)),
        "oracle": float(experts.amax(1).mean()),
    }
    headroom = values["oracle"] - values["random"]
    gain = values["selected"] - values["random"]
    values["captured"] = gain / headroom if headroom > 0 else float("nan")
    return {name: 100 * value for name, value in values.items()}


def best_two(test: Predictions) -> torch.Tensor:
    """Mean probabilities of the two experts that the delegator would select first."""
    two = test.selection_logits.topk(min(2, test.selection_logits.shape[1]), 1).indices
    return test.expert_logits.softmax(2)[torch.arange(len(two))[:, None], two].mean(1)


def report(
    names: Sequence[str], seeds: list[int], results: dict[tuple[str, int], dict], out: Path
) -> None:
    """Table, CSV and picture; p is of a paired t-test over seeds against the first variant."""
    table = Table(
        title=f"{out.name}: test top-1 %, mean ± spread over seeds {seeds}", title_justify="left"
    )
    heading = ["variant", *METRICS, "CoE gains", "p"]
    for position, text in enumerate(heading):
        table.add_column(text, justify="right" if position else "left", no_wrap=not position)
    rows = []
    for name in names:
        columns = {m: [results[name, seed][m] for seed in seeds] for m in METRICS}
        base = [results[names[0], seed]["CoE"] for seed in seeds]
        gain, p = f"{statistics.fmean(columns['CoE']) - statistics.fmean(base):+.1f}", ""
        if name == names[0]:
            gain = ""
        elif len(seeds) > 1:
            p = f"{ttest_rel(columns['CoE'], base).pvalue:.3f}"
        rows.append([name, *(mean_and_spread(columns[metric]) for metric in METRICS), gain, p])
        table.add_row(*rows[-1])
    Console(width=220).print(table)
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    write_text(out / "table.md", "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    with (out / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *METRICS])
        for (name, seed), result in results.items():
            writer.writerow([name, seed, *(f"{result[metric]:.3f}" for metric in METRICS)])
    draw(names, seeds, results, out / "study.png")
    print(f"{out / 'table.md'}, {out / 'runs.csv'}, {out / 'study.png'}")


def draw(
    names: Sequence[str], seeds: list[int], results: dict[tuple[str, int], dict], file: Path
) -> None:
    """One line of points per metric over the variants, the best at the top."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.45 * len(names)), layout="constrained")
    rows = range(len(names))
    for position, metric in enumerate(DRAWN):
        values = [[results[name, seed][metric] for seed in seeds] for name in names]
        axes.errorbar(
            [statistics.fmean(v) for v in values],
            [row + 0.08 * (position - len(DRAWN) / 2) for row in rows],
            xerr=[statistics.stdev(v) if len(v) > 1 else 0 for v in values],
            fmt="o",
            markersize=4,
            capsize=2,
            label=metric,
        )
    axes.set_yticks(list(rows), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"test top-1, %, mean and spread over {len(seeds)} seeds")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=130)
    plt.close(figure)


def mean_and_spread(values: list[float]) -> str:
    if any(math.isnan(value) for value in values):  # no such network, or no headroom to capture
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
