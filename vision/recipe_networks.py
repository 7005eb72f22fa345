"""All networks of a recipe with what is needed to use them: no trainer in sight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vision.data.preprocess import Preprocess
from vision.divide.ensemble import EnsembleNetworks
from vision.networks.network import Team, build_network
from vision.recipe import Recipe, recipe_from_dict


class Networks(nn.Module):
    """A team, the controls and ensembles trained beside it, the classes they know and how images enter them.

    All arguments are plain values: they are stored in the checkpoint, which therefore loads with
    ``weights_only=True`` and needs no other file.

    Args:
        recipe: see `Recipe.to_dict`.
        classes: names, in the order of the labels.
        preprocess: see `Preprocess.to_dict`.
    """

    def __init__(self, recipe: dict[str, Any], classes: list[str], preprocess: dict[str, Any]):
        super().__init__()
        self.recipe: Recipe = recipe_from_dict(recipe)
        self.classes = list(classes)
        self.preprocess = Preprocess.from_dict(preprocess)
        channels = self.recipe.data.channels
        num_classes, num_experts = len(classes), self.recipe.num_experts
        # None: the recipe has no delegator, only ensembles and controls.
        self.team: Team | None = None
        if self.recipe.has_team:
            self.team = Team(
                build_network(self.recipe.delegator, num_classes + num_experts, channels),
                [
                    build_network(network, num_classes, channels)
                    for network in self.recipe.expert_networks
                ],
                num_classes,
            )
        self.controls = nn.ModuleDict(
            {
                name: build_network(network, num_classes, channels)
                for name, network in self.recipe.controls.items()
            }
        )
        self.ensembles = nn.ModuleDict()
        for name, ensemble in self.recipe.ensembles.items():
            try:
                division = ensemble.divide(
                    num_classes, self.preprocess, self.recipe.train.weight_decay
                )
            except ValueError as error:
                raise ValueError(f"ensembles.{name}: {error}") from error
            self.ensembles[name] = EnsembleNetworks(division, num_classes, self.preprocess)
        self.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images -> normalised ones in the memory format that convolutions are fastest with."""
        return self.preprocess.normalise(images).contiguous(memory_format=torch.channels_last)
