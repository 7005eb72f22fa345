"""A recipe: one YAML file, one run. Typed, with key=value overrides; unknown keys are errors."""

from __future__ import annotations

import copy
import dataclasses
import re
import types as types_module
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jsonargparse
import yaml
from torch import nn

from coe_core.labels import LabelKind
from coe_core.objective import Scores
from coe_core.weights import Scope
from vision.data.section import Data
from vision.divide.ensemble import Ensemble, check_agreement
from vision.errors import nearest
from vision.networks.network import Network
from vision.networks.teacher import check_teacher
from vision.shipped import find_recipe


@dataclass(frozen=True)
class Objective:
    """How delegator and experts are trained together; see docs/method.md, section 3.

    Args:
        shared_start: part of the training, in [0, 1), in which all experts are one network; then
            each is a copy that specialises (OURS). Needs equal expert networks; 0 is off. Off by default:
            where experts are small for the task it costs accuracy, elsewhere it is level; what it
            saves is training time (docs/results.md).
        focus: r in [0, 1]: how much each expert's loss is weighted towards its portion; 0 trains
            an ordinary ensemble.
        focus_warmup: part of the training after the shared start over which the focus rises from 0.
        scope: over which samples portions are balanced: batch, queue or dataset.
        queue_size: samples kept for scope queue.
        scores: by what the data are partitioned: selection, evidence, their sum, or random (a control).
        labels: kind of selection label: families, of classes that the delegator confuses (OURS); or by
            the experts' evidence: balanced, soft_balanced, hard or soft.
        settling: for labels families: part of the training after which they are fixed, where there is
            no shared start (else at its end); until then the focus is 0.
        temperature: of the soft label kinds, in nats.
        variance_weighting: weight the selection loss by how much the choice matters (VCM).
        selection_weight: beta, weight of the selection loss.
        agreement: term between the experts: none, distil, js or mutual.
        agreement_weight: its weight.
        held_out: part of the training images, in [0, 1), on which no expert learns and which alone teach
            the selection (OURS).
        shares: relative size of each expert's portion; null means equal.
    """

    shared_start: float = 0.0
    focus: float = 0.6
    focus_warmup: float = 0.3
    scope: Scope = "batch"
    queue_size: int = 0
    scores: Scores = "selection"
    labels: Literal["families"] | LabelKind = "balanced"
    settling: float = 0.1
    temperature: float = 1.0
    variance_weighting: bool = True
    selection_weight: float = 0.5
    agreement: Literal["none", "distil", "js", "mutual"] = "none"
    agreement_weight: float = 0.0
    held_out: float = 0.0
    shares: list[float] | None = None


