"""The table of docs/method.md section 6: the collaboration beside every control, one run or several."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coe_core import fit_threshold
from coe_core.exit_rules import ExitKind
from vision.evaluation.predictions import Predictions
from vision.evaluation.stages import (
    FittedStage,
    cascade_logits,
    fit_stages,
    has_cascade,
)
from vision.networks.team import Team
from vision.recipe_networks import Networks, RunMacs
from vision.systems import CASCADE, COE, FIRST, SECOND, cascade_team

EXPERT_PARTS = (0.25, 0.5, 0.75)  # part of the samples that may run an expert, on average
NEAR = 1.2  # a budget moves to the MACs of a single network that is no further off than this factor


@dataclass(frozen=True)
class PredictorRow:
    """One line: a predictor with its accuracy on test data and its cost."""

    name: str
    accuracy: float  # top-1 in [0, 1]; NaN: the network has diverged
    macs: float  # mean per image
    exit_rate: float | None = None  # None: nothing can exit
    load: tuple[float, ...] = ()  # part of the samples that stay, per expert
    threshold: float | None = None  # fitted on validation data
    predictor: Callable[[Tensor], object] | None = None  # prepared batch -> anything; for timing
    milliseconds: float | None = None  # per image, at the batch size of the table
    by_class: tuple[float, ...] = ()  # accuracy on each class, in [0, 1]; NaN: without test images

    @property
    def balanced_accuracy(self) -> float:
        """See `balanced_accuracy`."""
        return balanced_accuracy(self.by_class)


def balanced_accuracy(by_class: Sequence[float]) -> float:
    """Mean over the classes that have test images; NaN: the network has diverged."""
    known = [part for part in by_class if not math.isnan(part)]
    return statistics.fmean(known) if known else math.nan


def accuracy_by_class(right: Tensor, target: Tensor) -> tuple[float, ...]:
    """Mean of ``right`` [n], in [0, 1], over the samples of each class; NaN of a class without any.

    Example:
        >>> accuracy_by_class(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 2]))
        (0.5, nan, 1.0)
    """
    counts = torch.bincount(target)
    return tuple((torch.bincount(target, right.double()) / counts).tolist())


def table_rows(
    validation: Predictions,
    test: Predictions,
    macs: RunMacs,
    networks: Networks | None = None,
    seed: int = 0,
    confidence: ExitKind = "max_probability",
) -> list[PredictorRow]:
    """All rows of one run. Thresholds are fitted on ``validation``; ``test`` is only read off.

    Args:
        validation: held-out predictions, for thresholds and for the choice of the best expert.
        test: predictions that the table reports.
        macs: of every network.
        networks: for predictors that can be timed; None leaves them out.
        seed: of the random selection.
        confidence: what exits are decided by.
    """
    rows = _control_rows(test, macs, networks) + _ensemble_rows(test, macs, networks)
    if test.rough_logits is not None:
        rows += _team_rows(validation, test, macs, networks, seed, confidence)
    return rows


def _control_rows(
    test: Predictions, macs: RunMacs, networks: Networks | None
) -> list[PredictorRow]:
    rows = []
    for name, logits in test.control_logits.items():
        label = {"delegator": "delegator network alone", "expert": "single expert network"}.get(
            name, f"single network {name}"
        )
        predictor = networks.controls[name] if networks else None
        row = PredictorRow(label, math.nan, macs.controls[name], predictor=predictor)
        rows.append(_with_accuracy(row, test, _right(test, logits)))
    return rows


def _right(test: Predictions, logits: Tensor) -> Tensor:
    """[n]; NaN of a network that has diverged: the largest of its logits is no answer."""
    right = test.right(logits)
    return right if bool(logits.isfinite().all()) else torch.full_like(right, math.nan)


def _with_accuracy(row: PredictorRow, test: Predictions, right: Tensor) -> PredictorRow:
    """The row with its accuracy, of all test samples and of each class."""
    by_class = accuracy_by_class(right, test.target)
    return dataclasses.replace(row, accuracy=float(right.mean()), by_class=by_class)


def _ensemble_rows(
    test: Predictions, macs: RunMacs, networks: Networks | None
) -> list[PredictorRow]:
    """One network of each ensemble, and all of it: the mean of their logits."""
    rows = []
    for name, logits in test.ensemble_logits.items():
        s, cost = logits.shape[1], macs.ensembles[name]
        built = networks.ensembles[name] if networks else None
        if s > 1:
            alone = built.members[0] if built else None
            row = PredictorRow(f"ensemble {name}: one network", math.nan, cost, predictor=alone)
            members = torch.stack([_right(test, member) for member in logits.unbind(1)])
            rows.append(_with_accuracy(row, test, members.mean(0)))
        row = PredictorRow(f"ensemble {name}", math.nan, s * cost, predictor=built)
        rows.append(_with_accuracy(row, test, _right(test, logits.mean(1))))
    return rows


def _team_rows(
    validation: Predictions,
    test: Predictions,
    macs: RunMacs,
    networks: Networks | None,
    seed: int,
    confidence: ExitKind,
) -> list[PredictorRow]:
    rough_logits, selection_logits, expert_logits = test.team
    n, k = selection_logits.shape
    stages = fit_stages(validation, test, macs, confidence)
    team = networks.required_team if networks else None
    rows = []
    if CASCADE in stages:
        cascade = None
        if networks and team and FIRST in networks.controls and SECOND in networks.controls:
            small, large = networks.controls[FIRST], networks.controls[SECOND]
            cascade = cascade_team(small, large, team.num_classes)
        rows += _two_stage_rows(CASCADE, stages[CASCADE], macs, cascade, test)
    elif has_cascade(test):  # one of its networks has diverged
        costs = {f"at {_in_millions(cost)}": cost for cost in reversed(row_costs(macs))}
        spent = cascade_logits(test, macs)
        costs["no exits"] = spent.first_macs + float(spent.second_macs.mean())
        rows += [PredictorRow(f"{CASCADE} {at}", math.nan, cost) for at, cost in costs.items()]
    delegator = PredictorRow(
        "CoE's delegator (all exit)",
        math.nan,
        macs.delegator,
        1.0,
        predictor=team and team.delegator,
    )
    rows.append(_with_accuracy(delegator, test, test.right(rough_logits)))
    rows += _two_stage_rows(COE, stages[COE], macs, team, test)
    expert_right = torch.stack([test.right(expert_logits[:, j]) for j in range(k)], 1)
    held_out = validation.team.expert_logits
    held_out_right = [float(validation.right(held_out[:, j]).mean()) for j in range(k)]
    best = max(range(k), key=held_out_right.__getitem__)
    generator = torch.Generator().manual_seed(seed)
    random = expert_right[torch.arange(n), torch.randint(k, (n,), generator=generator)]
    mean = test.right(expert_logits.softmax(2).mean(1))
    with_delegator, everything = macs.delegator + macs.expert, sum(macs.experts)
    for row, right in (
        (PredictorRow("random selection", math.nan, with_delegator, 0.0), random),
        (
            PredictorRow(f"always expert {best}", math.nan, macs.experts[best]),
            expert_right[:, best],
        ),
        (PredictorRow(f"mean of all {k} experts", math.nan, everything), mean),
        (PredictorRow("oracle selection", math.nan, with_delegator, 0.0), expert_right.amax(1)),
    ):
        rows.append(_with_accuracy(row, test, right))
    return rows


def row_costs(macs: RunMacs) -> list[float]:
    """Mean MACs that two-stage rows are fitted to: where a single network is near, exactly its MACs."""
    singles = list(macs.controls.values())
    costs = set()
    for part in EXPERT_PARTS:
        cost = macs.delegator + part * macs.expert
        near = [m for m in singles if max(m / cost, cost / m) <= NEAR]
        costs.add(min(near, key=lambda m: abs(m - cost), default=cost))
    return sorted(costs)


def _in_millions(macs: float) -> str:
    return f"{macs / 1e6:.3g}M"


def _two_stage_rows(
    name: str,
    stage: FittedStage,
    macs: RunMacs,
    model: Team | None,
    test: Predictions,
) -> list[PredictorRow]:
    """No exits, then every budget; a budget's threshold maximises held-out accuracy within it."""
    curve = stage.validation.curve()
    points = [("no exits", torch.inf)]
    for cost in row_costs(macs):
        index = fit_threshold(curve, "macs", max(cost, float(curve.cost.min())))
        points.append((f"at {_in_millions(cost)}", float(curve.threshold[index])))
    rows = []
    for label, threshold in reversed(points):
        reached = stage.test.at(threshold)
        load: tuple[float, ...] = ()
        if name == COE and not bool(reached.exits.all()):
            k = test.team.selection_logits.shape[1]
            counts = torch.bincount(test.selected_expert[~reached.exits], minlength=k)
            load = tuple((counts / counts.sum()).tolist())
        predictor = None
        if model is not None:

            def predictor(images: Tensor, threshold: float = threshold) -> object:
                return model.infer(images, threshold, stage.rule, stage.rough_weight)

        rows.append(
            PredictorRow(
                f"{name} {label}",
                reached.quality,
                reached.cost["macs"],
                reached.exit_rate,
                load,
                threshold,
                predictor,
                by_class=accuracy_by_class(stage.test.each(threshold)[0][:, 0], test.target),
            )
        )
    return rows
