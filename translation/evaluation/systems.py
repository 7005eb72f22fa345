"""Systems that can be put together from one set of translations: CoE, its controls, single networks."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core import TradeOffCurve, corpus_trade_off_curve, select_expert
from translation.evaluation.metrics import CorpusQuality
from translation.evaluation.translations import (
    DELEGATOR,
    DELEGATOR_ALONE,
    ENSEMBLE,
    EXPERT_ALONE,
    OfNetwork,
    Selection,
    Translations,
)

COE, CASCADE, RANDOM, ORACLE = "CoE", "cascade", "random", "oracle"
COSTS = ("macs", "seconds")
NO_EXITS = float("inf")


class Routed(NamedTuple):
    """A first network for all sentences, and for each a second one that runs unless the first is sure.

    Where no sentence can exit (threshold inf) the first does not translate: what is left of it is the
    selection, and nothing of a cascade's.
    """

    first: OfNetwork
    second: OfNetwork  # sentence by sentence, that of the expert it is sent to
    selected: Int[Tensor, " n"]  # which expert that is
    selection: Selection | None = None

    def curve(self, quality: CorpusQuality, cost: str) -> TradeOffCurve:
        """Quality and mean cost per sentence at every threshold.

        Args:
            quality: of the set that was translated.
            cost: "macs" or "seconds". Seconds are those of batches as they were decoded; with batches
                of more than one sentence the routed groups are smaller, so they are an estimate.
        """
        curve = corpus_trade_off_curve(
            torch.tensor(self.first.confidence, dtype=torch.float64),
            quality.counts(self.first.text),
            quality.counts(self.second.text),
            quality.scores,
            float(_column(self.first, cost).mean()),
            _column(self.second, cost),
        )
        curve.cost[0] = float(self._cost(cost, NO_EXITS).mean())
        return curve

    def _cost(self, cost: str, threshold: float) -> Float[Tensor, " n"]:
        """What every sentence costs."""
        second = _column(self.second, cost)
        if threshold == NO_EXITS:
            return second if self.selection is None else _column(self.selection, cost) + second
        stays = torch.tensor(self.first.confidence, dtype=torch.float64) < threshold
        return _column(self.first, cost) + second * stays

    def at(self, threshold: float) -> Mixture:
        """What the system translates with that threshold, and what it spends."""
        first, second = self.first, self.second
        exits = [sure >= threshold for sure in first.confidence]
        text = [a if out else b for out, a, b in zip(exits, first.text, second.text, strict=True)]
        spent = {cost: float(self._cost(cost, threshold).mean()) for cost in COSTS}
        return Mixture(text, spent["macs"], spent["seconds"], sum(exits) / len(exits))


class Mixture(NamedTuple):
    """Translations of a whole set, and what they cost on average."""

    text: list[str]
    macs: float
    seconds: float
    exit_rate: float | None = None  # None: the system has no early termination


def _column(network: OfNetwork | Selection, cost: str) -> Float[Tensor, " n"]:
    return torch.tensor(getattr(network, cost), dtype=torch.float64)


def _by_expert(experts: list[OfNetwork], selected: Tensor) -> OfNetwork:
    rows = list(enumerate(selected.tolist()))
    return OfNetwork(
        *([getattr(experts[j], name)[i] for i, j in rows] for name in vars(experts[0]))
    )


def routed_systems(made: Translations) -> dict[str, Routed]:
    """Every system with early termination.

    "CoE" sends a sentence to the selected expert, "random" to one drawn by its words, "oracle" to
    the one whose translation has the best chrF of the sentence (it looks at the reference: a bound,
    not a system). "cascade" is the delegator and the expert that were trained alone, if they are
    among the controls: no selection.
    """
    experts, k = made.experts(), made.num_experts
    chrf = CorpusQuality("chrF", made.reference)
    each = torch.stack([chrf.of_sentences(expert.text) for expert in experts], 1)
    drawn = [zlib.crc32(text.encode()) % k for text in made.source]
    choices = {
        COE: select_expert(torch.tensor(made.selection.logits)),
        RANDOM: torch.tensor(drawn),
        ORACLE: each.argmax(1),
    }
    first = made.networks[DELEGATOR]
    found = {
        name: Routed(first, _by_expert(experts, selected), selected, made.selection)
        for name, selected in choices.items()
    }
    if {DELEGATOR_ALONE, EXPERT_ALONE} <= made.networks.keys():
        found[CASCADE] = Routed(
            made.networks[DELEGATOR_ALONE],
            made.networks[EXPERT_ALONE],
            torch.zeros(len(made), dtype=torch.long),
        )
    return found


def single_systems(made: Translations) -> dict[str, Mixture]:
    """Every system that has no choice: the team's parts, their ensemble, and the controls."""
    named = {
        name: made.networks[name]
        for name in (DELEGATOR, *(f"expert-{j}" for j in range(made.num_experts)), ENSEMBLE)
        if name in made.networks
    }
    named |= {name: one for name, one in made.networks.items() if name not in named}
    return {
        name: Mixture(
            one.text, float(_column(one, "macs").mean()), float(_column(one, "seconds").mean())
        )
        for name, one in named.items()
    }
