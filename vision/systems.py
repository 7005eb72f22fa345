"""The systems that a run holds: ways to answer an image with some of its networks, by name.

CoE (the collaboration), cascade (its hard baseline), single:NAME (a network trained alone) and
ensemble:NAME. Each can be deployed; which one is, `calibrate` finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn.functional import pad

from coe_core import ExitRule, confidence
from coe_core.stored_points import CASCADE, COE
from vision.divide.ensemble import EnsembleNetworks
from vision.errors import RunError, nearest
from vision.networks.team import Team, TeamInference
from vision.recipe import Recipe
from vision.recipe_networks import Networks, RunMacs

FIRST, SECOND = "delegator", "expert"  # names of the controls that form the cascade
_DEFAULT = ExitRule()
SINGLE, ENSEMBLE = "single:", "ensemble:"  # before the name of a control, of an ensemble

__all__ = [
    "CASCADE",
    "COE",
    "ENSEMBLE",
    "SINGLE",
    "System",
    "build_system",
    "find_system",
    "systems_of",
]


class _WithoutSelection(nn.Module):
    """A classifier as the delegator of one expert: there is nothing to select, so 0 is its score."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c_plus_1"]:
        logits = self.network(images)
        return pad(logits, (0, 1))


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


class MeanLogits(nn.Module):
    """An ensemble as one network: the mean of its networks' logits."""

    def __init__(self, ensemble: EnsembleNetworks):
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        return self.ensemble.predict(images)


@dataclass(frozen=True, eq=False)
class System:
    """One system of a run, ready to answer prepared images.

    Attributes:
        name: as `systems_of` has it.
        team: of a collaboration or a cascade; None: one network answers alone.
        network: that answers alone; None: a team does.
        first_macs: multiply-adds of every image: of the delegator, or of the network.
        expert_macs: of each expert; none where there is no team.
        sees_pixels: its networks take uint8 images and normalise them themselves; else prepared ones.
    """

    name: str
    team: Team | None
    network: nn.Module | None
    first_macs: int
    expert_macs: tuple[int, ...] = ()
    sees_pixels: bool = False

    @property
    def most_macs(self) -> int:
        """Multiply-adds of an image that does not exit, at most."""
        return self.first_macs + max(self.expert_macs, default=0)

    @property
    def networks(self) -> list[nn.Module]:
        """Every network that it calls."""
        if self.team is not None:
            return self.team.networks
        if isinstance(self.network, MeanLogits):
            return list(self.network.ensemble.members)
        return [cast(nn.Module, self.network)]

    def infer(
        self,
        images: Num[Tensor, "n ch h w"],
        threshold: float | Float[Tensor, " n"] = torch.inf,
        rule: ExitRule | Sequence[ExitRule] = _DEFAULT,
        rough_weight: float | Float[Tensor, " n"] = 0.0,
        *,
        streams: bool = False,
    ) -> TeamInference:
        """See `Team.infer`; a network alone answers all images, and none of them exits.

        Args:
            images: prepared, or pixels: see ``sees_pixels``.
            threshold: exit when confidence >= threshold.
            rule: what exits are decided by.
            rough_weight: of the rough logits in the final prediction.
            streams: see `coe_core.infer`.
        """
        if self.team is not None:
            return self.team.infer(images, threshold, rule, rough_weight, streams=streams)
        logits = cast(nn.Module, self.network)(images).float()
        none = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return TeamInference(logits, none.bool(), none, confidence(logits), logits)


def systems_of(recipe: Recipe) -> list[str]:
    """Names of the systems that a run of a recipe holds, the collaboration first.

    Example:
        >>> from vision.recipe import load_recipe
        >>> systems_of(load_recipe("digits"))[:4]
        ['CoE', 'cascade', 'single:delegator', 'single:expert']
    """
    names = [COE] * recipe.has_team
    own_cascade = recipe.has_team and recipe.hand_over.anything
    names += [CASCADE] * (own_cascade or {FIRST, SECOND} <= set(recipe.controls))
    names += [f"{SINGLE}{name}" for name in recipe.controls]
    return names + [f"{ENSEMBLE}{name}" for name in recipe.ensembles]


def find_system(recipe: Recipe, text: str) -> str:
    """The name of a system as a user writes it: coe, cascade, single:NAME, ensemble:NAME.

    Args:
        recipe: of the run.
        text: as written.

    Raises:
        RunError: the run holds none of this name; says which it holds.
    """
    known = systems_of(recipe)
    if text in known:
        return text
    for name in known:
        if name.casefold() == text.casefold():
            return name
    raise RunError(
        f"the run has no system {text[:120]!r}{nearest(text, known)}; it has: {', '.join(known)}"
    )


def answering(networks: Networks, name: str) -> Team | nn.Module:
    """What answers for a system: a team, or a network alone. The run's own, not copies.

    Args:
        networks: of the run.
        name: of `systems_of`.

    Raises:
        RunError: the run holds none of this name.
    """
    name = find_system(networks.recipe, name)
    if name == COE:
        return networks.required_team
    if name == CASCADE and networks.cascade is not None:
        return networks.cascade
    if name == CASCADE:
        small, large = networks.controls[FIRST], networks.controls[SECOND]
        return cascade_team(small, large, len(networks.classes)).eval()
    kind, _, own = name.partition(":")
    if f"{kind}:" == SINGLE:
        return networks.controls[own]
    return MeanLogits(networks.ensembles[own]).eval()


def build_system(networks: Networks, macs: RunMacs, name: str) -> System:
    """A system of a run.

    Args:
        networks: of the run.
        macs: of the same.
        name: of `systems_of`.

    Raises:
        RunError: the run holds none of this name.
    """
    name = find_system(networks.recipe, name)
    answers = answering(networks, name)
    if name == COE and isinstance(answers, Team):
        return System(name, answers, None, macs.delegator, tuple(macs.experts))
    if isinstance(answers, Team):
        first, second = macs.cascade or (macs.controls[FIRST], macs.controls[SECOND])
        return System(name, answers, None, first, (second,))
    kind, _, own_name = name.partition(":")
    if f"{kind}:" == SINGLE:
        return System(name, None, answers, macs.controls[own_name])
    count = networks.ensembles[own_name].division.s
    return System(name, None, answers, count * macs.ensembles[own_name])
