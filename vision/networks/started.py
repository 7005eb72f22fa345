"""What of a network came with pretrained weights, and how far from its classifier: for fine-tuning. OURS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from vision.errors import nearest
from vision.networks.features import classifier_names
from vision.networks.network import Network, OwnView


class Started(NamedTuple):
    """The parts of one pretrained network; what was built anew (the classifier) is in none of them.

    Args:
        depth: of each parameter, the classifier's too, its layers away from the classifier.
        body: parameters that came with the weights.
        fixed: those of them that stay as they are.
        norms: batch normalisations that came with the weights.
        fixed_norms: those of them that stay as they are.
    """

    depth: dict[nn.Parameter, int]
    body: list[nn.Parameter]
    fixed: list[nn.Parameter]
    norms: list[nn.Module]
    fixed_norms: list[nn.Module]


def started(built: nn.Module, network: Network, num_outputs: int) -> Started:
    """Part a pretrained network, see `Started`.

    Args:
        built: the whole network, before anything is cut off.
        network: of the recipe; its ``frozen`` is the module up to which it stays as it is.
        num_outputs: of its classifier.

    Raises:
        ValueError: ``frozen`` names no module of it.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> parts = started(network, Network("mine", pretrained="a.pt", frozen="0"), 2)
        >>> [parts.depth[p] for p in network.parameters()], len(parts.body), len(parts.fixed)
        ([2, 2, 1, 1, 0, 0], 4, 2)
    """
    whole = built.network if isinstance(built, OwnView) else built
    heads = tuple(f"{name}." for name in classifier_names(whole, num_outputs))
    names = [name for name, _ in whole.named_modules() if name]
    end = _end(names, network)
    before = set(names[:end])
    layer = _layers(whole)
    depth, body, fixed = {}, [], []
    for name, parameter in whole.named_parameters():
        depth[parameter] = max(layer.values()) - layer[name]
        if name.startswith(heads):
            depth[parameter] = 0
            continue
        body.append(parameter)
        if name.rpartition(".")[0] in before:
            fixed.append(parameter)
    norms = [(name, m) for name, m in whole.named_modules() if _keeps_statistics(m)]
    norms = [(name, m) for name, m in norms if not f"{name}.".startswith(heads)]
    fixed_norms = [module for name, module in norms if name in before]
    return Started(depth, body, fixed, [module for _, module in norms], fixed_norms)


def _end(names: list[str], network: Network) -> int:
    """How many modules stay as they are: all up to the end of the one that is named."""
    if network.frozen is None:
        return 0
    if network.frozen not in names:
        raise ValueError(
            f"frozen: {network.name} has no module {network.frozen!r}{nearest(network.frozen, names)}"
        )
    inside = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{network.frozen}.")]
    return inside[-1] + 1


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _layers(network: Any) -> dict[str, int]:
    """Of each parameter its layer from the images on: timm's, else of modules two names deep."""
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        return group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    places = [".".join(name.split(".")[:-1][:2]) for name, _ in network.named_parameters()]
    order = {place: i for i, place in enumerate(dict.fromkeys(places))}
    names = [name for name, _ in network.named_parameters()]
    return {name: order[place] for name, place in zip(names, places, strict=True)}


class StartedNetworks:
    """All pretrained networks of a run, for the training of their live parameters alone: copies share it."""

    def __init__(self, parts: Iterable[Started] = ()):
        self.parts = list(parts)

    def __deepcopy__(self, memo: dict[int, Any]) -> StartedNetworks:
        return self  # an average of the weights is never trained

    def add(self, built: nn.Module, network: Network, num_outputs: int) -> None:
        """Note a network, where it is pretrained."""
        if network.pretrained:
            self.parts.append(started(built, network, num_outputs))

    @property
    def depth(self) -> dict[nn.Parameter, int]:
        """Of each parameter of a pretrained network its layers away from the classifier."""
        return {parameter: d for part in self.parts for parameter, d in part.depth.items()}
