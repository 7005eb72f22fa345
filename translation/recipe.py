"""A recipe of translation: one YAML file, one run. Typed, with key=value overrides; loads no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coe_core.support.aims import parse_aim
from coe_core.support.plain_values import printable_line
from coe_core.support.recipes import read_recipe
from coe_core.support.typed import check_ranges, from_plain
from translation.recipe_sections import (
    Control,
    Ensemble,
    Generation,
    HandOver,
    Objective,
    Training,
    Transformer,
)
from translation.recipe_texts import Languages, Texts, Vocabulary
from translation.shipped import find_recipe

AIMS = ("best", "bleu_drop", "chrf_drop", "macs", "latency")
TEAM = "team"
_TAKEN = re.compile(r"(team|delegator|expert-\d+|ensemble|CoE|cascade|random|oracle)")
_REQUIRED = ("languages", "vocabulary", "delegator", "experts", "training")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run of translation.

    Args:
        languages: what is translated into what.
        vocabulary: the joint one.
        delegator: the small network that translates every sentence first, and selects.
        experts: one network for all experts, or a list of one per expert, which may differ in their layers.
        training: of all networks.
        num_experts: k.
        texts: where the pairs come from.
        controls: plain networks by name, trained alone on the same batches; expert-alone and
            delegator-alone make the cascade, others are compared as they are.
        ensembles: of plain networks, by name.
        objective: of the team.
        hand_over: what the experts go on from; nothing by default.
        generation: of all systems.
        aims: thresholds that are fitted on the validation text: best, bleu_drop=0.5, macs=60% ...
        seed: of initial weights and of the order of sentences.
    """

    languages: Languages
    vocabulary: Vocabulary
    delegator: Transformer
    experts: list[Transformer]
    training: Training
    num_experts: int = 4
    texts: Texts = field(default_factory=Texts)
    controls: dict[str, Control] = field(default_factory=dict)
    ensembles: dict[str, Ensemble] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    hand_over: HandOver = field(default_factory=HandOver)
    generation: Generation = field(default_factory=Generation)
    aims: list[str] = field(default_factory=lambda: ["best"])
    seed: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, {"seed": "[0, 4294967295]", "num_experts": "[1, 1024]"})
        for name in (*self.controls, *self.ensembles):
            if not re.fullmatch(r"[\w+-]{1,60}", name) or _TAKEN.fullmatch(name):
                raise ValueError(
                    f"no control or ensemble can be called {name[:60]!r}: letters, digits and +-_ only, and "
                    "no name of the team's own networks"
                )
        if both := set(self.controls) & set(self.ensembles):
            raise ValueError(f"{min(both)} is a control and an ensemble: give another name to one")
        self._check_experts()
        for name, control in self.controls.items():
            if control.one_per is not None and not self.several_directions:
                raise ValueError(
                    f"controls.{name}.one_per: there is one direction only; leave it out"
                )
        if self.objective.groups is not None and not self.several_directions:
            raise ValueError("objective.groups: there is one direction only; leave it out")
        if not self.aims:
            raise ValueError("aims: name at least one, such as best or macs=60%")
        for aim in self.aims:
            parse_aim(aim, AIMS)
        for aim in self.generation.timed:
            if aim not in self.aims:
                raise ValueError(f"generation.timed: {aim!r} is none of the aims {self.aims}")
        corpus = self.texts.corpus
        if corpus != "files" and (self.languages.source, self.languages.target) not in (
            (["de"], ["en"]),
            (["en"], ["de"]),
        ):
            raise ValueError(f"texts.corpus={corpus} has the languages de and en only")
        if corpus != "files" and len(self.texts.tests) > 1:
            raise ValueError(f"texts.corpus={corpus} has one test, not {self.texts.tests}")

    def _check_experts(self) -> None:
        if len(self.experts) not in (1, self.num_experts):
            raise ValueError(
                f"experts lists {len(self.experts)} networks for num_experts={self.num_experts}: "
                "give one network for all, or one for each"
            )
        first = self.experts[0]
        for place, expert in enumerate(self.experts):
            layers = {"encoder_layers": 1, "decoder_layers": 1}
            if dataclasses.replace(expert, **layers) != dataclasses.replace(first, **layers):
                raise ValueError(
                    f"experts[{place}]: experts may differ in encoder_layers and decoder_layers only"
                )
        shared = self.hand_over.encoder_layers
        if shared and first.embed_dim != self.delegator.embed_dim:
            raise ValueError(
                f"hand_over.encoder_layers: networks that share layers have embeddings of one dimension, but "
                f"the delegator's have {self.delegator.embed_dim}, the experts' {first.embed_dim}"
            )
        least = min(network.encoder_layers for network in (self.delegator, *self.experts))
        if shared > least:
            raise ValueError(
                f"hand_over.encoder_layers: {shared} layers are shared, but one network has {least}; the "
                "shared ones are the first of each network's"
            )
        if self.hand_over.decoder:
            depths = [network.decoder_layers for network in self.expert_networks]
            if len(set(depths)) > 1:
                raise ValueError(
                    "hand_over.decoder: experts that share a decoder have as many layers in it, but "
                    f"theirs are of {', '.join(map(str, depths))} layers"
                )
            if shared == max(network.encoder_layers for network in self.experts):
                raise ValueError(
                    f"hand_over.decoder: with {shared} of {shared} encoder layers shared, too, all experts "
                    "would be one network"
                )
        if self.objective.shared_start and not self.equal_experts:
            raise ValueError(
                "objective.shared_start needs equal experts, as they start as one network; "
                "set it to 0 for experts that differ"
            )

    @property
    def several_directions(self) -> bool:
        """Whether the corpus is joined of several."""
        return len(self.languages.directions) > 1

    @property
    def expert_networks(self) -> list[Transformer]:
        """One entry per expert."""
        return self.experts * (self.num_experts // len(self.experts))

    @property
    def equal_experts(self) -> bool:
        """Whether all experts are the same network."""
        return all(expert == self.experts[0] for expert in self.experts)

    def trained(self) -> Iterator[tuple[str, Transformer]]:
        """Name and network of every training beside the team's, as their folders are called."""
        for name, control in self.controls.items():
            if control.one_per is None:
                yield name, control
            else:
                for direction in self.languages.directions:
                    yield f"{name}.{direction}", control
        for name, ensemble in self.ensembles.items():
            for member in range(ensemble.size):
                yield f"{name}.{member}", ensemble.network

    def to_dict(self) -> dict[str, Any]:
        """Plain values: for YAML files."""
        return dataclasses.asdict(self)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe from a YAML file or shipped name, with ``key=value`` overrides.

    Args:
        name: path of a file, or name of a shipped recipe.
        overrides: such as ``training.updates=3`` or ``texts.path=~/texts``: taken literally where the key
            holds a text, else YAML.

    Raises:
        ValueError: unknown recipe or key (names the nearest), or a value of the wrong type.
    """
    path = find_recipe(name)
    return recipe_from_dict(read_recipe(Recipe, path, overrides), str(path))


def recipe_from_dict(values: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Typed recipe from plain values; ``source`` names them in messages.

    Raises:
        ValueError: unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source} is not a recipe: expected keys and values at its top")
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ValueError(f"{source}: missing {', '.join(missing)}")
    try:
        return from_plain(Recipe, _written_out(values))
    except ValueError as error:
        raise ValueError(f"{source}: {printable_line(error)}") from error


def _written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Short forms: one language, one test, one aim, one network for all experts without a list."""
    values = dict(values)
    for section, keys in (
        ("languages", ("source", "target")),
        ("texts", ("tests",)),
        ("generation", ("timed",)),
    ):
        given = values.get(section)
        if isinstance(given, dict):
            listed = {key: [given[key]] for key in keys if isinstance(given.get(key), str)}
            values[section] = {**given, **listed}
    if isinstance(values["experts"], dict):
        values["experts"] = [values["experts"]]
    if isinstance(values.get("aims"), str):
        values["aims"] = [values["aims"]]
    return values
