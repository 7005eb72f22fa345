"""The systems that a run could deploy, on its translated held-out text: what calibration chooses from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from coe_core import Candidate, StageCost, StageQuality, TwoStage
from coe_core.stored_points import CASCADE, COE, has_exits
from translation.evaluation.metrics import CorpusQuality, Scoring
from translation.evaluation.systems import routed_systems
from translation.evaluation.translations import (
    DELEGATOR,
    DELEGATOR_ALONE,
    ENSEMBLE,
    EXPERT_ALONE,
    OfNetwork,
    Translations,
)

_ROUTERS = {COE: "learned", CASCADE: "cascade"}
_MS = 1000.0  # of a second


def control_system(name: str, networks: int) -> str:
    """What a control is called as a system.

    Args:
        name: of the control.
        networks: that it consists of.

    Example:
        >>> control_system("large", 1), control_system("seeds", 4)
        ('single:large', 'ensemble:seeds')
    """
    return f"{'single' if networks == 1 else 'ensemble'}:{name}"


def held_out_systems(
    translations: Translations, scoring: Scoring | None = None, metric: str = "BLEU"
) -> dict[str, Candidate]:
    """Every system that a text can be translated with: CoE, cascade, single:NAME, ensemble:NAME.

    Controls of one network per direction are none of them: they need to be told the direction of a sentence,
    which the others find out.

    Args:
        translations: of a held-out text by all networks.
        scoring: of the metric; None: sacreBLEU's defaults.
        metric: "BLEU" or "chrF"; the only quality of the systems. Costs are "macs" and "ms".
    """
    routed = routed_systems(translations, scoring)
    parts = {COE: 1 + translations.num_experts, CASCADE: 2}
    found = {
        name: Candidate(_of_metric(routed[name].stages, metric), count)
        for name, count in parts.items()
        if name in routed
    }
    quality = CorpusQuality(metric, translations.reference, scoring)
    for name, count in _controls(translations).items():
        network = translations.networks[name]
        counts = quality.counts(network.text)
        kind = StageQuality(counts, counts, quality.scores)
        stage = TwoStage.alone({metric: kind}, _costs(network))
        found[control_system(name, count)] = Candidate(stage, count)
    return found


def _of_metric(stages: TwoStage, metric: str) -> TwoStage:
    costs = {"macs": stages.costs["macs"], "ms": _in_ms(stages.costs["seconds"])}
    return dataclasses.replace(stages, qualities={metric: stages.qualities[metric]}, costs=costs)


def _in_ms(cost: StageCost) -> StageCost:
    left, each = cost.first_without_exits, cost.first_of_each
    return StageCost(
        cost.first * _MS,
        cost.second * _MS,
        None if left is None else left * _MS,
        None if each is None else each * _MS,
    )


def _costs(network: OfNetwork) -> dict[str, Any]:
    macs, seconds = (
        torch.tensor(column, dtype=torch.float64) for column in (network.macs, network.seconds)
    )
    return {"macs": macs, "ms": seconds * _MS}


def _controls(translations: Translations) -> dict[str, int]:
    """Networks of each control that translates every sentence, by name."""
    digests = translations.provenance.get("controls_sha256") or {}
    by_direction = {name.partition("@")[0] for name in digests if "@" in name}
    team = {DELEGATOR, ENSEMBLE, *(f"expert-{j}" for j in range(translations.num_experts))}
    return {
        name: str(digests.get(name, "")).count(":") + 1
        for name in translations.networks
        if name not in team and name not in by_direction
    }


def fitted_with(provenance: Mapping[str, Any], system: str) -> dict[str, Any]:
    """What a system's points depend on, out of the provenance of decoded translations.

    The names are those of the points' ``fitted_with``: checkpoint (SHA-256), confidence, beam, lenpen,
    router, direction (such as de-en); of a cascade the digests of its two networks in place of the team's,
    of a control those of its own. What a file of an older version does not know is left out.

    Args:
        provenance: of `Translations`.
        system: see `held_out_systems`.

    Example:
        >>> fitted_with({"confidence": "probability", "beam": 5, "date": "2026-01-01"}, "CoE")
        {'confidence': 'probability', 'beam': 5, 'router': 'learned'}
        >>> fitted_with({"confidence": "probability", "beam": 5}, "single:large")
        {'beam': 5}
    """
    names = ("confidence", "beam", "lenpen") if has_exits(system) else ("beam", "lenpen")
    settings = {name: provenance.get(name) for name in names}
    settings |= {"router": _ROUTERS.get(system), "direction": provenance.get("direction")}
    digests = provenance.get("controls_sha256") or {}
    if system == CASCADE:
        settings |= {name: digests.get(name) for name in (DELEGATOR_ALONE, EXPERT_ALONE)}
    elif system == COE:
        settings["checkpoint"] = provenance.get("checkpoint_sha256")
    else:
        settings["checkpoint"] = digests.get(system.partition(":")[2])
    return {name: value for name, value in settings.items() if value is not None}