@dataclass(frozen=True)
class Train:
    """Optimisation: the same for the team and its controls.

    Args:
        epochs: over the training set.
        batch_size: of the whole step, over all processes.
        optimizer: any name of timm.optim.create_optimizer_v2, such as sgd, adamw, lamb, rmsprop.
        lr: peak learning rate.
        momentum: for optimizers that have one.
        weight_decay: on weights, not on biases and normalisation.
        warmup: part of the steps over which the learning rate rises; a cosine afterwards.
        start_lr: from which it rises; null: lr / 25.
        final_lr: to which the cosine falls; null: start_lr / 10,000.
        decay: instead of the cosine, multiply the learning rate by this every decay_epochs.
        decay_epochs: see decay.
        label_smoothing: in [0, 1).
        ema_decay: keep an exponential moving average of the weights and use it; 0 is off.
        statistics_epochs: of PWLU activations: ReLU until then, to see what reaches them; then learned.
        teacher: a timm network from whose probabilities all networks learn too, see
            `vision.networks.teacher`: its name alone stands for its published weights.
        teacher_weight: part of the targets, in (0, 1], that the teacher's probabilities make up.
        compile: torch.compile each network; needs a C++ compiler on a CPU, and a minute at the start.
        precision: auto takes bf16 where the processor multiplies it fast (AMX, AVX512-BF16, a GPU),
            else fp32; or any precision Lightning knows, such as 32-true, bf16-mixed, 16-mixed.
    """

    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    start_lr: float | None = None
    final_lr: float | None = None
    decay: float | None = None
    decay_epochs: float = 1.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    statistics_epochs: int = 5
    teacher: Network | None = None
    teacher_weight: float = 0.5
    compile: bool = False
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                "train.epochs and train.batch_size must be at least 1, got "
                f"{self.epochs} and {self.batch_size}"
            )
        if self.statistics_epochs < 0:
            raise ValueError(
                f"train.statistics_epochs must be at least 0, got {self.statistics_epochs}"
            )
        for name in ("lr", "start_lr", "final_lr", "decay", "decay_epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"train.{name} must be above 0, got {value}")
        if self.decay is not None and self.final_lr is not None:
            raise ValueError("train.decay replaces the cosine that train.final_lr is for: give one")
        check_teacher(self.teacher, self.teacher_weight)


@dataclass(frozen=True)
class Budget:
    """What a recipe promises to cost per image: `coe-vision train RECIPE --dry-run` counts it.

    Args:
        mmacs: million multiply-adds, the mean of the collaboration, or of the first ensemble where
            there is none.
        exit_rate: part of the images, in [0, 1], that end early.
        tolerance: relative.
    """

    mmacs: float
    exit_rate: float = 0.0
    tolerance: float = 0.03

    def __post_init__(self) -> None:
        if not (self.mmacs > 0 and 0 <= self.exit_rate <= 1 and self.tolerance >= 0):
            raise ValueError(
                f"a budget has mmacs above 0, exit_rate in [0, 1], tolerance at least 0; got {self}"
            )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Args:
        delegator: the small network that sees every sample; null: no collaboration is trained,
            only ensembles and controls.
        experts: one network for all experts, or a list of one per expert.
        num_experts: k.
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
    train: Train = field(default_factory=Train)
    controls: dict[str, Network] = field(default_factory=dict)
    ensembles: dict[str, Ensemble] = field(default_factory=dict)
    budget: Budget | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*self.controls, *self.ensembles):
            if "." in name or not name or hasattr(nn.ModuleDict, name):
                raise ValueError(
                    f"no control or ensemble can be called {name!r}: choose another name"
                )
        if self.has_team:
            self._check_team()
        elif self.experts:
            raise ValueError("experts without a delegator: name one, or remove the experts")
        elif not self.ensembles:
            raise ValueError("nothing to train: name a delegator and experts, or ensembles")
        networks = [*self.expert_networks, *self.controls.values()]
        networks += [self.delegator] if self.has_team else []
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
        alone += [e.network for e in self.ensembles.values() if e.s == 1]
        divided = {name: e for name, e in self.ensembles.items() if e.s > 1 and e.rule != "none"}
        return [name for name, e in divided.items() if e.network not in alone]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: for YAML files and checkpoints."""
        return dataclasses.asdict(self)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe from a YAML file or shipped name, with ``key=value`` overrides.

    Args:
        name: path of a file, or name of a shipped recipe.
        overrides: such as ``train.epochs=3`` or ``data.path=~/photos``; values are YAML.

    Raises:
        ValueError: unknown recipe or key (names the nearest), or a value of the wrong type.
    """
    path = find_recipe(name)
    values = _parse(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: expected keys and values at its top")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value")
        _set(values, key.strip().split("."), _parse(text, f"override {override!r}"))
    return recipe_from_dict(values, str(path))


