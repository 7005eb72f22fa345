"""What is deployed, on test data: the system that was chosen for each operating point, as users get it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from coe_core.stored_points import has_exits
from coe_core.support import reports
from coe_core.support.reports import NONE, Spread, mean_and_spread
from vision.budgets import ResolvedBudget, resolve_budget
from vision.errors import RunError
from vision.evaluation.predictions import Predictions
from vision.evaluation.stages import system_stage
from vision.evaluation.table import accuracy_by_class, balanced_accuracy
from vision.recipe_networks import RunMacs
from vision.run import Run
from vision.systems import find_system

if TYPE_CHECKING:
    from rich.table import Table

_HEADINGS = ("deployed at", "system", "top-1 %", "MMACs", "exits %")


class DeployedRow(NamedTuple):
    """One operating point over several runs."""

    name: str
    systems: tuple[str, ...]  # of each run
    accuracies: Spread  # on test data, percent
    macs: float  # mean per image
    exit_rate: float | None  # of the runs whose system has exits; None: none has
    balanced: Spread  # mean accuracy over the classes, percent


def chosen_budgets(
    run: Run, at: Sequence[str] | None = None, system: str | None = None
) -> tuple[list[ResolvedBudget], list[str]]:
    """What is deployed of a run, and a line about each stored point that cannot be.

    Args:
        run: calibrated.
        at: operating points or multiply-adds; None: all operating points stored.
        system: to use in place of those chosen.

    Raises:
        RunError: one of ``at`` cannot be resolved.
    """
    if at is not None:
        return [resolve_budget(run, name, system=system) for name in at], []
    names = list(run.operating_points)
    if system is not None:
        names = list(run.stored.named(find_system(run.recipe, system)))
    budgets, lines = [], []
    for name in names:
        try:
            budgets.append(resolve_budget(run, name, system=system))
        except RunError as error:  # fitted with another checkpoint
            lines.append(str(error))
    return budgets, lines


def deployed_rows(
    budgets: Sequence[Sequence[ResolvedBudget]],
    tests: Sequence[Predictions],
    macs: Sequence[RunMacs],
) -> list[DeployedRow]:
    """Accuracy and cost on test data of what is deployed.

    Args:
        budgets: of each run; those that not all runs have are left out.
        tests: of each run, its predictions.
        macs: of each run.
    """
    by_name = [{budget.name: budget for budget in each} for each in budgets]
    rows = []
    for name in [name for name in by_name[0] if all(name in each for each in by_name)]:
        chosen = [each[name] for each in by_name]
        stages = [
            system_stage(test, spent, budget.system, budget.rough_weight, budget.rule)
            for budget, test, spent in zip(chosen, tests, macs, strict=True)
        ]
        reached = [stage.at(budget.threshold) for stage, budget in zip(stages, chosen, strict=True)]
        balanced = [
            balanced_accuracy(accuracy_by_class(stage.each(budget.threshold)[0][:, 0], test.target))
            for stage, budget, test in zip(stages, chosen, tests, strict=True)
        ]
        exits = [
            point.exit_rate
            for budget, point in zip(chosen, reached, strict=True)
            if has_exits(budget.system)
        ]
        rows.append(
            DeployedRow(
                name,
                tuple(budget.system for budget in chosen),
                mean_and_spread([100 * point.quality for point in reached]),
                statistics.fmean(point.cost["macs"] for point in reached),
                statistics.fmean(exits) if exits else None,
                mean_and_spread([100 * each for each in balanced]),
            )
        )
    return rows


def _cells(row: DeployedRow) -> list[str]:
    return [
        row.name,
        ", ".join(dict.fromkeys(row.systems)),
        row.accuracies.shown(),
        f"{row.macs / 1e6:.3g}",
        NONE if row.exit_rate is None else f"{100 * row.exit_rate:.0f}",
    ]


def rich_table(rows: Sequence[DeployedRow]) -> Table:
    """The rows as a table for the terminal."""
    title = "what is deployed, on test data"
    return reports.rich_table(_HEADINGS, [_cells(row) for row in rows], title, left=(0, 1))


def markdown_table(rows: Sequence[DeployedRow]) -> str:
    """The rows as a Markdown table, for documents."""
    return reports.markdown_table(_HEADINGS, [_cells(row) for row in rows], left=(0, 1))


def csv_table(rows: Sequence[DeployedRow]) -> str:
    """The rows as CSV: plain numbers, accuracies in percent, MACs per image."""
    numbers = ("top1_percent", "spread", "macs", "exit_rate", "runs", "balanced_percent")
    columns = ("deployed_at", "systems", *numbers)
    return reports.csv_text(
        columns,
        [
            [
                row.name,
                " ".join(row.systems),
                row.accuracies.mean,
                row.accuracies.spread,
                float(row.macs),
                row.exit_rate,
                len(row.systems),
                row.balanced.mean,
            ]
            for row in rows
        ],
    )
