"""The table of docs/method.md section 6: the collaboration beside every control, one run or several."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from coe_core import fit_threshold
from vision.evaluation.predictions import Predictions
from vision.evaluation.stages import (
    CASCADE,
    COE,
    FIRST,
    SECOND,
    FittedStage,
    cascade_team,
    fit_stages,
)
from vision.networks.team import Team
from vision.recipe_networks import Networks, RunMacs

BUDGETS = (0.25, 0.5, 0.75)  # part of the samples that may run an expert, on average
NEAR = 1.2  # a budget moves to the MACs of a single network that is no further off than this factor


@dataclass(frozen=True)
class Row:
    """One line: a predictor with its accuracy on test data and its cost."""

    name: str
    accuracy: float  # top-1 in [0, 1]
    macs: float  # mean per image
    exit_rate: float | None = None  # None: nothing can exit
    load: tuple[float, ...] = ()  # part of the samples that stay, per expert
    threshold: float | None = None  # fitted on validation data
    predictor: Callable[[Tensor], object] | None = None  # prepared batch -> anything; for timing
    milliseconds: float | None = None  # per image, at the batch size of the table


def table_rows(
    validation: Predictions,
    test: Predictions,
    macs: RunMacs,
    networks: Networks | None = None,
    seed: int = 0,
) -> list[Row]:
    """All rows of one run. Thresholds are fitted on ``validation``; ``test`` is only read off.

    Args:
        validation: held-out predictions, for thresholds and for the choice of the best expert.
        test: predictions that the table reports.
        macs: of every network.
        networks: for predictors that can be timed; None leaves them out.
        seed: of the random selection.
    """
    rows = _control_rows(test, macs, networks) + _ensemble_rows(test, macs, networks)
    if test.rough_logits is not None:
        rows += _team_rows(validation, test, macs, networks, seed)
    return rows


def _control_rows(test: Predictions, macs: RunMacs, networks: Networks | None) -> list[Row]:
    rows = []
    for name, logits in test.control_logits.items():
        label = {"delegator": "delegator network alone", "expert": "single expert network"}.get(
            name, f"single network {name}"
        )
        accuracy = float(test.right(logits).mean())
        predictor = networks and networks.controls[name]
        rows.append(Row(label, accuracy, macs.controls[name], predictor=predictor))
    return rows


def _ensemble_rows(test: Predictions, macs: RunMacs, networks: Networks | None) -> list[Row]:
    """One network of each ensemble, and all of it: the mean of their logits."""
    rows = []
    for name, logits in test.ensemble_logits.items():
        s, cost = logits.shape[1], macs.ensembles[name]
        built = networks and networks.ensembles[name]
        members = [float(test.right(member).mean()) for member in logits.unbind(1)]
        if s > 1:
            alone = built and built.members[0]
            accuracy = sum(members) / s
            rows.append(Row(f"ensemble {name}: one network", accuracy, cost, predictor=alone))
        accuracy = float(test.right(logits.mean(1)).mean())
        rows.append(Row(f"ensemble {name}", accuracy, s * cost, predictor=built))
    return rows


def _team_rows(
    validation: Predictions, test: Predictions, macs: RunMacs, networks: Networks | None, seed: int
) -> list[Row]:
    n, k = test.selection_logits.shape
    stages = fit_stages(validation, test, macs)
    team, controls = (networks.team, networks.controls) if networks else (None, {})
    rows = []
    if CASCADE in stages:
        cascade = None
        if FIRST in controls and SECOND in controls:
            cascade = cascade_team(controls[FIRST], controls[SECOND], team.num_classes)
        rows += _two_stage_rows(CASCADE, stages[CASCADE], macs, cascade)
    rough = float(test.right(test.rough_logits).mean())
    rows.append(
        Row(
            "CoE's delegator (all exit)",
            rough,
            macs.delegator,
            1.0,
            predictor=team and team.delegator,
        )
    )
    rows += _two_stage_rows(COE, stages[COE], macs, team, test)
    expert_right = torch.stack([test.right(test.expert_logits[:, j]) for j in range(k)], 1)
    held_out_right = [
        float(validation.right(validation.expert_logits[:, j]).mean()) for j in range(k)
    ]
    best = max(range(k), key=held_out_right.__getitem__)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(k, (n,), generator=generator)
    with_delegator = macs.delegator + macs.expert
    everything = sum(macs.experts)
    rows += [
        Row(
            "random selection",
            float(expert_right[torch.arange(n), random].mean()),
            with_delegator,
            0.0,
        ),
        Row(f"always expert {best}", float(expert_right[:, best].mean()), macs.experts[best]),
        Row(
            f"mean of all {k} experts",
            float(test.right(test.expert_logits.softmax(2).mean(1)).mean()),
            everything,
        ),
        Row("oracle selection", float(expert_right.amax(1).mean()), with_delegator, 0.0),
    ]
    return rows


def budgets(macs: RunMacs) -> list[float]:
    """Mean MACs that two-stage rows are fitted to: where a single network is near, exactly its MACs."""
    singles = list(macs.controls.values())
    limits = set()
    for part in BUDGETS:
        limit = macs.delegator + part * macs.expert
        near = [m for m in singles if max(m / limit, limit / m) <= NEAR]
        limits.add(min(near, key=lambda m: abs(m - limit), default=limit))
    return sorted(limits)


def _two_stage_rows(
    name: str,
    stage: FittedStage,
    macs: RunMacs,
    model: Team | None,
    routed: Predictions | None = None,
) -> list[Row]:
    """No exits, then every budget; a budget's threshold maximises held-out accuracy within it."""
    curve = stage.validation.curve()
    points = [("no exits", torch.inf)]
    for limit in budgets(macs):
        index = fit_threshold(curve, "macs", max(limit, float(curve.cost.min())))
        points.append((f"at {limit / 1e6:.3g}M", float(curve.threshold[index])))
    rows = []
    for label, threshold in reversed(points):
        reached = stage.test.at(threshold)
        load: tuple[float, ...] = ()
        if routed is not None and not bool(reached.exits.all()):
            k = routed.selection_logits.shape[1]
            counts = torch.bincount(routed.selected_expert[~reached.exits], minlength=k)
            load = tuple((counts / counts.sum()).tolist())
        predictor = None
        if model is not None:

            def predictor(images: Tensor, threshold: float = threshold) -> object:
                return model.infer(images, threshold, rough_weight=stage.rough_weight)

        rows.append(
            Row(
                f"{name} {label}",
                reached.quality,
                reached.cost["macs"],
                reached.exit_rate,
                load,
                threshold,
                predictor,
            )
        )
    return rows


