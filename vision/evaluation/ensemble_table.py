"""Ensembles in detail: members, every way to join them, likelihood, calibration, disagreement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from coe_core import ensemble_report
from coe_core.ensembling import EnsembleKind
from coe_core.support import reports
from coe_core.support.reports import NONE, Spread, mean_and_spread
from vision.evaluation.predictions import Predictions
from vision.recipe_networks import RunMacs

if TYPE_CHECKING:
    from rich.table import Table

# In exact arithmetic the geometric mean of probabilities is the mean of logits: one row for both.
KINDS: dict[str, EnsembleKind] = {
    "mean logits (= geometric mean)": "mean_logits",
    "mean probability": "mean_probability",
    "maximum probability": "max_probability",
}
MEMBER = "one network (mean)"
ALONE = "-"


class EnsembleRow(NamedTuple):
    """One way to use some networks, on test data: mean over the runs, and spread of the accuracy."""

    networks: str  # name in the recipe
    s: int
    joined: str
    top1_percent: float
    spread: float | None  # sample standard deviation over the runs; None for one run
    nll: float  # nats
    calibration_error_percent: float
    disagreement_percent: float  # of two members, mean over pairs
    any_right_percent: float  # samples that at least one member answers correctly
    macs: float  # of all that run, per image
    runs: int


def ensemble_rows(predictions: Sequence[Predictions], macs: RunMacs) -> list[EnsembleRow]:
    """Rows over the runs of one recipe: every network trained alone (s = 1), then every ensemble.

    Args:
        predictions: of each run on test data.
        macs: of the networks, the same in all runs.
    """
    rows = []
    for name in predictions[0].control_logits:
        logits = [p.control_logits[name].unsqueeze(1) for p in predictions]
        rows += _rows(name, logits, predictions, macs.controls[name])
    for name in predictions[0].ensemble_logits:
        logits = [p.ensemble_logits[name] for p in predictions]
        rows += _rows(f"ensemble {name}", logits, predictions, macs.ensembles[name])
    return rows


def _rows(
    name: str, logits: Sequence[Tensor], predictions: Sequence[Predictions], macs: int
) -> list[EnsembleRow]:
    """Over the runs in which it has not diverged; without any, nothing can be said."""
    pairs = zip(logits, (p.target for p in predictions), strict=True)
    healthy = [(each, target) for each, target in pairs if bool(each.isfinite().all())]
    s = logits[0].shape[1]
    kinds = dict(KINDS) if s > 1 else {ALONE: KINDS[next(iter(KINDS))]}
    joined = {
        label: [ensemble_report(each, target, kind) for each, target in healthy]
        for label, kind in kinds.items()
    }
    first = next(iter(joined.values()))
    if not first:
        return []
    shared = (
        statistics.fmean(100 * report.disagreement for report in first),
        statistics.fmean(100 * report.any_right for report in first),
    )

    def row(how: str, cost: int, measures: Sequence[_Measures]) -> EnsembleRow:
        accuracy, nll, errors = zip(*measures, strict=True)
        spread = mean_and_spread([100 * value for value in accuracy]).spread
        mean = 100 * statistics.fmean(accuracy)
        error = 100 * statistics.fmean(errors)
        return EnsembleRow(
            name, s, how, mean, spread, statistics.fmean(nll), error, *shared, cost, len(measures)
        )

    members = [
        _Measures(*(statistics.fmean(column) for column in report[:3]))
        for report in first  # accuracy, NLL and calibration error of each member
    ]
    if s == 1:
        return [row(ALONE, macs, members)]
    together = [
        row(label, s * macs, [_Measures(r.accuracy, r.nll, r.calibration_error) for r in measured])
        for label, measured in joined.items()
    ]
    return [row(MEMBER, macs, members), *together]


class _Measures(NamedTuple):
    """What is measured of one run, as fractions and in nats."""

    accuracy: float
    nll: float
    calibration_error: float


_HEADINGS = (
    *("networks", "s", "joined by", "top-1 %", "NLL", "ECE %", "disagree %", "any right %"),
    "MMACs",
)


def _cells(row: EnsembleRow) -> list[str]:
    several = row.s > 1
    return [
        row.networks,
        str(row.s),
        row.joined,
        Spread(row.top1_percent, row.spread, row.runs).shown(),
        f"{row.nll:.4f}",
        f"{row.calibration_error_percent:.2f}",
        f"{row.disagreement_percent:.1f}" if several else NONE,
        f"{row.any_right_percent:.1f}" if several else NONE,
        f"{row.macs / 1e6:.3g}",
    ]


def rich_table(rows: Sequence[EnsembleRow]) -> Table:
    """The rows as a table for the terminal."""
    title = "networks trained alone (s = 1) and ensembles, on test data"
    return reports.rich_table(_HEADINGS, [_cells(row) for row in rows], title, left=(0, 2))


def markdown_table(rows: Sequence[EnsembleRow]) -> str:
    """The rows as a Markdown table, for documents."""
    return reports.markdown_table(_HEADINGS, [_cells(row) for row in rows], left=(0, 2))


def csv_table(rows: Sequence[EnsembleRow]) -> str:
    """The rows as CSV in plain numbers, for spreadsheets."""
    return reports.csv_text(EnsembleRow._fields, rows)
