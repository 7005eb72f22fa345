"""What a study shows: two tables, two CSV files, two pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from coe_core.support.files import write_json, write_text
from coe_core.support.provenance import provenance
from coe_core.support.reports import (
    NONE,
    Curve,
    Panel,
    csv_text,
    draw_trade_off,
    figure_to,
    markdown_table,
    mean_and_spread,
    rich_table,
)
from vision.evaluation.study import METRICS, PointResult, RunResult, Study, results_of

if TYPE_CHECKING:
    from rich.table import Table

StudyResults = Mapping[tuple[str, int], RunResult]
DRAWN = ("CoE", "CoE, mean", "cascade, mean", "single, expert", "random", "oracle")
POINT_HEADINGS = (
    "variant",
    "predictor",
    "exits %",
    "MMACs",
    "top-1 %",
    "above the line ± its error",
)
LINE_NOTE = (
    "Above the line: points over the straight line between the next cheaper and the next dearer single "
    "network of the same seed, mean over seeds; its error is paired over the test images (root mean square "
    "over seeds, not divided by their number); in brackets the spread over seeds. - where no single network "
    "is as cheap or as dear."
)


class Report(NamedTuple):
    """What `report` made."""

    tables: list[Table]  # for the terminal
    notes: list[str]
    files: list[Path]


def report(study: Study, results: StudyResults, out: Path) -> Report:
    """Write table.md, runs.csv, points.csv, study.png, trade_off.png and provenance.json; p values are of a
    paired t-test over seeds against the baseline.

    Args:
        study: what was compared.
        results: by variant and seed.
        out: folder to write to.
    """
    headings, rows = _metric_rows(study, results)
    point_rows = _point_rows(study, results)
    notes = [LINE_NOTE] if _has_line(results) else [_no_line(results)]
    notes += _badly_trained(study, results)
    texts = {
        "table.md": markdown_table(headings, rows)
        + "\n"
        + markdown_table(POINT_HEADINGS, point_rows, left=(0, 1))
        + "".join(f"\n{note}\n" for note in notes),
        "runs.csv": _runs_csv(results),
        "points.csv": _points_csv(results),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    write_json(out / "provenance.json", _provenance(study))
    _draw_metrics(study, results, out / "study.png")
    _draw_line(study, results, out / "trade_off.png")
    seeds = ", ".join(map(str, study.seeds))
    title = f"{study.name}: test top-1 %, mean ± spread over seeds {seeds}"
    tables = [
        rich_table(headings, rows, title),
        rich_table(
            POINT_HEADINGS, point_rows, "beside the line through single networks", left=(0, 1)
        ),
    ]
    return Report(tables, notes, [out / name for name in (*texts, "study.png", "trade_off.png")])


def _metric_rows(study: Study, results: StudyResults) -> tuple[list[str], list[list[str]]]:
    rows = []
    base = _collaborations(results_of(results, study.baseline, study.seeds))
    for name in study.names:
        runs = results_of(results, name, study.seeds)
        cells = [
            mean_and_spread([run.metrics[metric] for run in runs]).shown(1) for metric in METRICS
        ]
        scores = _collaborations(runs)
        gain, p = "", ""
        if name != study.baseline:
            gain = f"{statistics.fmean(scores) - statistics.fmean(base):+.1f}"
            p = _paired_test(scores, base)
        rows.append([name, *cells, gain, p])
    return ["variant", *METRICS, "CoE gains", "p"], rows


def _collaborations(runs: Sequence[RunResult]) -> list[float]:
    """What the table is about: every run of a study has one."""
    return [cast(float, run.metrics["CoE"]) for run in runs]


def _paired_test(scores: Sequence[float], base: Sequence[float]) -> str:
    """p of a paired t-test over seeds; empty with one seed, or where all differences are the same."""
    from scipy.stats import ttest_rel

    differences = [a - b for a, b in zip(scores, base, strict=True)]
    if len(differences) < 2 or len(set(differences)) == 1:
        return ""
    return f"{ttest_rel(scores, base).pvalue:.3f}"


def _point_rows(study: Study, results: StudyResults) -> list[list[str]]:
    rows = []
    for name in study.names:
        runs = results_of(results, name, study.seeds)
        for position in range(len(runs[0].points)):
            points = [run.points[position] for run in runs]
            if points[0].system == "cascade" and name != study.baseline:
                continue  # the same for every variant
            rows.append(
                [
                    name if points[0].system == "CoE" else NONE,
                    points[0].system,
                    mean_and_spread([100 * point.exit_rate for point in points]).shown(0),
                    mean_and_spread([point.macs / 1e6 for point in points])
                    ._replace(spread=None)
                    .shown(3),
                    mean_and_spread([point.top1 for point in points]).shown(1),
                    _above_line(points),
                ]
            )
    return rows


def _above_line(points: Sequence[PointResult]) -> str:
    known = [point for point in points if point.above_line is not None]
    if len(known) < len(points):
        return NONE
    mean, spread, _ = mean_and_spread([point.above_line for point in known])
    errors = [point.standard_error for point in known if point.standard_error is not None]
    error = math.sqrt(statistics.fmean(value**2 for value in errors))
    over_seeds = "" if spread is None else f" ({spread:.1f})"
    return f"{mean:+.1f} ± {error:.1f}{over_seeds}"


def _has_line(results: StudyResults) -> bool:
    return all(len(run.singles) >= 2 for run in results.values())


def _no_line(results: StudyResults) -> str:
    fewest = min(len(run.singles) for run in results.values())
    return (
        f"No line through single networks: it takes two or more, the recipe's controls are {fewest}; add "
        "some, such as controls.larger.name=..."
    )


def _badly_trained(study: Study, results: StudyResults) -> list[str]:
    """A line through a network that trained badly flatters what is beside it: say so."""
    notes = []
    for seed in study.seeds:
        below = results[study.baseline, seed].below
        if below:
            notes.append(
                f"Seed {seed}: {', '.join(below)} below the line through the neighbours; did it train badly?"
            )
    return notes


def _runs_csv(results: StudyResults) -> str:
    rows = [
        [name, seed, *(result.metrics[metric] for metric in METRICS)]
        for (name, seed), result in results.items()
    ]
    return csv_text(["variant", "seed", *METRICS], rows)


def _points_csv(results: StudyResults) -> str:
    rows: list[list[object]] = []
    for (name, seed), result in results.items():
        rows += [[name, seed, *point] for point in result.points]
        rows += [
            [name, seed, f"single {single}", None, None, macs, top1, None, None]
            for single, (macs, top1) in result.singles.items()
        ]
    return csv_text(["variant", "seed", *PointResult._fields], rows)


def _provenance(study: Study) -> dict:
    return provenance(
        ["torch", "torchvision", "timm", "lightning", "numpy"],
        recipe=study.recipe,
        overrides=study.overrides,
        variants=study.variants,
        seeds=study.seeds,
    )


def _draw_metrics(study: Study, results: StudyResults, file: Path) -> None:
    """One line of points per metric over the variants, the first at the top."""
    names = study.names
    with figure_to(file, size=(8, 1.2 + 0.45 * len(names))) as figure:
        axes = figure.subplots()
        for position, metric in enumerate(DRAWN):
            spreads = [
                mean_and_spread(
                    [run.metrics[metric] for run in results_of(results, n, study.seeds)]
                )
                for n in names
            ]
            rows = [
                (row + 0.08 * (position - len(DRAWN) / 2), of_variant.mean, of_variant.spread or 0)
                for row, of_variant in enumerate(spreads)
                if of_variant.mean is not None
            ]
            if rows:
                axes.errorbar(
                    [mean for _, mean, _ in rows],
                    [row for row, _, _ in rows],
                    xerr=[spread for _, _, spread in rows],
                    fmt="o",
                    markersize=4,
                    capsize=2,
                    label=metric,
                )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"test top-1, %, mean and spread over {len(study.seeds)} seed(s)")
        axes.grid(axis="y", visible=False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_line(study: Study, results: StudyResults, file: Path) -> None:
    """Every variant's operating points beside the line through the single networks."""
    baseline = results_of(results, study.baseline, study.seeds)
    curves = []
    if len(baseline[0].singles) >= 2:
        singles = [list(zip(*sorted(run.singles.values()), strict=True)) for run in baseline]
        lines = [([m / 1e6 for m in macs], top1) for macs, top1 in singles]
        curves.append(Curve("single networks", lines))
    systems = [("cascade", study.baseline), *(("CoE", name) for name in study.names)]
    for system, name in systems:
        runs = [
            ([p.macs / 1e6 for p in points], [p.top1 for p in points])
            for run in results_of(results, name, study.seeds)
            if (points := [p for p in run.points if p.system == system])
        ]
        if runs:
            curves.append(Curve(f"CoE, {name}" if system == "CoE" else "cascade", runs))
    panel = Panel("mean multiply-adds per image, millions", "test top-1, %", curves, [])
    draw_trade_off(file, study.name, [[panel]])
