"""Systems that can be put together from one set of translations: CoE, its controls, single networks."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core import StageCost, StageQuality, TwoStage, select_expert
from coe_core.stored_points import CASCADE, COE
from translation.evaluation.metrics import METRICS, CorpusQuality, Scoring
from translation.evaluation.translations import (
    DELEGATOR,
    DELEGATOR_ALONE,
    ENSEMBLE,
    EXPERT_ALONE,
    OfNetwork,
    Selection,
    Translations,
)

RANDOM, ORACLE = "random", "oracle"
COSTS = ("macs", "seconds")
NO_EXITS = float("inf")


class Mixture(NamedTuple):
    """Translations of a whole set, and what they cost on average."""

    text: list[str]
    macs: float
    seconds: float
    exit_rate: float | None = None  # None: the system has no early termination


@dataclass(frozen=True)
class RoutedSystem:
    """A first network for all sentences, and for each a second one that runs unless the first is confident.

    Where no sentence can exit (threshold inf) the first does not translate: what is left of it is the
    selection, and nothing of a cascade's.
    """

    first: OfNetwork
    second: OfNetwork  # sentence by sentence, that of the expert it is sent to
    selected_expert: Int[Tensor, " n"]  # which expert that is
    stages: TwoStage  # qualities by metric, costs "macs" and "seconds" per sentence

    def at(self, threshold: float) -> Mixture:
        """What the system translates with that threshold, and what it spends."""
        reached = self.stages.at(threshold)
        texts = zip(reached.exits.tolist(), self.first.text, self.second.text, strict=True)
        text = [rough if exited else final for exited, rough, final in texts]
        return Mixture(text, reached.cost["macs"], reached.cost["seconds"], reached.exit_rate)


class _CorpusQualities(Mapping[str, StageQuality]):
    """Qualities by metric; the counts of each are taken when they are asked for, and kept."""

    def __init__(self, first: OfNetwork, second: OfNetwork, reference: list[str], scoring: Scoring):
        self.texts, self.reference, self.scoring = (first.text, second.text), reference, scoring
        self.known: dict[str, StageQuality] = {}

    def __getitem__(self, metric: str) -> StageQuality:
        if metric not in self.known:
            quality = CorpusQuality(metric, self.reference, self.scoring)
            rough, final = (quality.counts(text) for text in self.texts)
            self.known[metric] = StageQuality(rough, final, quality.scores)
        return self.known[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(METRICS)

    def __len__(self) -> int:
        return len(METRICS)


def _routed(
    translations: Translations,
    first: OfNetwork,
    second: OfNetwork,
    selected_expert: Tensor,
    selection: Selection | None,
    scoring: Scoring,
) -> RoutedSystem:
    """``selection``: what is left of the first network where nothing can exit; None: nothing.

    Seconds are those of batches as they were decoded; with batches of more than one sentence the
    routed groups are smaller, so they are an estimate.
    """
    costs = {
        cost: StageCost(
            float(_column(first, cost).mean()),
            _column(second, cost) - _spared(selection, cost),
            0.0 if selection is None else float(_column(selection, cost).mean()),
            _column(first, cost),
        )
        for cost in COSTS
    }
    confidence = torch.tensor(first.confidence, dtype=torch.float64)
    qualities = _CorpusQualities(first, second, translations.reference, scoring)
    return RoutedSystem(first, second, selected_expert, TwoStage(confidence, qualities, costs))


def _column(network: OfNetwork | Selection, cost: str) -> Float[Tensor, " n"]:
    return torch.tensor(getattr(network, cost), dtype=torch.float64)


def _spared(selection: Selection | None, cost: str) -> Float[Tensor, " n"] | float:
    """What an expert does not run again: layers that it shares with the delegator."""
    shared = [] if selection is None else getattr(selection, f"shared_{cost}")
    return torch.tensor(shared, dtype=torch.float64) if shared else 0.0


def _by_expert(experts: list[OfNetwork], selected: Tensor) -> OfNetwork:
    rows = list(enumerate(selected.tolist()))
    return OfNetwork(
        *([getattr(experts[j], name)[i] for i, j in rows] for name in vars(experts[0]))
    )


def routed_systems(
    translations: Translations, scoring: Scoring | None = None
) -> dict[str, RoutedSystem]:
    """Every system with early termination.

    "CoE" sends a sentence to the selected expert, "random" to one drawn by its words, "oracle" to
    the one whose translation has the best chrF of the sentence (it looks at the reference: a bound,
    not a system). "cascade" is the delegator and the expert that were trained alone, if they are
    among the controls: no selection.

    Args:
        translations: by all networks.
        scoring: of the metrics; None: sacreBLEU's defaults.
    """
    scoring = scoring or Scoring()
    experts, k = translations.experts(), translations.num_experts
    chrf = CorpusQuality("chrF", translations.reference, scoring)
    each = torch.stack([chrf.of_sentences(expert.text) for expert in experts], 1)
    drawn = [zlib.crc32(text.encode()) % k for text in translations.source]
    choices = {
        COE: select_expert(torch.tensor(translations.selection.logits)),
        RANDOM: torch.tensor(drawn),
        ORACLE: each.argmax(1),
    }
    first = translations.networks[DELEGATOR]
    systems = {
        name: _routed(
            translations,
            first,
            _by_expert(experts, selected),
            selected,
            translations.selection,
            scoring,
        )
        for name, selected in choices.items()
    }
    if {DELEGATOR_ALONE, EXPERT_ALONE} <= translations.networks.keys():
        systems[CASCADE] = _routed(
            translations,
            translations.networks[DELEGATOR_ALONE],
            translations.networks[EXPERT_ALONE],
            torch.zeros(len(translations), dtype=torch.long),
            None,
            scoring,
        )
    return systems


def single_systems(translations: Translations) -> dict[str, Mixture]:
    """Every system that has no choice: the team's parts, their ensemble, and the controls."""
    first = (DELEGATOR, *(f"expert-{j}" for j in range(translations.num_experts)), ENSEMBLE)
    named = {name: translations.networks[name] for name in first if name in translations.networks}
    named |= {name: network for name, network in translations.networks.items() if name not in named}
    return {
        name: Mixture(
            network.text,
            float(_column(network, "macs").mean()),
            float(_column(network, "seconds").mean()),
        )
        for name, network in named.items()
    }
