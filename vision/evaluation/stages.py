"""The two-stage predictors of a run: the collaboration, and the cascade of its two controls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coe_core import StageCost, TwoStage, confidence, fit_rough_weight, mean_quality
from vision.evaluation.predictions import Predictions
from vision.networks.team import Team
from vision.recipe_networks import RunMacs

COE, CASCADE = "CoE", "cascade"
FIRST, SECOND = "delegator", "expert"  # names of the controls that form the cascade


class StageLogits(NamedTuple):
    """Both answers of a two-stage predictor, and what the second costs."""

    rough: Float[Tensor, "n c"]
    final: Float[Tensor, "n c"]  # of the second network, before the rough logits are pooled into it
    first_macs: float
    second_macs: Float[Tensor, " n"]


class FittedStage(NamedTuple):
    """A two-stage predictor whose pooling was fitted on held-out data."""

    rough_weight: float
    validation: TwoStage
    test: TwoStage


def coe_logits(predictions: Predictions, macs: RunMacs) -> StageLogits:
    """Delegator, then the selected expert."""
    experts = torch.tensor(macs.experts, dtype=torch.float64)[predictions.selected_expert]
    return StageLogits(
        predictions.team.rough_logits, predictions.selected_logits, macs.delegator, experts
    )


def cascade_logits(predictions: Predictions, macs: RunMacs) -> StageLogits:
    """The delegator's and an expert's network, trained alone; or, with a hand-over, a team of one expert."""
    logits, spent = predictions.control_logits, macs.controls
    if predictions.cascade_logits is not None and macs.cascade is not None:
        rough, final = predictions.cascade_logits
        first, expert = macs.cascade
        return StageLogits(rough, final, first, torch.full((len(final),), expert).double())
    second = torch.full((len(predictions.target),), spent[SECOND], dtype=torch.float64)
    return StageLogits(logits[FIRST], logits[SECOND], spent[FIRST], second)


def two_stage(predictions: Predictions, logits: StageLogits, rough_weight: float = 0.0) -> TwoStage:
    """Accuracy and multiply-adds of both stages.

    The first network is charged in full even where nothing exits: rough and selection logits are one
    pass, and the final prediction pools the rough one into the expert's.

    Args:
        predictions: that the logits are of.
        logits: of both stages.
        rough_weight: of the rough logits in the final prediction, see `coe_core.fit_rough_weight`.
    """
    rough, final, first_macs, second_macs = logits
    right = predictions.right(rough), predictions.right(final + rough_weight * rough)
    return TwoStage(
        confidence(rough),
        {"accuracy": mean_quality(*right)},
        {"macs": StageCost(first_macs, second_macs)},
    )


def fit_stages(validation: Predictions, test: Predictions, macs: RunMacs) -> dict[str, FittedStage]:
    """ "CoE" and, if both of its networks were trained as controls, "cascade"; nothing without a team.

    A cascade that has diverged is left out.
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
        weight = fit_rough_weight(held_out.rough, held_out.final, validation.target)
        fitted[name] = FittedStage(
            weight, two_stage(validation, held_out, weight), two_stage(test, tested, weight)
        )
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
