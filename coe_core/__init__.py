"""Collaboration of Experts, task-agnostic: arrays in, arrays out.

A delegator scores every sample, predicts roughly and selects one of k experts. This package holds
what is independent of images or sentences: the balanced transportation problem, weight and label
generation, the co-training objective, routing, early-terminating inference, calibration and MACs.

Nothing of it is loaded before it is used, and torch with it: ``coe_core.support`` starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coe_core.agreement import (
        distil_from_mean,
        js_divergence,
        mutual_learning,
        ramped_agreement,
    )
    from coe_core.calibration import controlled_threshold, fit_rough_weight, fit_threshold
    from coe_core.choice import Candidate, choose, choose_guaranteed, fit_systems
    from coe_core.chosen import Choice, Rival
    from coe_core.clusters import ClusterPortions, Clusters, balanced_clusters, balanced_kmeans
    from coe_core.distributed import gather_rows
    from coe_core.ensembling import (
        calibration_error,
        disagreement,
        ensemble_log_probs,
        ensemble_report,
        negative_log_likelihood,
    )
    from coe_core.errors import (
        AimNotReachableError,
        CoEError,
        NotConvergedError,
        UncountedOperatorError,
        UnequalExpertsError,
    )
    from coe_core.exit_rules import ExitRule, GainModel, fit_gain
    from coe_core.families import FamilyLabels, confusion_families
    from coe_core.hand_over import scale_gradient
    from coe_core.inference import Delegation, Inference, confidence, infer
    from coe_core.labels import choice_variance, selection_labels, sinkhorn
    from coe_core.law import Law, gain_law
    from coe_core.macs import count_macs, mixture_macs
    from coe_core.objective import CoTrainingLoss, CoTrainingObjective
    from coe_core.operating_points import CalibratedCurve, OperatingPoint, check_fitted_with
    from coe_core.paired import PairedDifference, paired_difference, resampled_difference
    from coe_core.portions import (
        PortionCounts,
        experts_of_groups,
        handed_to_evidence,
        shared_information,
    )
    from coe_core.routing import Groups, group_rows, select_expert
    from coe_core.sample_rest import Drawn, draw_rest
    from coe_core.shared_start import are_one, check_one, share_gradient, start_as_one
    from coe_core.stored_points import (
        StoredPoints,
        load_curves,
        load_points,
        save_curves,
        save_points,
        stored_point,
    )
    from coe_core.trade_off import TradeOffCurve, corpus_trade_off_curve, trade_off_curve
    from coe_core.transport import Assignment, balanced_assignment, even_demand
    from coe_core.two_stage import Reached, StageCost, StageQuality, TwoStage, mean_quality
    from coe_core.weights import Partitioner, demand_from_shares, ramped_focus, sample_weights

_HOMES = {  # module -> the public names that it defines
    "agreement": (
        "distil_from_mean",
        "js_divergence",
        "mutual_learning",
        "ramped_agreement",
    ),
    "calibration": (
        "controlled_threshold",
        "fit_rough_weight",
        "fit_threshold",
    ),
    "clusters": (
        "ClusterPortions",
        "Clusters",
        "balanced_clusters",
        "balanced_kmeans",
    ),
    "choice": (
        "Candidate",
        "choose",
        "choose_guaranteed",
        "fit_systems",
    ),
    "chosen": (
        "Choice",
        "Rival",
    ),
    "distributed": ("gather_rows",),
    "ensembling": (
        "calibration_error",
        "disagreement",
        "ensemble_log_probs",
        "ensemble_report",
        "negative_log_likelihood",
    ),
    "errors": (
        "AimNotReachableError",
        "CoEError",
        "NotConvergedError",
        "UncountedOperatorError",
        "UnequalExpertsError",
    ),
    "exit_rules": (
        "ExitRule",
        "GainModel",
        "fit_gain",
    ),
    "families": (
        "FamilyLabels",
        "confusion_families",
    ),
    "hand_over": ("scale_gradient",),
    "inference": (
        "Delegation",
        "Inference",
        "confidence",
        "handed_to_evidence",
        "infer",
    ),
    "labels": (
        "choice_variance",
        "selection_labels",
        "sinkhorn",
    ),
    "law": (
        "Law",
        "gain_law",
    ),
    "macs": (
        "count_macs",
        "mixture_macs",
    ),
    "objective": (
        "CoTrainingLoss",
        "CoTrainingObjective",
    ),
    "operating_points": (
        "CalibratedCurve",
        "OperatingPoint",
        "check_fitted_with",
    ),
    "portions": (
        "PortionCounts",
        "experts_of_groups",
        "handed_to_evidence",
        "shared_information",
    ),
    "paired": (
        "PairedDifference",
        "paired_difference",
        "resampled_difference",
    ),
    "routing": (
        "Groups",
        "group_rows",
        "select_expert",
    ),
    "sample_rest": (
        "Drawn",
        "draw_rest",
    ),
    "shared_start": (
        "are_one",
        "check_one",
        "share_gradient",
        "start_as_one",
    ),
    "stored_points": (
        "StoredPoints",
        "load_curves",
        "load_points",
        "save_curves",
        "save_points",
        "stored_point",
    ),
    "trade_off": (
        "TradeOffCurve",
        "corpus_trade_off_curve",
        "trade_off_curve",
    ),
    "transport": (
        "Assignment",
        "balanced_assignment",
        "even_demand",
    ),
    "two_stage": (
        "Reached",
        "StageCost",
        "StageQuality",
        "TwoStage",
        "mean_quality",
    ),
    "weights": (
        "Partitioner",
        "demand_from_shares",
        "ramped_focus",
        "sample_weights",
    ),
}

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, a module, or ``__version__``: loaded on first use (PEP 562)."""
    if name == "__version__":
        from coe_core.support.provenance import toolkit_version

        value: Any = toolkit_version()
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"coe_core.{_HOME_OF[name]}"), name)
    elif name in _HOMES:  # coe_core.transport after nothing but `import coe_core`
        value = importlib.import_module(f"coe_core.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, "__version__"})


__all__ = [
    "AimNotReachableError",
    "Assignment",
    "CalibratedCurve",
    "Candidate",
    "Choice",
    "ClusterPortions",
    "Clusters",
    "CoEError",
    "CoTrainingLoss",
    "CoTrainingObjective",
    "Delegation",
    "Drawn",
    "ExitRule",
    "FamilyLabels",
    "GainModel",
    "Groups",
    "Inference",
    "Law",
    "NotConvergedError",
    "OperatingPoint",
    "PairedDifference",
    "Partitioner",
    "PortionCounts",
    "Reached",
    "Rival",
    "StageCost",
    "StageQuality",
    "StoredPoints",
    "TradeOffCurve",
    "TwoStage",
    "UncountedOperatorError",
    "UnequalExpertsError",
    "are_one",
    "balanced_assignment",
    "balanced_clusters",
    "balanced_kmeans",
    "calibration_error",
    "check_fitted_with",
    "check_one",
    "choice_variance",
    "choose",
    "choose_guaranteed",
    "confidence",
    "confusion_families",
    "controlled_threshold",
    "corpus_trade_off_curve",
    "count_macs",
    "demand_from_shares",
    "disagreement",
    "distil_from_mean",
    "draw_rest",
    "ensemble_log_probs",
    "ensemble_report",
    "even_demand",
    "experts_of_groups",
    "fit_gain",
    "fit_rough_weight",
    "fit_systems",
    "fit_threshold",
    "gain_law",
    "gather_rows",
    "group_rows",
    "handed_to_evidence",
    "infer",
    "js_divergence",
    "load_curves",
    "load_points",
    "mean_quality",
    "mixture_macs",
    "mutual_learning",
    "negative_log_likelihood",
    "paired_difference",
    "ramped_agreement",
    "ramped_focus",
    "resampled_difference",
    "sample_weights",
    "save_curves",
    "save_points",
    "scale_gradient",
    "select_expert",
    "selection_labels",
    "share_gradient",
    "shared_information",
    "sinkhorn",
    "start_as_one",
    "stored_point",
    "trade_off_curve",
]
