"""A study: one recipe, several variants, several seeds; one table with spread and paired tests.

    python benchmarks/study.py recipes/study/focus.yaml --data FOLDER [--out runs/study/focus]

Every variant is trained under the identical recipe and budget and beside the same controls. Runs that
are finished are kept: the same command continues where it stopped. Thresholds are fitted on
validation data; the table is read off test data.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import statistics
import time
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
from vision.data import load_data
from vision.predictions import Predictions, RunMacs, predict_all, run_macs
from vision.recipe import load_recipe
from vision.run import load_run, write_text
from vision.table import fit_stages
from vision.train import train

# What is measured of every run; percentages on test data.
METRICS = (
    "coe",  # selected expert, no exits
    "coe_pooled",  # with the rough prediction, by the weight fitted on validation data
    "cascade_pooled",  # the same of the cascade without exits
    "coe_half",  # at the mean MACs of delegator + half an expert
    "cascade_half",  # the cascade of networks trained alone, at the same mean MACs
    "plain_expert",  # an expert's network trained alone
    "rough",  # the delegator's rough prediction
    "plain_delegator",  # the delegator's network trained alone
    "expert",  # mean of the team's experts
    "mean_of_all",  # ensemble of the team's experts
    "oracle",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
    out = arguments.out or Path("runs/study") / arguments.study.stem
    out.mkdir(parents=True, exist_ok=True)
    common = list(study.get("overrides", []))
    if arguments.data:
        common.append(f"data.path={arguments.data}")
    grid = list(itertools.product(study["seeds"], study["variants"].items()))
    start, trained = time.monotonic(), 0
    results: dict[tuple[str, int], dict[str, float]] = {}
    for number, (seed, (name, changes)) in enumerate(grid, 1):
        folder = out / f"{name.replace(' ', '_').replace('/', '_')}-s{seed}"
        kept = folder / "result.json"
        if not kept.is_file():
            overrides = [*common, *changes, f"seed={seed}"]
            result = run_once(study["recipe"], overrides, folder)
            write_text(kept, json.dumps(result, indent=2) + "\n")
            trained += 1
            left = (time.monotonic() - start) / trained * (len(grid) - number)
            print(
                f"{number}/{len(grid)} {name}, seed {seed}: {show(result)}; {left:.0f} s left",
                flush=True,
            )
        results[name, seed] = json.loads(kept.read_text(encoding="utf-8"))
    report(study, results, out)


def show(result: dict[str, float]) -> str:
    return ", ".join(
        f"{metric} {result[metric]:.1f}" for metric in ("coe", "plain_expert", "oracle")
    )


def run_once(recipe_name: str, overrides: list[str], folder: Path) -> dict[str, float]:
    recipe = load_recipe(recipe_name, overrides)
    with contextlib.redirect_stdout(io.StringIO()):  # the study has its own progress
        train(recipe, folder, resume=True)
    run = load_run(folder)
    data = load_data(recipe.data)
    macs = run_macs(run.networks)
    return measure(
        predict_all(run.networks, data.validation), predict_all(run.networks, data.test), macs
    )


def measure(validation: Predictions, test: Predictions, macs: RunMacs) -> dict[str, float]:
    experts = torch.stack([test.right(logits) for logits in test.expert_logits.unbind(1)], 1)
    values = {
        "coe": test.right(test.selected_logits).mean(),
        "plain_expert": test.right(test.control_logits["expert"]).mean(),
        "rough": test.right(test.rough_logits).mean(),
        "plain_delegator": test.right(test.control_logits["delegator"]).mean(),
        "expert": experts.mean(),
        "mean_of_all": test.right(test.expert_logits.softmax(2).mean(1)).mean(),
        "oracle": experts.amax(1).mean(),
    }
    budget = macs.delegator + 0.5 * macs.expert
    for name, stage in fit_stages(validation, test, macs).items():
        curve = stage.validation.curve()
        threshold = float(curve.threshold[fit_threshold(curve, "macs", budget)])
        values[f"{name.lower()}_half"] = stage.test.at(threshold)[0]
        values[f"{name.lower()}_pooled"] = stage.test.final_right.mean()
    return {name: 100 * float(value) for name, value in values.items()}


def report(study: dict, results: dict[tuple[str, int], dict[str, float]], out: Path) -> None:
    """Table, CSV and picture; p is of a paired t-test over seeds against the baseline variant."""
    seeds, baseline = study["seeds"], study["baseline"]
    table = Table(
        title=f"{out.name}: test top-1 %, mean ± spread over seeds {seeds}", title_justify="left"
    )
    table.add_column("variant")
    for metric in METRICS:
        table.add_column(metric, justify="right", no_wrap=True)
    table.add_column(f"coe - {baseline}", justify="right")
    table.add_column("p", justify="right")
    rows = []
    for name in study["variants"]:
        columns = {m: [results[name, seed][m] for seed in seeds] for m in METRICS}
        base = [results[baseline, seed]["coe"] for seed in seeds]
        gain = statistics.fmean(a - b for a, b in zip(columns["coe"], base, strict=True))
        p = (
            ""
            if name == baseline or len(seeds) < 2
            else f"{ttest_rel(columns['coe'], base).pvalue:.3f}"
        )
        cells = [mean_and_spread(columns[metric]) for metric in METRICS]
        rows.append([name, *cells, f"{gain:+.2f}", p])
        table.add_row(*rows[-1])
    Console(width=200).print(table)
    heading = ["variant", *METRICS, f"coe - {baseline}", "p"]
    lines = [heading, ["---"] + ["---:"] * (len(heading) - 1), *rows]
    write_text(out / "table.md", "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    with (out / "runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *METRICS])
        for (name, seed), result in results.items():
            writer.writerow([name, seed, *(f"{result[metric]:.3f}" for metric in METRICS)])
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for metric in ("coe", "coe_half", "cascade_half", "plain_expert", "mean_of_all", "oracle"):
        values = [[results[name, seed][metric] for seed in seeds] for name in study["variants"]]
        spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in values]
        axes.errorbar(
            list(study["variants"]),
            [statistics.fmean(v) for v in values],
            spread,
            marker="o",
            capsize=3,
            label=metric,
        )
    axes.set_ylabel("test top-1, %")
    axes.tick_params(axis="x", rotation=20)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(out / "study.png", dpi=130)
    print(f"{out / 'table.md'}, {out / 'runs.csv'}, {out / 'study.png'}")


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
