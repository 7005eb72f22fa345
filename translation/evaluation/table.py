"""The table and the picture of a team beside all its controls, over one or several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from coe_core import OperatingPoint, TradeOffCurve
from coe_core.support.files import write_text
from coe_core.support.reports import (
    NONE,
    Curve,
    Panel,
    Point,
    Spread,
    csv_text,
    draw_trade_off,
    mean_and_spread,
)
from translation.evaluation.calibrate import check_points
from translation.evaluation.metrics import METRICS, CorpusQuality, Scoring
from translation.evaluation.systems import (
    CASCADE,
    COE,
    NO_EXITS,
    ORACLE,
    RANDOM,
    Mixture,
    RoutedSystem,
    routed_systems,
    single_systems,
)
from translation.evaluation.translations import Translations

COLUMNS = (*METRICS, "MMACs", "ms", "exit %")
_COST_SCALES = {
    "macs": (1e-6, "million multiply-adds a sentence"),
    "seconds": (1e3, "ms a sentence"),
}


class SystemRow(NamedTuple):
    """One system of one seed."""

    name: str
    values: tuple[float | None, ...]  # as COLUMNS; None: does not apply
    text: list[str] | None = None  # None: a mean over systems


class SummaryRow(NamedTuple):
    """One system over all seeds."""

    name: str
    columns: tuple[Spread, ...]  # as COLUMNS
    seeds: int


def rows(
    translations: Translations,
    points: dict[str, list[OperatingPoint]],
    scoring: Scoring | None = None,
) -> list[SystemRow]:
    """Every row of the table of method section 6 that these translations hold.

    Args:
        translations: of a test set.
        points: thresholds of "CoE" and "cascade", fitted on other data.
        scoring: of the metrics; None: sacreBLEU's defaults.

    Raises:
        ValueError: thresholds that were fitted with another checkpoint, confidence, beam ...
    """
    qualities = [CorpusQuality(metric, translations.reference, scoring) for metric in METRICS]

    def row(name: str, mixture: Mixture) -> SystemRow:
        scores = [
            float(quality.scores(quality.counts(mixture.text).sum(0, keepdim=True))[0])
            for quality in qualities
        ]
        return SystemRow(name, _values(scores, mixture), mixture.text)

    def routed_row(name: str, system: RoutedSystem, threshold: float) -> SystemRow:
        # From the counts of both stages, which are taken once for all thresholds.
        scores = [system.stages.at(threshold, metric).quality for metric in METRICS]
        mixture = system.at(threshold)
        return SystemRow(name, _values(scores, mixture), mixture.text)

    for name in (COE, CASCADE):
        check_points(points.get(name, []), translations.provenance, name)
    routed = routed_systems(translations, scoring)
    table = [row(name, mixture) for name, mixture in single_systems(translations).items()]
    experts = [r for r in table if r.name.startswith("expert-") and r.name[7:].isdecimal()]
    columns = zip(*(expert.values for expert in experts), strict=True)
    means = tuple(None if None in column else statistics.fmean(column) for column in columns)
    table.append(SystemRow("mean of one expert", means))
    for name in (RANDOM, ORACLE, CASCADE, COE):
        if name in routed:
            table.append(routed_row(f"{name}, no exits", routed[name], NO_EXITS))
    for name in (CASCADE, COE):
        for point in points.get(name, []) if name in routed else []:
            table.append(routed_row(f"{name}, {point.name}", routed[name], point.threshold))
    return table


def _values(scores: Sequence[float], mixture: Mixture) -> tuple[float | None, ...]:
    exits = None if mixture.exit_rate is None else 100 * mixture.exit_rate
    return (*scores, mixture.macs / 1e6, 1000 * mixture.seconds, exits)


def summary(of_seeds: Sequence[Sequence[SystemRow]]) -> list[SummaryRow]:
    """Mean and spread of every row; a row that some seed lacks says over how many it is."""
    by_name: dict[str, list[SystemRow]] = {}
    for table in of_seeds:
        for row in table:
            by_name.setdefault(row.name, []).append(row)
    return [
        SummaryRow(
            name,
            tuple(map(mean_and_spread, zip(*(row.values for row in same), strict=True))),
            len(same),
        )
        for name, same in by_name.items()
    ]


def loads(translations: Translations) -> list[float]:
    """Part of all sentences that CoE's selection sends to each expert, exits or not."""
    selected = routed_systems(translations)[COE].selected_expert
    counts = torch.bincount(selected, minlength=translations.num_experts)
    return (counts / len(translations)).tolist()


def write_csv(path: Path, table: Sequence[SummaryRow]) -> None:
    """One line for each system: mean and spread of every column."""

    def cells(row: SummaryRow) -> list[object]:
        numbers = [column.mean for column in row.columns], [c.spread for c in row.columns]
        return [
            row.name,
            row.seeds,
            *(None if number is None else f"{number:.4f}" for half in numbers for number in half),
        ]

    headings = ["system", "seeds", *COLUMNS, *(f"{name} spread" for name in COLUMNS)]
    write_text(path, csv_text(headings, [cells(row) for row in table]))


def shown(table: Sequence[SummaryRow]) -> str:
    """The table for a terminal."""
    width = max(len(row.name) for row in table)
    lines = [f"{'':{width}} " + "".join(f"{name:>15}" for name in COLUMNS)]
    for row in table:
        texts = (column.shown() for column in row.columns)
        cells = "".join(f"{'' if text == NONE else text:>15}" for text in texts)
        lines.append(f"{row.name:{width}} {cells}")
    return "\n".join(lines)


def write_curves(
    path: Path, translations: Translations, scoring: Scoring | None = None
) -> dict[str, RoutedSystem]:
    """CSV of every operating point of every system with early termination."""
    routed = routed_systems(translations, scoring)
    lines = []
    for name, system in routed.items():
        first, second = (
            system.stages.curve(metric, cost)
            for metric, cost in zip(METRICS, ("macs", "seconds"), strict=True)
        )
        columns = (first.threshold, first.exit_rate, first.quality, second.quality)
        for values in zip(*columns, first.cost, second.cost, strict=True):
            lines.append([name, *map(float, values)])
    headings = ["system", "threshold", "exit_rate", *METRICS, "macs", "seconds"]
    write_text(path, csv_text(headings, lines))
    return routed


def draw(
    path: Path, translations: Translations, title: str, scoring: Scoring | None = None
) -> None:
    """BLEU and chrF against MACs and seconds: curves of what has thresholds, points of the rest."""
    routed, singles = routed_systems(translations, scoring), single_systems(translations)
    panels = []
    for metric in METRICS:
        quality = CorpusQuality(metric, translations.reference, scoring)
        scores = {
            name: float(quality.scores(quality.counts(single.text).sum(0, keepdim=True))[0])
            for name, single in singles.items()
        }
        panels.append(
            [
                Panel(
                    label,
                    metric,
                    [
                        _curve(name, system.stages.curve(metric, cost), scale)
                        for name, system in routed.items()
                    ],
                    [
                        Point(name, getattr(single, cost) * scale, scores[name])
                        for name, single in singles.items()
                    ],
                )
                for cost, (scale, label) in _COST_SCALES.items()
            ]
        )
    draw_trade_off(path, title, panels)


def _curve(name: str, curve: TradeOffCurve, scale: float) -> Curve:
    """Without exits the first network does not translate: a point of its own, not the curve's end."""
    costs, qualities = (curve.cost * scale).tolist(), curve.quality.tolist()
    return Curve(name, [(costs[1:], qualities[1:])], [(costs[0], qualities[0])])
