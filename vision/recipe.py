"""A recipe: one YAML file, one run. Typed, with key=value overrides; unknown keys are errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from coe_core.support.plain_values import printable_line
from coe_core.support.recipes import read_recipe
from coe_core.support.typed import check_ranges, from_plain
from vision.data.section import Data
from vision.data.table import is_table_of
from vision.divide.ensemble import Ensemble, check_agreement
from vision.networks.network import Network, check_options
from vision.recipe_sections import CostPromise, HandOver, Objective, Portions, Train
from vision.shipped import find_recipe

__all__ = [
    "CostPromise",
    "HandOver",
    "Objective",
    "Portions",
    "Recipe",
    "Train",
    "load_recipe",
    "recipe_from_dict",
    "unused_settings",
]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Args:
        delegator: the small network that sees every sample; null: no collaboration is trained,
            only ensembles and controls.
        experts: one network for all experts, or a list of one per expert.
        num_experts: k.
        portions: where the experts' portions come from; the selection's first noise by default.
        hand_over: what the experts go on from; nothing by default.
        controls: networks trained alone on the same batches with the same optimiser, by name:
            delegator and expert make the cascade; others are compared as they are.
        ensembles: co-trained networks by name, on the same batches with the same optimiser.
        budget: what it promises to cost; null: nothing.
        seed: of initial weights, order of samples and augmentation.
    """

    delegator: Network | None = None
    experts: list[Network] = field(default_factory=list)
    num_experts: int = 4
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    portions: Portions = field(default_factory=Portions)
    hand_over: HandOver = field(default_factory=HandOver)
    train: Train = field(default_factory=Train)
    controls: dict[str, Network] = field(default_factory=dict)
    ensembles: dict[str, Ensemble] = field(default_factory=dict)
    budget: CostPromise | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, {"seed": "[0, 4294967295]"})
        check_ranges(self.data, {"size": "[1, 8192]", "split_seed": "[0, 4294967295]"}, "data.")
        for name in (*self.controls, *self.ensembles):
            if not _can_name(name):
                raise ValueError(
                    f"no control or ensemble can be called {name[:120]!r}: choose another name"
                )
        for key, network in self.named_networks():
            check_options(network, key)
            _check_channels(network, key, self.data.channels)
        if self.has_team:
            self._check_team()
        elif self.portions != Portions():
            raise ValueError(
                "portions without a delegator and experts, whose they would be: name them"
            )
        elif self.hand_over.anything:
            raise ValueError("hand_over without a delegator, who would hand over: name one")
        elif self.experts:
            raise ValueError("experts without a delegator: name one, or remove the experts")
        elif not self.ensembles:
            raise ValueError("nothing to train: name a delegator and experts, or ensembles")
        networks = [*self.expert_networks, *self.controls.values()]
        networks += [] if self.delegator is None else [self.delegator]
        networks += [ensemble.network for ensemble in self.ensembles.values()]
        if any(network.activation == "pwlu" for network in networks) and (
            self.train.statistics_epochs >= self.train.epochs
        ):
            raise ValueError(
                f"pwlu would stay a ReLU: train.statistics_epochs={self.train.statistics_epochs} of "
                f"train.epochs={self.train.epochs}; lower it"
            )

    def _check_team(self) -> None:
        agreement, weight = self.objective.agreement, self.objective.agreement_weight
        check_agreement(agreement, weight)
        if agreement == "none" and weight > 0:
            raise ValueError(
                f"objective.agreement_weight {weight} without an agreement term: set "
                "objective.agreement to js, mutual or distil, or the weight to 0"
            )
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        check_ranges(self, {"num_experts": "[1, 1024]"})
        if len(self.experts) not in (1, self.num_experts):
            raise ValueError(
                f"experts lists {len(self.experts)} networks for num_experts={self.num_experts}: "
                "give one network for all, or one for each"
            )
        if not 0 < self.objective.settling < 1:
            raise ValueError(
                "objective.settling must be above 0, as families are read off a delegator that has "
                f"learned something, and below 1; got {self.objective.settling}"
            )
        shared = self.objective.shared_start
        if not 0 <= shared < 1:
            raise ValueError(f"objective.shared_start must be in [0, 1), got {shared}")
        if shared and not self.equal_experts:
            raise ValueError(
                "objective.shared_start needs equal experts, as they start as one network; "
                "set it to 0 for experts that differ"
            )

        self._check_portions()
        networks = [network for network in (self.delegator, *self.experts) if network]
        sizes = {network.size for network in networks}
        if self.hand_over.trunk is not None and len({f"{n.mean} {n.std}" for n in networks}) > 1:
            raise ValueError(
                "hand_over.trunk: delegator and experts share their first layers, so they see images of one "
                "normalisation: give all the same mean and std"
            )
        if self.hand_over.trunk is not None and len(sizes) > 1:
            raise ValueError(
                "hand_over.trunk: delegator and experts share their first layers, so they see images of one "
                f"size, not of {', '.join(str(s or self.data.size) for s in sorted(sizes, key=str))}"
            )

    def _check_portions(self) -> None:
        portions, shared = self.portions, self.objective.shared_start
        if portions.follow != "selection" and self.objective.labels == "families":
            raise ValueError(
                f"portions.follow {portions.follow} and objective.labels families both say what the "
                "selection is taught: give one"
            )
        if portions.starts > 1 and not shared * self.train.epochs < self.trial_epochs:
            raise ValueError(
                f"portions.trial: after {self.trial_epochs} of {self.train.epochs} epochs the experts are "
                f"still one network (objective.shared_start {shared}): raise it"
            )
        if portions.starts > 1 and self.trial_epochs >= self.train.epochs:
            raise ValueError(
                f"portions.trial: {self.trial_epochs} of {self.train.epochs} epochs are the whole training: "
                "lower it, or raise train.epochs"
            )

    @property
    def trial_epochs(self) -> int:
        """Epochs after which one of several starts is kept."""
        return max(1, math.ceil(self.portions.trial * self.train.epochs))

    @property
    def has_team(self) -> bool:
        """Whether a delegator and experts are trained."""
        return self.delegator is not None

    @property
    def num_views(self) -> int:
        """Views of each image that a training step needs."""
        return max((ensemble.num_views for ensemble in self.ensembles.values()), default=1)

    @property
    def expert_networks(self) -> list[Network]:
        """One entry per expert; none without a delegator."""
        if not self.has_team:
            return []
        return self.experts * (self.num_experts // len(self.experts))

    def named_networks(self) -> Iterator[tuple[str, Network]]:
        """Dotted key and network, of all that are trained; the teacher is not."""
        if self.delegator is not None:
            yield "delegator", self.delegator
        for index, network in enumerate(self.experts):
            yield f"experts[{index}]" if len(self.experts) > 1 else "experts", network
        yield from ((f"controls.{name}", network) for name, network in self.controls.items())
        yield from (
            (f"ensembles.{name}.network", ensemble.network)
            for name, ensemble in self.ensembles.items()
        )

    @property
    def equal_experts(self) -> bool:
        """Whether all experts are the same network."""
        return all(expert == self.experts[0] for expert in self.experts)

    @property
    def shared_start(self) -> float:
        """The objective's; 0 without a team."""
        return self.objective.shared_start if self.has_team else 0.0

    @property
    def without_control(self) -> list[str]:
        """Ensembles beside which their undivided network is not trained under the same recipe."""
        alone = [*self.controls.values()]
        alone += [ensemble.network for ensemble in self.ensembles.values() if ensemble.s == 1]
        divided = {
            name: ensemble
            for name, ensemble in self.ensembles.items()
            if ensemble.s > 1 and ensemble.rule != "none"
        }
        return [name for name, ensemble in divided.items() if ensemble.network not in alone]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: for YAML files and checkpoints."""
        return dataclasses.asdict(self)


def unused_settings(recipe: Recipe) -> list[str]:
    """Settings that a recipe changes and nothing uses beside its others, a line about each.

    Example:
        >>> recipe = recipe_from_dict(
        ...     {"delegator": "resnet18", "experts": "resnet18", "train": {"decay_epochs": 2.0}}
        ... )
        >>> unused_settings(recipe)
        ['train.decay_epochs has no effect without train.decay']
    """
    objective, train = recipe.objective, recipe.train
    unused: list[tuple[str, Any, str, str]] = []  # section, what it belongs to, its field, why
    if not recipe.has_team:
        why = "without a delegator and experts"
        unused += [("", recipe, "num_experts", why)]
        unused += [
            ("objective.", objective, field.name, why) for field in dataclasses.fields(objective)
        ]
    else:
        families = objective.labels == "families"
        for holds, name, why in (
            (objective.labels not in ("soft", "soft_balanced"), "temperature", "with these labels"),
            (objective.scope != "queue", "queue_size", "without objective.scope=queue"),
            (not families or objective.shared_start > 0, "settling", "but for families alone"),
            (objective.focus == 0, "focus_warmup", "without a focus"),
        ):
            unused += [("objective.", objective, name, why)] * holds
    pwlu = any(network.activation == "pwlu" for _, network in recipe.named_networks())
    data, table = recipe.data, any(is_table_of(n, recipe.data.path) for n in recipe.data.names)
    unused += [("data.", data, name, "without a table") for name in ("columns", "images")] * (
        not table
    )
    unused += [("train.", train, "decay_epochs", "without train.decay")] * (train.decay is None)
    unused += [("train.", train, "teacher_weight", "without a teacher")] * (train.teacher is None)
    unused += [("train.", train, "statistics_epochs", "without pwlu")] * (not pwlu)
    if not any(network.pretrained for _, network in recipe.named_networks()):
        fields = ("head_epochs", "layer_decay", "batch_norm")
        unused += [("train.", train, name, "without a pretrained network") for name in fields]
    for name, ensemble in recipe.ensembles.items():
        if ensemble.rule not in (None, "solve"):
            why = f"with rule {ensemble.rule}"
            unused += [
                (f"ensembles.{name}.", ensemble, field, why) for field in ("match", "tolerance")
            ]
    return [
        f"{section}{name} has no effect {why}"
        for section, holder, name, why in unused
        if getattr(holder, name) != _default(holder, name)
    ]


def _default(holder: Any, name: str) -> Any:
    (field,) = (field for field in dataclasses.fields(holder) if field.name == name)
    return field.default_factory() if callable(field.default_factory) else field.default


def _check_channels(network: Network, key: str, channels: int) -> None:
    for name, values in (("mean", network.mean), ("std", network.std)):
        if values is not None and len(values) != channels:
            raise ValueError(f"{key}.{name} has {len(values)} values for data.channels={channels}")


def _can_name(name: str) -> bool:
    """Names of parameters, columns and files begin with a control's or an ensemble's."""
    return (
        0 < len(name) <= 100
        and name.isprintable()
        and "." not in name
        and not hasattr(nn.ModuleDict, name)
    )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe from a YAML file or shipped name, with ``key=value`` overrides.

    Args:
        name: path of a file, or name of a shipped recipe.
        overrides: such as ``train.epochs=3`` or ``data.path=~/photos``: taken literally where the key
            holds a text, else YAML.

    Raises:
        ValueError: unknown recipe or key (names the nearest), a value of the wrong type, or a network that
            asks for more pixels than the images have.
    """
    path = find_recipe(name)
    recipe = recipe_from_dict(read_recipe(Recipe, path, overrides), str(path))
    for key, network in recipe.named_networks():
        if network.size is not None and network.size > min(recipe.data.sides):
            raise ValueError(
                f"{path}: {key}.size={network.size} is above data.size={recipe.data.size}, at which the "
                "images are decoded: raise data.size, or lower it"
            )
    return recipe


def recipe_from_dict(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Typed recipe from plain values; ``source`` names them in messages.

    Raises:
        ValueError: unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source} is not a recipe: expected keys and values at its top")
    missing = [key for key in ("delegator", "experts") if key not in values]
    if len(missing) == 1 or (missing and not values.get("ensembles")):
        raise ValueError(
            f"{source}: missing {', '.join(missing)}; a recipe names its networks, a delegator and "
            "experts or ensembles"
        )
    try:
        return from_plain(Recipe, _written_out(values))
    except ValueError as error:
        raise ValueError(f"{source}: {printable_line(error)}") from error


def _written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Short forms: a network by its name alone, one network for all experts, a teacher by its name."""
    values = dict(values)
    if "delegator" in values:
        values["delegator"] = _network(values["delegator"])
    if "experts" in values:
        experts = values["experts"]
        values["experts"] = [
            _network(e) for e in (experts if isinstance(experts, list) else [experts])
        ]
    if isinstance(values.get("controls"), dict):
        values["controls"] = {n: _network(network) for n, network in values["controls"].items()}
    if isinstance(values.get("ensembles"), dict):
        values["ensembles"] = {
            name: {**entry, "network": _network(entry["network"])}
            if isinstance(entry, dict) and "network" in entry
            else entry
            for name, entry in values["ensembles"].items()
        }
    train = values.get("train")
    if isinstance(train, dict) and isinstance(train.get("teacher"), str):
        values["train"] = {**train, "teacher": {"name": train["teacher"], "pretrained": True}}
    return values


def _network(network: Any) -> Any:
    """A network that is only named, as in ``delegator: resnet18``."""
    return {"name": network} if isinstance(network, str) else network
