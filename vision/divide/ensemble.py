"""An ensemble of a recipe: s networks of one shape that train together and answer with their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor, nn

from coe_core import ramped_agreement
from coe_core.agreement import AGREEMENTS, Agreement
from vision.data.preprocess import Preprocess
from vision.divide.division import Division, divide_network
from vision.networks.network import Network, Normalisation, build_network
from vision.networks.side_by_side import Together

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights


@dataclass(frozen=True)
class Ensemble:
    """One network divided into s that are co-trained: Divide and Co-training (PAPER).

    Args:
        network: the undivided network, or with rule none one of the s.
        s: number of networks; 1 is the undivided one under the same recipe.
        rule: how it is divided: none, solve, or a published rule such as widening; null: the paper's
            for paper/NAME, else solve. See `coe-vision divide`.
        match: what solve keeps: macs or parameters.
        tolerance: of solve, relative.
        regularisers: kind -> rule where it is not the published one, such as {weight_decay: none};
            train.weight_decay is divided like the network's own regularisers.
        own_views: every network sees its own augmented view of each image; false: all see the same.
        agreement: term between the networks: none, distil, js or mutual.
        agreement_weight: lambda, its weight.
        agreement_warmup: part of the training over which lambda rises.
    """

    network: Network
    s: int = 2
    rule: str | None = None
    match: Literal["macs", "parameters"] = "macs"
    tolerance: float = 0.03
    regularisers: dict[str, str] = field(default_factory=dict)
    own_views: bool = True
    agreement: Agreement = "js"
    agreement_weight: float = 0.5
    agreement_warmup: float = 0.1333

    def __post_init__(self) -> None:
        if self.s < 1:
            raise ValueError(f"an ensemble's s must be at least 1, got {self.s}")
        check_agreement(self.agreement, self.agreement_weight, self.s > 1)
        ramped_agreement(self.agreement_weight, 0.0, self.agreement_warmup)  # checks both ranges

    @property
    def num_views(self) -> int:
        """Views of each image that training needs."""
        return self.s if self.own_views else 1

    def divide(self, num_classes: int, preprocess: Preprocess, weight_decay: float) -> Division:
        """What the network and the weight decay of the recipe become.

        Raises:
            ValueError: it cannot be divided so, see `divide_network`.
        """
        return divide_network(
            self.network,
            self.s,
            self.match,
            rule=self.rule,
            num_classes=num_classes,
            image_size=round(math.sqrt(math.prod(preprocess.sides))),  # of as many pixels
            channels=preprocess.channels,
            tolerance=self.tolerance,
            weight_decay=weight_decay or None,
            regulariser_rules=self.regularisers,
        )

    def agreement_term(self, logits: Float[Tensor, "n s c"], progress: float) -> Tensor | float:
        """Weighted mean over the samples, at a part ``progress`` of the training."""
        if self.agreement == "none" or self.s == 1:
            return 0.0
        weight = ramped_agreement(self.agreement_weight, progress, self.agreement_warmup)
        return weight * AGREEMENTS[self.agreement](logits).mean()


def check_agreement(agreement: str, weight: float, used: bool = True) -> None:
    """Refuse a weight that is none, and a term without weight, which would be without effect.

    Example:
        >>> check_agreement("js", 0.0)
        Traceback (most recent call last):
        ...
        ValueError: agreement 'js' with agreement_weight 0 is without effect: give a weight, or set \
agreement to none
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"agreement_weight must be finite and at least 0, got {weight}")
    if used and agreement != "none" and weight == 0:
        raise ValueError(
            f"agreement {agreement!r} with agreement_weight 0 is without effect: give a weight, or "
            "set agreement to none"
        )


class EnsembleNetworks(nn.Module):
    """The s networks of an `Ensemble`; in evaluation all see the same image.

    Args:
        division: see `Ensemble.divide`.
        num_classes: c.
        preprocess: of the images.
        weights: see `build_network`.
    """

    def __init__(
        self,
        division: Division,
        num_classes: int,
        preprocess: Preprocess,
        weights: Weights | None = None,
    ):
        super().__init__()
        images, channels = Normalisation(preprocess.mean, preprocess.std), preprocess.channels
        self.division = division
        self.members = nn.ModuleList(
            build_network(division.divided, num_classes, channels, images=images, weights=weights)
            for _ in range(division.s)
        )
        self._together = Together(self.members, preprocess.shape)

    def forward(
        self, images: Float[Tensor, "n ch h w"] | Sequence[Float[Tensor, "n ch h w"]]
    ) -> Float[Tensor, "n s c"]:
        """Logits of every network; ``images`` of one view for all, or of one for each."""
        return self._together(images)

    def run_in_loop(self) -> None:
        """Call every network by itself from now on, as compiled ones need."""
        self._together.wide = None

    def predict(self, images: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        """Mean logits, the paper's answer."""
        return self(images).float().mean(1)
