"""The systems of a run on samples whose answers are known: collaboration, cascade, single networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from coe_core import ExitRule, StageCost, TwoStage, fit_gain, fit_rough_weight, mean_quality
from coe_core.exit_rules import ExitKind
from vision.evaluation.predictions import Predictions
from vision.recipe_networks import RunMacs
from vision.systems import CASCADE, COE, ENSEMBLE, FIRST, SECOND, SINGLE


class StageLogits(NamedTuple):
    """Both answers of a two-stage predictor, and what the second costs."""

    rough: Float[Tensor, "n c"]
    selection: Float[Tensor, "n k"]
    final: Float[Tensor, "n c"]  # of the second network, before the rough logits are pooled into it
    first_macs: float
    second_macs: Float[Tensor, " n"]


class FittedStage(NamedTuple):
    """A two-stage predictor whose pooling was fitted on held-out data."""

    rough_weight: float
    rule: ExitRule  # what exits are decided by
    validation: TwoStage  # of those samples that thresholds may be fitted on
    test: TwoStage


def coe_logits(predictions: Predictions, macs: RunMacs) -> StageLogits:
    """Delegator, then the selected expert."""
    experts = torch.tensor(macs.experts, dtype=torch.float64)[predictions.selected_expert]
    return StageLogits(
        predictions.team.rough_logits,
        predictions.team.selection_logits,
        predictions.selected_logits,
        macs.delegator,
        experts,
    )


def cascade_logits(predictions: Predictions, macs: RunMacs) -> StageLogits:
    """The delegator's and an expert's network, trained alone; or, with a hand-over, a team of one expert."""
    logits, spent = predictions.control_logits, macs.controls
    if predictions.cascade_logits is not None and macs.cascade is not None:
        rough, final = predictions.cascade_logits
        first, expert = macs.cascade
        costs = torch.full((len(final),), expert).double()
        return StageLogits(rough, _nothing_to_select(rough), final, first, costs)
    second = torch.full((len(predictions.target),), spent[SECOND], dtype=torch.float64)
    rough = logits[FIRST]
    return StageLogits(rough, _nothing_to_select(rough), logits[SECOND], spent[FIRST], second)


def _nothing_to_select(rough: Tensor) -> Tensor:
    return rough.new_zeros(len(rough), 1)


def two_stage(
    predictions: Predictions,
    logits: StageLogits,
    rough_weight: float = 0.0,
    rule: ExitRule | None = None,
) -> TwoStage:
    """Accuracy and multiply-adds of both stages.

    The first network is charged in full even where nothing exits, because it runs: `Team.infer` computes
    rough and selection logits in one pass for every image, a cascade's too (`cascade_team`), and that is
    what the milliseconds of the table measure. What the second network alone reaches without the first
    is the row "single expert network". (Translation's generator leaves the first search out there, and
    its tables do not charge it.)

    Args:
        predictions: that the logits are of.
        logits: of both stages.
        rough_weight: of the rough logits in the final prediction, see `coe_core.fit_rough_weight`.
        rule: what exits are decided by; None: the default.
    """
    rough, selection, final, first_macs, second_macs = logits
    right = predictions.right(rough), predictions.right(final + rough_weight * rough)
    return TwoStage(
        (rule or ExitRule()).confidence(rough, selection),
        {"accuracy": mean_quality(*right)},
        {"macs": StageCost(first_macs, second_macs)},
    )


class HeldOut(NamedTuple):
    """What is fitted on held-out data before thresholds are, and the samples that are left for these."""

    rough_weight: float
    rule: ExitRule
    predictions: Predictions
    stage: TwoStage


def fit_held_out(
    predictions: Predictions,
    logits_of: Callable[[Predictions], StageLogits],
    kind: ExitKind = "max_probability",
) -> HeldOut:
    """The pooling, and the rule that exits are decided by.

    A rule by gain is fitted, as is the pooling that it knows, on every second sample, and thresholds on the
    others: of samples that a rule was fitted on its confidence says too much, and no guarantee would hold.

    Args:
        predictions: of held-out data.
        logits_of: a two-stage predictor's answers.
        kind: of rule.
    """
    fitted_on = predictions
    if kind == "gain":
        rows = torch.arange(len(predictions.target))
        fitted_on, predictions = predictions.select(rows[::2]), predictions.select(rows[1::2])
    logits = logits_of(fitted_on)
    weight = fit_rough_weight(logits.rough, logits.final, fitted_on.target)
    if kind == "gain":
        rough = fitted_on.right(logits.rough)
        final = fitted_on.right(logits.final + weight * logits.rough)
        rule = fit_gain(logits.rough, logits.selection, rough, final)
        logits = logits_of(predictions)
    else:
        rule = ExitRule(kind)
    return HeldOut(weight, rule, predictions, two_stage(predictions, logits, weight, rule))


def fit_stages(
    validation: Predictions, test: Predictions, macs: RunMacs, kind: ExitKind = "max_probability"
) -> dict[str, FittedStage]:
    """ "CoE" and, if both of its networks were trained as controls, "cascade"; nothing without a team.

    A cascade that has diverged is left out.

    Args:
        validation: held-out predictions, see `fit_held_out`.
        test: predictions that are read off.
        macs: of every network.
        kind: what exits are decided by.
    """
    if test.rough_logits is None:
        return {}
    kinds = {COE: coe_logits}
    if has_cascade(test):
        kinds[CASCADE] = cascade_logits
    fitted = {}
    for name, logits_of in kinds.items():
        held_out, tested = logits_of(validation, macs), logits_of(test, macs)
        if name == CASCADE and not (_is_finite(held_out) and _is_finite(tested)):
            continue
        weight, rule, _, stage = fit_held_out(validation, partial(logits_of, macs=macs), kind)
        fitted[name] = FittedStage(weight, rule, stage, two_stage(test, tested, weight, rule))
    return fitted


def has_cascade(predictions: Predictions) -> bool:
    """Whether both networks of a cascade were trained beside the team."""
    return predictions.cascade_logits is not None or {FIRST, SECOND} <= set(
        predictions.control_logits
    )


def _is_finite(logits: StageLogits) -> bool:
    return bool(logits.rough.isfinite().all() and logits.final.isfinite().all())


class HeldOutSystem(NamedTuple):
    """A system with its pooling fitted, on the data that thresholds may be fitted on."""

    rough_weight: float  # 0 where there is nothing to pool
    rule: ExitRule  # what exits are decided by; the default where nothing can exit
    stage: TwoStage
    parts: int  # networks that it consists of


def held_out_systems(
    predictions: Predictions, macs: RunMacs, kind: ExitKind = "max_probability"
) -> tuple[dict[str, HeldOutSystem], Predictions]:
    """Every system that the run holds, by its name (see `vision.systems`); those that diverged are left out.

    Args:
        predictions: on held-out data.
        macs: of the same run.
        kind: what exits are decided by, see `fit_held_out`.

    Returns:
        The systems, and the samples that they all are of.
    """
    systems, left = {}, predictions
    if kind == "gain":
        left = predictions.select(torch.arange(len(predictions.target))[1::2])
    for name, count in _parts(predictions, macs).items():
        if not _is_finite(system_logits(predictions, macs, name)):
            continue
        weight, rule, stage = 0.0, ExitRule(), system_stage(left, macs, name)
        if name in (COE, CASCADE):
            answers = partial(system_logits, macs=macs, name=name)
            weight, rule, _, stage = fit_held_out(predictions, answers, kind)
        systems[name] = HeldOutSystem(weight, rule, stage, count)
    return systems, left


def _parts(predictions: Predictions, macs: RunMacs) -> dict[str, int]:
    """Of how many networks each system consists."""
    parts = {}
    if predictions.rough_logits is not None:
        parts[COE] = 1 + len(macs.experts)
    if has_cascade(predictions):
        parts[CASCADE] = 2
    parts |= {f"{SINGLE}{name}": 1 for name in predictions.control_logits}
    return parts | {f"{ENSEMBLE}{n}": x.shape[1] for n, x in predictions.ensemble_logits.items()}


def system_logits(predictions: Predictions, macs: RunMacs, name: str) -> StageLogits:
    """Both answers of a system; of one that answers at once they are the same.

    Args:
        predictions: on any data.
        macs: of the same run.
        name: of the system.
    """
    if name == COE:
        return coe_logits(predictions, macs)
    if name == CASCADE:
        return cascade_logits(predictions, macs)
    kind, _, own = name.partition(":")
    if f"{kind}:" == SINGLE:
        logits, cost = predictions.control_logits[own], macs.controls[own]
    else:
        members = predictions.ensemble_logits[own]
        logits, cost = members.mean(1), members.shape[1] * macs.ensembles[own]
    nothing = torch.zeros(len(logits), dtype=torch.float64)
    return StageLogits(logits, _nothing_to_select(logits), logits, cost, nothing)


def system_stage(
    predictions: Predictions,
    macs: RunMacs,
    name: str,
    rough_weight: float = 0.0,
    rule: ExitRule | None = None,
) -> TwoStage:
    """A system on samples whose answers are known.

    Args:
        predictions: see `system_logits`.
        macs: of the same run.
        name: of the system.
        rough_weight: of the rough logits in its final prediction.
        rule: what exits are decided by; None: the default.
    """
    both = system_logits(predictions, macs, name)
    if name in (COE, CASCADE):
        return two_stage(predictions, both, rough_weight, rule)
    right = predictions.right(both.final)
    return TwoStage.alone(
        {"accuracy": mean_quality(right, right)}, {"macs": float(both.first_macs)}
    )