@dataclass(frozen=True)
class Summary:
    """One line over several seeds."""

    name: str
    accuracy: float  # mean, percent
    spread: float | None  # sample standard deviation over the runs, percent; None for one run
    macs: float
    milliseconds: float | None
    exit_rate: float | None
    load: tuple[float, ...]  # per expert, sorted from most to least if over several runs
    runs: int


def summarise(tables: Sequence[Sequence[Row]]) -> list[Summary]:
    """Mean and spread over runs of the same recipe with different seeds.

    Raises:
        ValueError: runs whose tables do not have the same rows.
    """
    names = [[_general_name(row.name) for row in table] for table in tables]
    if any(other != names[0] for other in names):
        raise ValueError("the runs do not have the same rows: summarise runs of one recipe")
    summaries = []
    for rows in zip(*tables, strict=True):
        accuracies = [100 * row.accuracy for row in rows]
        loads = [
            row.load if len(rows) == 1 else tuple(sorted(row.load, reverse=True)) for row in rows
        ]
        has_load = all(loads)
        summaries.append(
            Summary(
                _general_name(rows[0].name) if len(rows) > 1 else rows[0].name,
                statistics.fmean(accuracies),
                statistics.stdev(accuracies) if len(rows) > 1 else None,
                statistics.fmean(row.macs for row in rows),
                _mean([row.milliseconds for row in rows]),
                _mean([row.exit_rate for row in rows]),
                tuple(statistics.fmean(part) for part in zip(*loads, strict=True))
                if has_load
                else (),
                len(rows),
            )
        )
    return summaries


def _general_name(name: str) -> str:
    return "always the best expert" if name.startswith("always expert") else name


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _cells(line: Summary) -> list[str]:
    spread = "" if line.spread is None else f" ± {line.spread:.2f}"
    return [
        line.name,
        f"{line.accuracy:.2f}{spread}",
        f"{line.macs / 1e6:.3g}",
        "-" if line.milliseconds is None else f"{line.milliseconds:.3f}",
        "-" if line.exit_rate is None else f"{100 * line.exit_rate:.0f}",
        " ".join(f"{100 * part:.0f}" for part in line.load) or "-",
    ]


_HEADINGS = ("predictor", "top-1 %", "MMACs", "ms/image", "exits %", "load %")


def rich_table(lines: Sequence[Summary], title: str) -> Table:
    """For the terminal."""
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if index in (0, 5) else "right", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line), style="bold" if line.name.startswith("CoE at") else None)
    return table


def markdown_table(lines: Sequence[Summary]) -> str:
    """For documents."""
    rows = [_HEADINGS, ("---", "---:", "---:", "---:", "---:", "---"), *map(_cells, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def csv_table(lines: Sequence[Summary]) -> str:
    """For spreadsheets: plain numbers, accuracies in percent, MACs per image."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["predictor", "top1_percent", "spread", "macs", "ms_per_image", "exit_rate", "load", "runs"]
    )
    for line in lines:
        load = " ".join(f"{part:.4f}" for part in line.load)
        numbers = (line.accuracy, line.spread, line.macs, line.milliseconds, line.exit_rate)
        writer.writerow(
            [line.name, *("" if x is None else f"{x:.6g}" for x in numbers), load, line.runs]
        )
    return out.getvalue()
