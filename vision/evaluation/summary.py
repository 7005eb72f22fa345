"""The table over several seeds: mean and spread of every row, for terminal, documents and spreadsheets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coe_core.support import reports
from coe_core.support.reports import NONE, Spread, mean_and_spread
from vision.evaluation.table import PredictorRow

if TYPE_CHECKING:
    from rich.table import Table

_HEADINGS = ("predictor", "top-1 %", "MMACs", "ms/image", "exits %", "load %")
_BALANCED = "balanced %"  # behind top-1, where the test classes are uneven
_COLUMNS = (
    "predictor",
    "top1_percent",
    "spread",
    "macs",
    "ms_per_image",
    "exit_rate",
    "load",
    "runs",
    "balanced_percent",
)


_NOTHING = Spread(None, None, 0)


@dataclass(frozen=True)
class SummaryRow:
    """One predictor over several seeds."""

    name: str
    accuracies: Spread  # percent; over the runs in which the network has not diverged
    macs: float
    milliseconds: float | None
    exit_rate: float | None
    load: tuple[float, ...]  # per expert, sorted from most to least if over several runs
    runs: int
    balanced: Spread = _NOTHING  # mean accuracy over the classes, percent
    by_class: tuple[float, ...] = ()  # accuracy on each class, percent; NaN: without test images

    @property
    def accuracy(self) -> float | None:
        """Mean, percent; None: diverged in every run."""
        return self.accuracies.mean

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the runs, percent; None for one run."""
        return self.accuracies.spread

    @property
    def diverged(self) -> int:
        """Runs in which the network gives no finite logits."""
        return self.runs - self.accuracies.count


def summarise(tables: Sequence[Sequence[PredictorRow]]) -> list[SummaryRow]:
    """Mean and spread over runs of the same recipe with different seeds.

    Raises:
        ValueError: runs whose tables do not have the same rows.
    """
    names = [[_general_name(row.name) for row in table] for table in tables]
    if any(other != names[0] for other in names):
        raise ValueError("the runs do not have the same rows: summarise runs of one recipe")
    return [_summary(rows) for rows in zip(*tables, strict=True)]


def _summary(rows: Sequence[PredictorRow]) -> SummaryRow:
    loads = [row.load if len(rows) == 1 else tuple(sorted(row.load, reverse=True)) for row in rows]
    has_load = all(loads)
    return SummaryRow(
        _general_name(rows[0].name) if len(rows) > 1 else rows[0].name,
        mean_and_spread([100 * row.accuracy for row in rows]),
        statistics.fmean(row.macs for row in rows),
        _mean([row.milliseconds for row in rows]),
        _mean([row.exit_rate for row in rows]),
        tuple(statistics.fmean(part) for part in zip(*loads, strict=True)) if has_load else (),
        len(rows),
        mean_and_spread([100 * row.balanced_accuracy for row in rows]),
        tuple(
            math.nan if (mean := mean_and_spread(parts).mean) is None else 100 * mean
            for parts in zip(*(row.by_class for row in rows if row.by_class), strict=True)
        ),
    )


def _general_name(name: str) -> str:
    return "always the best expert" if name.startswith("always expert") else name


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.fmean(known) if len(known) == len(values) else None


def _cells(row: SummaryRow, balanced: bool) -> list[str]:
    accuracy = row.accuracies.shown()
    if row.diverged:
        part = "" if row.diverged == row.runs else f" ({row.diverged} of {row.runs})"
        accuracy = f"{'' if row.accuracy is None else accuracy + ', '}diverged{part}"
    return [
        row.name,
        accuracy,
        *[row.balanced.shown()] * balanced,
        f"{row.macs / 1e6:.3g}",
        NONE if row.milliseconds is None else f"{row.milliseconds:.3f}",
        NONE if row.exit_rate is None else f"{100 * row.exit_rate:.0f}",
        " ".join(f"{100 * part:.0f}" for part in row.load) or NONE,
    ]


def _headings(balanced: bool) -> tuple[str, ...]:
    return (*_HEADINGS[:2], _BALANCED, *_HEADINGS[2:]) if balanced else _HEADINGS


def rich_table(rows: Sequence[SummaryRow], title: str, balanced: bool = False) -> Table:
    """The rows as a table for the terminal.

    Args:
        rows: of it.
        title: above it.
        balanced: with a column for balanced accuracy.
    """
    bold = [place for place, row in enumerate(rows) if row.name.startswith("CoE at")]
    cells = [_cells(row, balanced) for row in rows]
    return reports.rich_table(_headings(balanced), cells, title, left=(0, 5 + balanced), bold=bold)


def markdown_table(rows: Sequence[SummaryRow], balanced: bool = False) -> str:
    """The rows as a Markdown table, for documents; see `rich_table`."""
    cells = [_cells(row, balanced) for row in rows]
    return reports.markdown_table(_headings(balanced), cells, left=(0, 5 + balanced))


def csv_table(rows: Sequence[SummaryRow]) -> str:
    """The rows as CSV, for spreadsheets: plain numbers, accuracies in percent, MACs per image."""

    def cells(row: SummaryRow) -> list[object]:
        load = " ".join(f"{part:.4f}" for part in row.load)
        numbers = (row.accuracy, row.spread, float(row.macs), row.milliseconds, row.exit_rate)
        return [row.name, *numbers, load, row.runs, row.balanced.mean]

    return reports.csv_text(_COLUMNS, [cells(row) for row in rows])


def by_class_csv(rows: Sequence[SummaryRow], classes: Sequence[str], images: Sequence[int]) -> str:
    """Accuracy of every predictor on every class, a line each; nothing of classes without test images.

    Args:
        rows: the predictors.
        classes: names.
        images: test images of each class.
    """
    lines: list[list[object]] = []
    for row in rows:
        for name, count, part in zip(classes, images, row.by_class, strict=False):
            if count:
                lines.append([row.name, name, count, None if math.isnan(part) else part])
    return reports.csv_text(("predictor", "class", "test_images", "accuracy_percent"), lines)


def plain_rows(rows: Sequence[SummaryRow], classes: Sequence[str]) -> list[dict[str, object]]:
    """The rows for JSON: percent, MACs per image; None: not measured."""
    return [
        {
            "predictor": row.name,
            "top1_percent": row.accuracy,
            "spread": row.spread,
            "balanced_percent": row.balanced.mean,
            "macs": row.macs,
            "ms_per_image": row.milliseconds,
            "exit_rate": row.exit_rate,
            "load": list(row.load),
            "runs": row.runs,
            "class_percent": {
                name: None if math.isnan(part) else part
                for name, part in zip(classes, row.by_class, strict=False)
            },
        }
        for row in rows
    ]
