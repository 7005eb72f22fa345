"""All networks of a recipe with what is needed to use them, and what each costs: no trainer in sight."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from coe_core import count_macs
from coe_core.support.progress import progress
from coe_core.support.typed import from_plain
from vision.data.facts import classes_before_reading
from vision.data.preprocess import Preprocess
from vision.data.sides import sides_of
from vision.divide.division import Division
from vision.divide.ensemble import EnsembleNetworks
from vision.errors import RunError
from vision.networks.network import Network, Normalisation, OwnView, build_network, with_own_view
from vision.networks.outputs import check_outputs
from vision.networks.size import on_meta, with_zeros
from vision.networks.started import StartedNetworks
from vision.networks.team import Team, Trunked
from vision.recipe import Recipe, recipe_from_dict

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights
    from vision.networks.trunk import Parts

MAX_CLASSES = 1_000_000
_MANY = 64  # experts: with more it is told how far their building is


class Networks(nn.Module):
    """A team, the controls and ensembles trained beside it, the classes they know and how images enter them.

    All arguments are plain values: they are stored in the checkpoint, which therefore loads with
    ``weights_only=True`` and needs no other file.

    Args:
        recipe: see `Recipe.to_dict`.
        classes: names, in the order of the labels.
        preprocess: see `Preprocess.to_dict`.
        divisions: name of an ensemble -> see `Division.to_dict`; those that are missing are found anew.
        weights: loads what pretrained networks start from; None: nothing is loaded from anywhere, whatever
            the recipe says.

    Raises:
        ValueError: values that are not plain, not of a recipe, or refused; a network that cannot be built
            or divided, or weights that do not fit it.
    """

    def __init__(
        self,
        recipe: dict[str, Any],
        classes: list[str],
        preprocess: dict[str, Any],
        divisions: dict[str, Any] | None = None,
        weights: Weights | None = None,
    ):
        super().__init__()
        self.recipe: Recipe = recipe_from_dict(recipe)
        self.classes = _class_names(classes)
        try:
            self.preprocess = from_plain(Preprocess, preprocess)
        except ValueError as error:
            raise ValueError(f"preprocess: {error}") from error
        channels = self.recipe.data.channels
        num_classes = len(classes)
        self.started = StartedNetworks()
        # None: the recipe has no delegator, only ensembles and controls.
        self.team: Team | None = None
        # With a hand-over the cascade is a team of one expert, trained with the same.
        self.cascade: Team | None = None
        if self.recipe.has_team:
            experts, prepare = self.recipe.expert_networks, self.preprocess
            team = self.recipe, experts, num_classes, prepare, weights, self.started
            self.team = build_team(*team)
            if self.recipe.hand_over.anything:
                alone = self.recipe, experts[:1], num_classes, prepare, weights, self.started
                self.cascade = build_team(*alone)
        images = Normalisation(self.preprocess.mean, self.preprocess.std)
        self.controls = nn.ModuleDict(
            {
                name: build_network(network, num_classes, channels, images=images, weights=weights)
                for name, network in self.recipe.controls.items()
            }
        )
        for name, network in self.recipe.controls.items():
            self.started.add(self.controls[name], network, num_classes)
        self.ensembles = cast(MutableMapping[str, EnsembleNetworks], nn.ModuleDict())
        for name in self.recipe.ensembles:
            try:
                division = self._division(name, (divisions or {}).get(name))
            except ValueError as error:
                raise ValueError(f"ensembles.{name}: {error}") from error
            self.ensembles[name] = EnsembleNetworks(division, num_classes, self.preprocess, weights)
            for member in self.ensembles[name].members:
                self.started.add(member, division.divided, num_classes)
        self.to(memory_format=torch.channels_last)

    def _division(self, name: str, stored: Any) -> Division:
        ensemble = self.recipe.ensembles[name]
        if stored is None:
            weight_decay = self.recipe.train.weight_decay
            return ensemble.divide(len(self.classes), self.preprocess, weight_decay)
        division = Division.from_dict(stored)
        if division.s != ensemble.s:
            raise ValueError(f"the stored division is into {division.s}, the recipe's {ensemble.s}")
        return division

    def divisions(self) -> dict[str, Any]:
        """What the ensembles' networks became, as plain values, to be stored beside the weights."""
        return {name: built.division.to_dict() for name, built in self.ensembles.items()}

    @property
    def required_team(self) -> Team:
        """The team, where there must be one.

        Raises:
            RunError: the recipe trains ensembles only.
        """
        if self.team is None:
            raise RunError("there is no team: the recipe trains ensembles only")
        return self.team

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def num_parts(self) -> int:
        """How many parts `diverged` can name: the team, each control, each ensemble."""
        return (self.team is not None) + len(self.controls) + len(self.ensembles)

    def diverged(self) -> list[str]:
        """Which parts hold values that are not finite: they were trained to nothing, and predict nothing."""
        parts: dict[str, nn.Module] = {} if self.team is None else {"the team": self.team}
        parts |= {f"control {name}": control for name, control in self.controls.items()}
        parts |= {f"ensemble {name}": ensemble for name, ensemble in self.ensembles.items()}
        return [name for name, part in parts.items() if not _is_finite(part)]

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images -> normalised ones in the memory format that convolutions are fastest with."""
        return self.preprocess.normalise(images).contiguous(memory_format=torch.channels_last)


def _class_names(classes: Any) -> list[str]:
    if not isinstance(classes, list | tuple) or not all(type(name) is str for name in classes):
        raise ValueError("classes are not a list of names")
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise ValueError(f"there are 2 to {MAX_CLASSES} classes, got {len(classes)}")
    return list(classes)


def _is_finite(network: nn.Module) -> bool:
    with torch.no_grad():
        floats: list[Tensor] = [p for p in network.parameters() if p.is_floating_point()]
        floats += [b for b in network.buffers() if b.is_floating_point() and not b.isinf().any()]
        # A buffer may hold an infinity by design, such as a mask.
        return all(bool(tensor.isfinite().all()) for tensor in floats)


def build_team(
    recipe: Recipe,
    experts: list[Network],
    num_classes: int,
    preprocess: Preprocess,
    weights: Weights | None = None,
    started: StartedNetworks | None = None,
) -> Team:
    """Delegator and experts of a recipe, parted where it says so.

    Args:
        recipe: whose delegator and hand-over it is.
        experts: one network for each.
        num_classes: c.
        preprocess: of the images.
        weights: see `Networks`.
        started: notes the pretrained networks.

    Raises:
        ValueError: a place where a network cannot be cut (names those where it can), or experts or a
            delegator that do not fit the trunk.
    """
    hand_over, channels = recipe.hand_over, preprocess.channels
    images = Normalisation(preprocess.mean, preprocess.std)

    def build(network: Network, outputs: int) -> nn.Module:
        if hand_over.trunk is not None:  # the trunk makes the view, for all that share it
            network = replace(network, size=None, mean=None, std=None)
        built = build_network(network, outputs, channels, images=images, weights=weights)
        if started is not None:
            started.add(built, network, outputs)
        return built

    if recipe.delegator is None:
        raise ValueError("a team needs a delegator: name one")
    delegator = build(recipe.delegator, num_classes + len(experts))
    waiting = (
        progress(experts, len(experts), "building", "experts") if len(experts) > _MANY else experts
    )
    built = [build(network, num_classes) for network in waiting]
    if hand_over.trunk is not None:
        from vision.networks.trunk import branch_behind, fitting_rests

        parts = [_cut(f"experts[{j}]", net, hand_over.trunk) for j, net in enumerate(built)]
        side = experts[0].size
        shape = preprocess.shape if side is None else (channels, side, side)
        built = fitting_rests(parts, shape)
        delegator_parts = _cut("delegator", delegator, hand_over.branch or hand_over.trunk)
        branch = branch_behind(parts[0].trunk, delegator_parts, shape)
        delegator = Trunked(with_own_view(parts[0].trunk, experts[0], images), branch)
    return Team(
        delegator,
        built,
        num_classes,
        rough_logits=hand_over.rough_logits,
        trunk_gradient=hand_over.trunk_gradient,
    )


def _cut(key: str, network: nn.Module, place: str) -> Parts:
    from vision.networks.trunk import cut_network

    try:
        return cut_network(network, place)
    except ValueError as error:
        raise ValueError(f"hand_over.trunk, {key}: {error}") from error


@dataclass(frozen=True)
class RunMacs:
    """Multiply-adds per image of every network of a run; without a team 0 and none."""

    delegator: int
    experts: list[int]
    controls: dict[str, int]
    ensembles: dict[str, int] = field(default_factory=dict)  # of one of the s networks
    cascade: tuple[int, int] | None = None  # of both networks of one that has a hand-over

    @property
    def expert(self) -> float:
        """Mean over the experts."""
        return sum(self.experts) / len(self.experts)


class _Part(NamedTuple):
    label: str  # with the network's name, for messages
    network: nn.Module
    images: Tensor  # one, or the features that stand for it
    outputs: int
    named: Network  # in the recipe


def _parts(networks: Networks) -> Iterator[_Part]:
    """Every network of a run: delegator, experts, controls, of ensembles the first, both of the cascade."""
    prepare, recipe = networks.preprocess, networks.recipe
    image = torch.zeros(1, *prepare.shape, device=networks.device)
    team, cascade, num_classes = networks.team, networks.cascade, len(networks.classes)
    seen = image  # by the experts
    if team is not None and recipe.delegator is not None:
        shape = team.feature_shape(prepare.shape)
        seen = torch.zeros(1, *shape, device=image.device)
        label = f"delegator ({recipe.delegator.name})"
        outputs = num_classes + team.num_experts
        yield _Part(label, team.delegator, image, outputs, recipe.delegator)
        for j, (named, expert) in enumerate(zip(recipe.expert_networks, team.experts, strict=True)):
            yield _Part(f"expert {j} ({named.name})", expert, seen, num_classes, named)
    for name, control in networks.controls.items():
        named = recipe.controls[name]
        yield _Part(f"control {name} ({named.name})", control, image, num_classes, named)
    for name, built in networks.ensembles.items():
        named = recipe.ensembles[name].network
        label = f"ensemble {name} ({named.name})"
        yield _Part(label, built.members[0], image, num_classes, named)
    if cascade is not None and recipe.delegator is not None:
        named, outputs = recipe.delegator, num_classes + cascade.num_experts
        yield _Part(f"cascade ({named.name})", cascade.delegator, image, outputs, named)
        named = recipe.expert_networks[0]
        yield _Part(f"cascade ({named.name})", cascade.experts[0], seen, num_classes, named)


def run_macs(networks: Networks) -> RunMacs:
    """Count every network of a run on one image, equal ones once.

    Raises:
        ValueError: a network that cannot take images of this size.
        UncountedOperatorError: an operator whose multiply-adds are not known.
    """
    prepare = networks.preprocess
    counts = []
    counted: dict[str, int] = {}
    for part in _parts(networks):
        kind = f"{part.named} {part.network} {part.images.shape}"
        try:
            if kind not in counted:
                counted[kind] = count_macs(part.network, part.images)
            counts.append(counted[kind])
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            own = part.network.size if isinstance(part.network, OwnView) else None
            sides, key = (
                (prepare.sides, "data.size") if own is None else (sides_of(own), "its size")
            )
            raise ValueError(
                f"{part.label} cannot take images of {prepare.channels} x {sides}: {reason}; "
                f"change {key}, or the network's options"
            ) from error
    next_count = iter(counts)
    team = networks.team
    return RunMacs(
        next(next_count) if team else 0,
        [next(next_count) for _ in (team.experts if team else ())],
        {name: next(next_count) for name in networks.controls},
        {name: next(next_count) for name in networks.ensembles},
        None if networks.cascade is None else (next(next_count), next(next_count)),
    )


def check_trainable(networks: Networks, batch_size: int) -> None:
    """Try every network of a run on a batch of blank images, equal ones once.

    Args:
        networks: before their training.
        batch_size: of a process; more than two images tell no more than two.

    Raises:
        ValueError: see `check_outputs`.
    """
    tried: set[str] = set()
    for part in _parts(networks):
        kind = f"{part.network} {part.images.shape} {part.outputs}"
        if kind not in tried:
            tried.add(kind)
            images = part.images.new_zeros(min(batch_size, 2), *part.images.shape[1:])
            check_outputs(part.network, images, part.outputs, part.label)


def untrained(recipe: Recipe) -> Networks:
    """The networks of a recipe, to be counted and not to be used: small ones of zeros, large ones of nothing.

    On the meta device numbers are not there at all, unless a constructor computes with them.
    """
    data = recipe.data
    classes = classes_before_reading(data.name)
    arguments = recipe.to_dict(), classes, data.preprocess().to_dict()
    try:
        with on_meta():
            networks = Networks(*arguments)
        with_zeros(networks, max(data.sides))  # in place
        return networks
    except (RuntimeError, ValueError):  # what is really wrong fails again
        return Networks(*arguments)
