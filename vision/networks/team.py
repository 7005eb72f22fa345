"""The team: one delegator, k experts, each a whole network, or the rest of one behind a shared trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from coe_core import Delegation, ExitRule, infer, scale_gradient

_DEFAULT = ExitRule()


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


class HandedOver(NamedTuple):
    """What the delegator knows of a batch, and what the experts go on from."""

    features: Tensor  # of the shared trunk; without one the images
    rough_logits: Float[Tensor, "n c"]
    selection_logits: Float[Tensor, "n k"]


class Trunked(nn.Module):
    """A delegator whose first layers are the experts' too.

    Args:
        trunk: images -> features.
        branch: features -> logits.
    """

    def __init__(self, trunk: nn.Module, branch: nn.Module):
        super().__init__()
        self.trunk, self.branch = trunk, branch

    def forward(self, images: Num[Tensor, "n ch h w"]) -> Float[Tensor, "n c_plus_k"]:
        """Rough and selection logits."""
        return self.branch(self.trunk(images))


class Team(nn.Module):
    """A delegator and k experts, each a whole network; nothing is shared between them but what is asked for.

    The delegator is any classifier with c + k outputs: c rough logits, then k selection logits,
    both linear in its features. OURS: where it is `Trunked`, the experts take the trunk's features in
    place of images; with ``rough_logits`` an expert's answer is its own logits + the rough ones.

    Args:
        delegator: network with num_classes + k outputs.
        experts: k networks with num_classes outputs each; they may differ.
        num_classes: c.
        rough_logits: whether the experts go on from the rough logits; no gradient goes back that way.
        trunk_gradient: factor on each expert's gradient into the trunk; None: 1 / k.

    Example:
        >>> from vision.networks.network import Network, build_network
        >>> build = lambda outputs: build_network(Network("small_resnet", options={"width": 2}), outputs)
        >>> team = Team(build(10 + 3), [build(10) for _ in range(3)], num_classes=10).eval()
        >>> team.infer(torch.zeros(5, 3, 32, 32), threshold=0.0).exits.tolist()
        [True, True, True, True, True]
    """

    def __init__(
        self,
        delegator: nn.Module,
        experts: Sequence[nn.Module],
        num_classes: int,
        *,
        rough_logits: bool = False,
        trunk_gradient: float | None = None,
    ):
        super().__init__()
        self.delegator = delegator
        self.experts = nn.ModuleList(experts)
        self.num_classes = num_classes
        self.rough_logits = rough_logits
        self.trunk_gradient = 1 / len(experts) if trunk_gradient is None else trunk_gradient

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    @property
    def networks(self) -> list[nn.Module]:
        """Every module that is called: the delegator, or its trunk and its branch, and the experts."""
        delegator = self.delegator
        first = (
            [delegator.trunk, delegator.branch] if isinstance(delegator, Trunked) else [delegator]
        )
        return [*first, *self.experts]

    def features(self, images: Num[Tensor, "n ch h w"]) -> Tensor:
        """What the experts see: the trunk's output, without one the images."""
        return self.delegator.trunk(images) if isinstance(self.delegator, Trunked) else images

    def feature_shape(self, image: tuple[int, int, int]) -> tuple[int, ...]:
        """Shape of what the experts see of one image of the shape (channels, height, width)."""
        if not isinstance(self.delegator, Trunked):
            return image
        from vision.networks.trunk import feature_shape

        return feature_shape(self.delegator.trunk, image)

    def hand_over(self, images: Num[Tensor, "n ch h w"]) -> HandedOver:
        """One pass of the delegator, and what the experts go on from."""
        features = self.features(images)
        branch = self.delegator.branch if isinstance(self.delegator, Trunked) else self.delegator
        outputs = branch(features)
        return HandedOver(features, outputs[:, : self.num_classes], outputs[:, self.num_classes :])

    def for_experts(self, handed: HandedOver) -> Tensor:
        """The features, in training with the experts' gradient into the trunk scaled."""
        if isinstance(self.delegator, Trunked) and torch.is_grad_enabled():
            return scale_gradient(handed.features, self.trunk_gradient)
        return handed.features

    def answers(
        self, expert_logits: Float[Tensor, "n *k c"], rough_logits: Float[Tensor, "n c"]
    ) -> Float[Tensor, "n *k c"]:
        """What experts say, given their own logits."""
        if not self.rough_logits:
            return expert_logits
        rough = rough_logits.detach()
        return expert_logits + (rough if expert_logits.ndim == 2 else rough[:, None])

    def delegate(
        self, images: Float[Tensor, "n ch h w"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n k"]]:
        """Rough logits and selection logits."""
        _, rough, selection = self.hand_over(images)
        return rough, selection

    def forward(self, images: Float[Tensor, "n ch h w"]) -> TeamOutput:
        """All networks on all images: for training and for tables, not for deployment."""
        handed = self.hand_over(images)
        _, rough, selection = handed
        experts = torch.stack([expert(self.for_experts(handed)) for expert in self.experts], 1)
        return TeamOutput(rough, selection, self.answers(experts, rough))

    def infer(
        self,
        images: Num[Tensor, "n ch h w"],
        threshold: float | Float[Tensor, " n"],
        rule: ExitRule | Sequence[ExitRule] = _DEFAULT,
        rough_weight: float | Float[Tensor, " n"] = 0.0,
        *,
        streams: bool = False,
    ) -> TeamInference:
        """Logits with early termination: the delegator for all, one expert for those that stay.

        Where an expert runs, the prediction is its answer + ``rough_weight`` * the rough logits.

        Args:
            images: prepared, see `vision.recipe_networks.Networks.prepare`, or pixels for networks of pixels.
            threshold: exit when confidence >= threshold; one number, or one per image.
            rule: what exits are decided by; one for all, or one per image.
            rough_weight: one number, or one per image; see `coe_core.fit_rough_weight`.
            streams: see `coe_core.infer`.
        """
        features, rough, selection = self.hand_over(images)
        rough, selection = rough.float(), selection.float()
        delegation = Delegation(rough, _confidence(rule, rough, selection), selection, features)
        inference = infer(
            lambda _: delegation,
            list(self.experts),
            images,
            threshold,
            combine=(lambda rough, logits: logits + rough) if self.rough_logits else None,
            streams=streams,
        )
        prediction, exits = inference.prediction, inference.exits
        if isinstance(rough_weight, Tensor) or rough_weight:
            pooled = prediction.float() + _per_row(rough_weight) * rough
            prediction = torch.where(exits[:, None], rough, pooled)
        return TeamInference(
            prediction, exits, inference.selected_expert, inference.confidence, rough
        )


def _confidence(
    rule: ExitRule | Sequence[ExitRule],
    rough: Float[Tensor, "n c"],
    selection: Float[Tensor, "n k"],
) -> Float[Tensor, " n"]:
    """By one rule for all, or by each row's own."""
    if isinstance(rule, ExitRule):
        return rule.confidence(rough, selection)
    confidences = rough.new_zeros(len(rough))
    for distinct in set(rule):
        confidence = distinct.confidence(rough, selection)
        rows = torch.tensor([own == distinct for own in rule], device=rough.device)
        confidences = torch.where(rows, confidence.to(confidences), confidences)
    return confidences


def _per_row(weight: float | Tensor) -> float | Tensor:
    return weight[:, None] if isinstance(weight, Tensor) and weight.ndim == 1 else weight
