"""The table and the picture of a team beside all its controls, over one or several seeds."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from coe_core import OperatingPoint
from translation.evaluation.metrics import METRICS, CorpusQuality
from translation.evaluation.systems import (
    CASCADE,
    COE,
    NO_EXITS,
    ORACLE,
    RANDOM,
    Mixture,
    Routed,
    routed_systems,
    single_systems,
)
from translation.evaluation.translations import Translations

COLUMNS = (*METRICS, "MMACs", "ms", "exit %")


class Row(NamedTuple):
    """One system of one seed."""

    name: str
    values: tuple[float | None, ...]  # as COLUMNS; None: does not apply
    text: list[str] | None = None  # None: a mean over systems


class SummaryRow(NamedTuple):
    """One system over all seeds."""

    name: str
    mean: tuple[float | None, ...]
    spread: tuple[float | None, ...]  # standard deviation; None with one seed
    seeds: int


def rows(made: Translations, points: dict[str, list[OperatingPoint]]) -> list[Row]:
    """Every row of the table of method section 6 that these translations hold.

    Args:
        made: a translated test set.
        points: thresholds of "CoE" and "cascade", fitted on other data.
    """
    qualities = [CorpusQuality(metric, made.reference) for metric in METRICS]

    def row(name: str, mixture: Mixture) -> Row:
        scores = [
            float(one.scores(one.counts(mixture.text).sum(0, keepdim=True))[0]) for one in qualities
        ]
        exits = None if mixture.exit_rate is None else 100 * mixture.exit_rate
        return Row(name, (*scores, mixture.macs / 1e6, 1000 * mixture.seconds, exits), mixture.text)

    routed = routed_systems(made)
    found = [row(name, one) for name, one in single_systems(made).items()]
    experts = [one for one in found if one.name.startswith("expert-") and one.name[7:].isdecimal()]
    columns = zip(*(one.values for one in experts), strict=True)
    means = tuple(None if None in column else statistics.fmean(column) for column in columns)
    found.append(Row("mean of one expert", means))
    for name in (RANDOM, ORACLE, CASCADE, COE):
        if name in routed:
            found.append(row(f"{name}, no exits", routed[name].at(NO_EXITS)))
    for name in (CASCADE, COE):
        for point in points.get(name, []) if name in routed else []:
            found.append(row(f"{name}, {point.name}", routed[name].at(point.threshold)))
    return found


def summary(of_seeds: Sequence[Sequence[Row]]) -> list[SummaryRow]:
    """Mean and spread of every row; a row that some seed lacks says over how many it is."""
    by_name: dict[str, list[Row]] = {}
    for some in of_seeds:
        for one in some:
            by_name.setdefault(one.name, []).append(one)
    found = []
    for name, same in by_name.items():
        columns = [
            [value for value in column if value is not None]
            for column in zip(*(one.values for one in same), strict=True)
        ]
        mean = tuple(statistics.fmean(column) if column else None for column in columns)
        spread = tuple(statistics.stdev(column) if len(column) > 1 else None for column in columns)
        found.append(SummaryRow(name, mean, spread, len(same)))
    return found


def loads(made: Translations) -> list[float]:
    """Part of all sentences that CoE's selection sends to each expert, exits or not."""
    selected = routed_systems(made)[COE].selected
    return (torch.bincount(selected, minlength=made.num_experts) / len(made)).tolist()


def write_csv(path: Path, table: Sequence[SummaryRow]) -> None:
    """One line for each system: mean and spread of every column."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "seeds", *COLUMNS, *(f"{name} spread" for name in COLUMNS)])
        for one in table:
            values = ["" if value is None else f"{value:.4f}" for value in (*one.mean, *one.spread)]
            writer.writerow([one.name, one.seeds, *values])


def shown(table: Sequence[SummaryRow]) -> str:
    """The table for a terminal."""
    width = max(len(one.name) for one in table)
    lines = [f"{'':{width}} " + "".join(f"{name:>15}" for name in COLUMNS)]
    for one in table:
        cells = []
        for mean, spread in zip(one.mean, one.spread, strict=True):
            text = "" if mean is None else f"{mean:.2f}"
            cells.append(text if spread is None else f"{text} ± {spread:.2f}")
        lines.append(f"{one.name:{width}} " + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def write_curves(path: Path, made: Translations) -> dict[str, Routed]:
    """CSV of every operating point of every system with early termination."""
    routed = routed_systems(made)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["system", "threshold", "exit_rate", *METRICS, "macs", "seconds"])
        for name, system in routed.items():
            first, second = (
                system.curve(CorpusQuality(metric, made.reference), cost)
                for metric, cost in zip(METRICS, ("macs", "seconds"), strict=True)
            )
            columns = (first.threshold, first.exit_rate, first.quality, second.quality)
            for values in zip(*columns, first.cost, second.cost, strict=True):
                writer.writerow([name, *(f"{float(value):.6g}" for value in values)])
    return routed


def draw(path: Path, made: Translations, title: str) -> None:
    """BLEU and chrF against MACs and seconds: curves of what has thresholds, points of the rest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    routed, singles = routed_systems(made), single_systems(made)
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey="row")
    scale = {"macs": (1e-6, "million multiply-adds a sentence"), "seconds": (1e3, "ms a sentence")}
    for row, metric in zip(axes, METRICS, strict=True):
        quality = CorpusQuality(metric, made.reference)
        for axis, (cost, (unit, label)) in zip(row, scale.items(), strict=True):
            for name, system in routed.items():
                curve = system.curve(quality, cost)
                style = "--" if name == ORACLE else "-"
                # Without exits the first network does not translate: a point of its own, not the curve's end.
                (line,) = axis.plot(curve.cost[1:] * unit, curve.quality[1:], style, label=name)
                whole = curve.cost[0] * unit, curve.quality[0]
                axis.plot(*whole, "D", color=line.get_color(), markersize=6, alpha=0.8)
            for name, one in singles.items():
                value = float(quality.scores(quality.counts(one.text).sum(0, keepdim=True))[0])
                axis.plot(getattr(one, cost) * unit, value, ".", color="black")
                axis.annotate(name, (getattr(one, cost) * unit, value), fontsize=7)
            axis.set_xlabel(label)
            axis.set_ylabel(metric)
            axis.grid(alpha=0.3)
    axes[0, 0].plot([], [], "D", color="gray", label="no exits")
    axes[0, 0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