def recipe_from_dict(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """Typed recipe from plain values; ``source`` names them in messages.

    Raises:
        ValueError: unknown or missing key, or a value of the wrong type.
    """
    values = copy.deepcopy(values)  # the parser works in place
    if not isinstance(values.get("experts", []), list):
        values["experts"] = [values["experts"]]
    if values.get("delegator") is not None:
        values["delegator"] = _written_out(values["delegator"])
    if "experts" in values:
        values["experts"] = [_written_out(network) for network in values["experts"]]
    if isinstance(values.get("controls"), dict):
        values["controls"] = {n: _written_out(net) for n, net in values["controls"].items()}
    for ensemble in _dicts(values.get("ensembles")):
        if "network" in ensemble:
            ensemble["network"] = _written_out(ensemble["network"])
    if isinstance(values.get("train"), dict) and isinstance(values["train"].get("teacher"), str):
        values["train"]["teacher"] = {"name": values["train"]["teacher"], "pretrained": True}
    for key, known in _unknown_keys(values, Recipe):
        raise ValueError(f"{source}: unknown key {key!r}{nearest(key, known)}")
    missing = [key for key in ("delegator", "experts") if key not in values]
    if len(missing) == 1 or (missing and not values.get("ensembles")):
        raise ValueError(
            f"{source}: missing {', '.join(missing)}; a recipe names its networks, a delegator and "
            "experts or ensembles"
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    try:
        parsed = parser.instantiate_classes(parser.parse_object({"recipe": values}))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"{source}: {_plain(error)}") from error
    return parsed.recipe


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


def _plain(error: Exception) -> str:
    """The parser's message in one line, with our names for keys and types."""
    text = " ".join(str(error).split()).replace("typing.Literal", "one of ")
    text = re.sub(r'Parser key "recipe\.([^"]*)":', r"\1:", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("recipe.", "")
    text = re.sub("Expected an? ", "expected ", text).replace(". Got value:", ", got")
    text = re.sub(
        r": Does not validate .*?(?=Problem with)(.*?) - expected NoneType.*", r": \1", text
    )
    text = re.sub(r"(?:- )?Problem with given class_path '[^']*': ", "", text)
    return re.sub(r': Parser key "([^"]*)"', r".\1", text)


def _dicts(nested: Any) -> list[dict]:
    """The values of a dict that are dicts; what else stands there is refused later."""
    values = nested.values() if isinstance(nested, dict) else ()
    return [value for value in values if isinstance(value, dict)]


def _written_out(network: Any) -> Any:
    """A network that is only named, as in ``delegator: resnet18``."""
    return {"name": network} if isinstance(network, str) else network


def _set(values: dict, keys: list[str], value: Any) -> None:
    """Set a nested key; "experts.width" style keys reach into the one entry of a list."""
    for key in keys[:-1]:
        nested = values.setdefault(key, {})
        if isinstance(nested, list) and len(nested) == 1:
            nested = nested[0]
        if not isinstance(nested, dict):
            raise ValueError(f"override {'.'.join(keys)}: {key!r} holds {nested!r}, not keys")
        values = nested
    values[keys[-1]] = value


def _unknown_keys(values: dict, kind: type, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Dotted keys that the dataclass does not have, each with the keys it has instead.

    Raises:
        ValueError: a plain value where keys are expected.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} holds {values!r}; expected keys and values")
    types = typing.get_type_hints(kind)
    known = [prefix + name for name in types]
    for name, value in values.items():
        if name not in types:
            yield prefix + name, known
            continue
        nested = types[name]
        if (
            isinstance(nested, types_module.UnionType) and value is not None
        ):  # such as Network | None
            nested = nested.__args__[0]
        if dataclasses.is_dataclass(nested):
            yield from _unknown_keys(value, nested, f"{prefix}{name}.")
        elif name == "experts":
            for network in value:
                yield from _unknown_keys(network, Network, f"{prefix}{name}.")
        elif name in ("controls", "ensembles") and isinstance(value, dict):
            entry = Network if name == "controls" else Ensemble
            for part, content in value.items():
                yield from _unknown_keys(content, entry, f"{prefix}{name}.{part}.")
