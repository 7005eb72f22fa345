"""Ensembles in detail: members, every way to join them, likelihood, calibration, disagreement."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from torch import Tensor

from coe_core import calibration_error, disagreement, ensemble_log_probs, negative_log_likelihood
from coe_core.ensembling import EnsembleKind
from vision.evaluation.predictions import Predictions
from vision.recipe_networks import RunMacs

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
    s = logits[0].shape[1]
    targets = [p.target for p in predictions]
    apart = [100 * disagreement(each) for each in logits]
    right = [(each.argmax(2) == t[:, None]) for each, t in zip(logits, targets, strict=True)]
    any_right = [100 * float(each.any(1).double().mean()) for each in right]

    def row(joined: str, cost: int, log_probs: Sequence[Sequence[Tensor]]) -> EnsembleRow:
        """``log_probs``: for every run, of one prediction or of several that are averaged over."""
        accuracy, nll, error = (
            [
                statistics.fmean(measure(each, target) for each in run)
                for run, target in zip(log_probs, targets, strict=True)
            ]
            for measure in (_accuracy, _nll, calibration_error)
        )
        return EnsembleRow(
            name,
            s,
            joined,
            100 * statistics.fmean(accuracy),
            100 * statistics.stdev(accuracy) if len(accuracy) > 1 else None,
            statistics.fmean(nll),
            100 * statistics.fmean(error),
            statistics.fmean(apart),
            statistics.fmean(any_right),
            cost,
            len(targets),
        )

    members = [[ensemble_log_probs(member) for member in each.split(1, 1)] for each in logits]
    if s == 1:
        return [row(ALONE, macs, members)]
    together = [
        row(label, s * macs, [[ensemble_log_probs(each, kind)] for each in logits])
        for label, kind in KINDS.items()
    ]
    return [row(MEMBER, macs, members), *together]


def _accuracy(log_probs: Tensor, targets: Tensor) -> float:
    return float((log_probs.argmax(1) == targets).double().mean())


def _nll(log_probs: Tensor, targets: Tensor) -> float:
    return float(negative_log_likelihood(log_probs, targets).double().mean())


_HEADINGS = ("networks", "s", "joined by", "top-1 %", "NLL", "ECE %", "disagree %", "any right %")


def _cells(row: EnsembleRow) -> list[str]:
    spread = "" if row.spread is None else f" ± {row.spread:.2f}"
    several = row.s > 1
    return [
        row.networks,
        str(row.s),
        row.joined,
        f"{row.top1_percent:.2f}{spread}",
        f"{row.nll:.4f}",
        f"{row.calibration_error_percent:.2f}",
        f"{row.disagreement_percent:.1f}" if several else "-",
        f"{row.any_right_percent:.1f}" if several else "-",
        f"{row.macs / 1e6:.3g}",
    ]


def rich_table(rows: Sequence[EnsembleRow]) -> Table:
    """For the terminal."""
    table = Table(
        title="networks trained alone (s = 1) and ensembles, on test data", title_justify="left"
    )
    for heading in (*_HEADINGS, "MMACs"):
        left = heading in ("networks", "joined by")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown_table(rows: Sequence[EnsembleRow]) -> str:
    """For documents."""
    headings = (*_HEADINGS, "MMACs")
    marks = ["---" if h in ("networks", "joined by") else "---:" for h in headings]
    lines = [headings, marks, *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def csv_table(rows: Sequence[EnsembleRow]) -> str:
    """For spreadsheets: plain numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(EnsembleRow._fields)
    for row in rows:
        writer.writerow(
            [f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for v in row]
        )
    return out.getvalue()
