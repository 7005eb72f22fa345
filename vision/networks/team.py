"""The team: one delegator, k experts, each a whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from coe_core import Delegation, confidence, infer
from coe_core.inference import ConfidenceKind


class TeamOutput(NamedTuple):
    """Everything a training step needs: all networks on all samples."""

    rough_logits: Float[Tensor, "n c"]
    selection_logits: Float[Tensor, "n k"]
    expert_logits: Float[Tensor, "n k c"]


class TeamInference(NamedTuple):
    """`coe_core.Inference` of a classifier, with the rough predictions beside it."""

    prediction: Float[Tensor, "n c"]  # logits
    exits: Bool[Tensor, " n"]  # ended with the rough prediction
    selected_expert: Int[Tensor, " n"]  # also told for exits, where it did not run
    confidence: Float[Tensor, " n"]
    rough: Float[Tensor, "n c"]  # the delegator's logits


class Team(nn.Module):
    """A delegator and k experts, each a whole network; nothing is shared between them.

    The delegator is any classifier with c + k outputs: c rough logits, then k selection logits,
    both linear in its features.

    Args:
        delegator: network with num_classes + k outputs.
        experts: k networks with num_classes outputs each; they may differ.
        num_classes: c.

    Example:
        >>> from vision.networks.network import Network, build_network
        >>> build = lambda outputs: build_network(Network("small_resnet", options={"width": 2}), outputs)
        >>> team = Team(build(10 + 3), [build(10) for _ in range(3)], num_classes=10).eval()
        >>> team.infer(torch.zeros(5, 3, 32, 32), threshold=0.0).exits.tolist()
        [True, True, True, True, True]
    """

    def __init__(self, delegator: nn.Module, experts: Sequence[nn.Module], num_classes: int):
        super().__init__()
        self.delegator = delegator
        self.experts = nn.ModuleList(experts)
        self.num_classes = num_classes

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    def delegate(
        self, images: Float[Tensor, "n ch h w"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n k"]]:
        """Rough logits and selection logits."""
        outputs = self.delegator(images)
        return outputs[:, : self.num_classes], outputs[:, self.num_classes :]

    def forward(self, images: Float[Tensor, "n ch h w"]) -> TeamOutput:
        """All networks on all images: for training and for tables, not for deployment."""
        rough, selection = self.delegate(images)
        return TeamOutput(rough, selection, torch.stack([e(images) for e in self.experts], 1))

    def infer(
        self,
        images: Float[Tensor, "n ch h w"],
        threshold: float | Float[Tensor, " n"],
        confidence_kind: ConfidenceKind = "max_probability",
        rough_weight: float | Float[Tensor, " n"] = 0.0,
        *,
        streams: bool = False,
    ) -> TeamInference:
        """Logits with early termination: the delegator for all, one expert for those that stay.

        Where an expert runs, the prediction is its logits + ``rough_weight`` * the rough logits.

        Args:
            images: prepared, see `vision.recipe_networks.Networks.prepare`.
            threshold: exit when confidence >= threshold; one number, or one per image.
            confidence_kind: see `coe_core.confidence`.
            rough_weight: one number, or one per image; see `coe_core.fit_rough_weight`.
            streams: see `coe_core.infer`.
        """
        rough, selection = self.delegate(images)
        rough, selection = rough.float(), selection.float()
        delegation = Delegation(rough, confidence(rough, confidence_kind), selection)
        prediction, exits, *route = infer(
            lambda _: delegation, list(self.experts), images, threshold, streams=streams
        )
        if isinstance(rough_weight, Tensor) or rough_weight:
            pooled = prediction.float() + _per_row(rough_weight) * rough
            prediction = torch.where(exits[:, None], rough, pooled)
        return TeamInference(prediction, exits, *route, rough)


def _per_row(weight: float | Tensor) -> float | Tensor:
    return weight[:, None] if isinstance(weight, Tensor) and weight.ndim == 1 else weight
