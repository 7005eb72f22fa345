"""The two-stage predictors of a run: the collaboration, and the cascade of its two controls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coe_core import ExitRule, StageCost, TwoStage, fit_gain, fit_rough_weight, mean_quality
from coe_core.exit_rules import ExitKind
from vision.evaluation.predictions import Predictions
from vision.networks.team import Team
from vision.recipe_networks import RunMacs

COE, CASCADE = "CoE", "cascade"
FIRST, SECOND = "delegator", "expert"  # names of the controls that form the cascade


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


class _WithoutSelection(nn.Module):
    """A classifier as the delegator of one expert: there is nothing to select, so 0 is its score."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c_plus_1"]:
        logits = self.network(images)
        return torch.cat([logits, logits.new_zeros(len(logits), 1)], 1)


def cascade_team(small: nn.Module, large: nn.Module, num_classes: int) -> Team:
    """The hard baseline: a small and a large network trained alone, that is a team of one expert.

    Args:
        small: runs on every image.
        large: runs on those that do not exit.
        num_classes: c, outputs of both.

    Example:
        >>> half = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
        >>> cascade_team(half, half, 2).infer(torch.zeros(4, 3, 1, 1), 2.0).selected_expert.tolist()
        [0, 0, 0, 0]
    """
    return Team(_WithoutSelection(small), [large], num_classes)
