"""Training that goes on from pretrained weights. OURS."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vision.networks.network import Network
from vision.recipe import Recipe

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights


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
