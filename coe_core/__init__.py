"""Collaboration of Experts, task-agnostic: arrays in, arrays out.

A delegator scores every sample, predicts roughly and selects one of k experts. This package holds
what is independent of images or sentences: the balanced transportation problem, weight and label
generation, the co-training objective, routing, early-terminating inference, calibration and MACs.
"""

from coe_core.agreement import (
    distil_from_mean,
    js_divergence,
    mutual_learning,
    ramped_agreement,
)
from coe_core.calibration import (
    OperatingPoint,
    TradeOffCurve,
    controlled_threshold,
    corpus_trade_off_curve,
    fit_rough_weight,
    fit_threshold,
    trade_off_curve,
)
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
from coe_core.families import FamilyLabels, confusion_families
from coe_core.inference import Delegation, Inference, confidence, infer
from coe_core.labels import choice_variance, selection_labels, sinkhorn
from coe_core.macs import count_macs, mixture_macs
from coe_core.objective import CoTrainingLoss, CoTrainingObjective
from coe_core.routing import Groups, group_rows, select_expert
from coe_core.shared_start import are_one, check_one, share_gradient, start_as_one
from coe_core.transport import Assignment, balanced_assignment, even_demand
from coe_core.weights import Partitioner, demand_from_shares, ramped_focus, sample_weights

__all__ = [
    "AimNotReachableError",
    "Assignment",
    "CoEError",
    "CoTrainingLoss",
    "CoTrainingObjective",
    "Delegation",
    "FamilyLabels",
    "Groups",
    "Inference",
    "NotConvergedError",
    "OperatingPoint",
    "Partitioner",
    "TradeOffCurve",
    "UncountedOperatorError",
    "UnequalExpertsError",
    "are_one",
    "balanced_assignment",
    "calibration_error",
    "check_one",
    "choice_variance",
    "confidence",
    "confusion_families",
    "controlled_threshold",
    "corpus_trade_off_curve",
    "count_macs",
    "demand_from_shares",
    "disagreement",
    "distil_from_mean",
    "ensemble_log_probs",
    "ensemble_report",
    "even_demand",
    "fit_rough_weight",
    "fit_threshold",
    "gather_rows",
    "group_rows",
    "infer",
    "js_divergence",
    "mixture_macs",
    "mutual_learning",
    "negative_log_likelihood",
    "ramped_agreement",
    "ramped_focus",
    "sample_weights",
    "select_expert",
    "selection_labels",
    "share_gradient",
    "sinkhorn",
    "start_as_one",
    "trade_off_curve",
]
