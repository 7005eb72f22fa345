"""Training that goes on from pretrained weights. OURS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from vision.networks.network import Network
from vision.networks.started import Started
from vision.recipe import Recipe, Train
from vision.recipe_networks import Networks

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights
    from vision.training.module import CoETraining

CALIBRATION = 32  # batches that statistics are estimated on


def weights_to_start_from(recipe: Recipe) -> Weights | None:
    """What loads pretrained weights, for a recipe that asks for some; needed once, when a training begins."""
    if not any(network.pretrained for _, network in recipe.named_networks()):
        return None
    from vision.networks.pretrained import Weights

    return Weights()


def with_own_statistics(recipe: Recipe) -> Recipe:
    """The recipe whose pretrained networks say the mean and std that they need, to be stored with a run.

    Example:
        >>> from vision.recipe import load_recipe
        >>> recipe = load_recipe("clothing", ["controls.expert={name: resnet18, pretrained: true}"])
        >>> with_own_statistics(recipe).controls["expert"].std
        [0.229, 0.224, 0.225]
    """
    if weights_to_start_from(recipe) is None:
        return recipe
    from vision.networks.pretrained import own_statistics

    def own(network: Network) -> Network:
        return own_statistics(network, recipe.data.channels)

    ensembles = recipe.ensembles.items()
    return replace(
        recipe,
        delegator=None if recipe.delegator is None else own(recipe.delegator),
        experts=[own(network) for network in recipe.experts],
        controls={name: own(network) for name, network in recipe.controls.items()},
        ensembles={name: replace(e, network=own(e.network)) for name, e in ensembles},
    )


class FineTuning(Callback):
    """What of pretrained networks is trained when: the classifier first, then all that is not frozen.

    Args:
        train: the recipe's section.
    """

    def __init__(self, train: Train) -> None:
        self.train = train

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for part in _parts(pl_module):
            for parameter in part.fixed:
                parameter.requires_grad_(False)  # before the optimiser and other processes see it

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for part in _parts(pl_module):
            fixed = set(part.fixed)
            for parameter in part.body:
                learns = trainer.current_epoch >= self.train.head_epochs and parameter not in fixed
                parameter.requires_grad_(learns)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        keep = self.train.batch_norm != "train" or trainer.current_epoch < self.train.head_epochs
        for part in _parts(pl_module):
            for norm in part.norms if keep else part.fixed_norms:
                norm.eval()


def _parts(module: LightningModule) -> list[Started]:
    return cast("CoETraining", module).networks.started.parts


@torch.no_grad()
def recalibrate(networks: Networks, batches: Iterable[dict[str, Tensor]]) -> int:
    """Estimate the statistics of pretrained networks anew, on images as they are trained on.

    Args:
        networks: with the weights that they start from.
        batches: of a training loader; so many are used as `CALIBRATION` says.

    Returns:
        The number of images.
    """
    norms: list[Any] = [norm for part in networks.started.parts for norm in part.norms]
    kept = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches
        norm.train()
    count = 0
    for batch in islice(batches, CALIBRATION):
        images = networks.prepare(batch["image"].to(networks.device))
        count += len(images)
        for network in _whole(networks):
            network(images)
    for norm, momentum, training in kept:
        norm.momentum = momentum
        norm.train(training)
    return count


def _whole(networks: Networks) -> list[nn.Module]:
    """Everything that takes images."""
    teams = [team for team in (networks.team, networks.cascade) if team is not None]
    return [*teams, *networks.controls.values(), *cast(Any, networks.ensembles).values()]
