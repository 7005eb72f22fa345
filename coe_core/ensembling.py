"""Answers of s networks together, and how good, calibrated and diverse they are."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core._checks import check_targets, whole

_MOST_BINS = 2**20
EnsembleKind = Literal["mean_logits", "mean_probability", "max_probability", "geometric_mean"]


def ensemble_log_probs(
    logits: Float[Tensor, "n s c"], kind: EnsembleKind = "mean_logits"
) -> Float[Tensor, "n c"]:
    """Log-probabilities of s networks' common prediction: PAPER (Divide and Co-training).

    mean_logits (the paper's default) is the softmax of the mean logits; mean_probability the mean of
    the softmaxes; max_probability their maximum, class by class, made to sum to 1; geometric_mean
    their geometric mean, made to sum to 1: in exact arithmetic it is mean_logits, since a
    network's normaliser is the same for all classes. All in log space, float32 at least: finite
    for any finite logits.

    Args:
        logits: of s networks on the same n samples.
        kind: how they are joined.

    Raises:
        ValueError: no networks, no classes, or an unknown kind.

    Example:
        >>> import torch
        >>> p = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]])
        >>> ensemble_log_probs(p.log(), "mean_probability").exp()
        tensor([[0.7000, 0.3000]])
        >>> ensemble_log_probs(p.log()).exp()  # geometric: 3 to 1
        tensor([[0.7500, 0.2500]])
    """
    s, c = logits.shape[1:]
    if s == 0 or c == 0:
        raise ValueError(f"nothing to join: logits of {s} networks over {c} classes")
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if kind == "mean_probability":
        return log_probs.logsumexp(1) - math.log(s)
    if kind == "max_probability":
        return log_probs.amax(1).log_softmax(-1)
    if kind in ("mean_logits", "geometric_mean"):
        return log_probs.mean(1).log_softmax(-1)
    raise ValueError(f"unknown kind {kind!r}; there are {', '.join(get_args(EnsembleKind))}")


def negative_log_likelihood(
    log_probs: Float[Tensor, "n c"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """-log p of each sample's target, in nats.

    Args:
        log_probs: of a prediction.
        targets: the true classes, in [0, c).

    Raises:
        ValueError: targets of another number than the samples, or outside the classes.

    Example:
        >>> import torch
        >>> negative_log_likelihood(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1])).exp()
        tensor([1.3333])
    """
    check_targets(targets, *log_probs.shape)
    return -log_probs.gather(1, targets.long().unsqueeze(1)).squeeze(1)


def calibration_error(
    log_probs: Float[Tensor, "n c"], targets: Int[Tensor, " n"], num_bins: int = 15
) -> float:
    """Expected calibration error: |accuracy - confidence|, mean over bins of equal width.

    A sample is in bin ceil(num_bins * confidence), where confidence is its largest probability; bins
    count by their samples. In [0, 1].

    Args:
        log_probs: of a prediction.
        targets: the true classes, in [0, c).
        num_bins: of (0, 1].

    Raises:
        ValueError: no samples, num_bins below 1 or above 2**20, NaN, or targets that do not fit.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[0.8, 0.2]]).log().repeat(4, 1)
        >>> round(calibration_error(log_probs, torch.tensor([0, 0, 0, 1])), 4)  # right: 3 of 4
        0.05
    """
    check_targets(targets, *log_probs.shape)
    if len(targets) == 0:
        raise ValueError("no samples: calibration needs at least one")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    whole("num_bins", num_bins, 1, _MOST_BINS)
    _check_numbers(log_probs, "log_probs")
    top, answer = log_probs.double().max(1)
    confidence = top.exp().clamp(max=1)
    gap = (answer == targets).double() - confidence
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    sums = torch.zeros(num_bins, dtype=torch.float64, device=gap.device).index_add(0, bins, gap)
    return float(sums.abs().sum() / len(targets))


def disagreement(logits: Float[Tensor, "n s c"]) -> float:
    """Part of the samples on which two networks answer differently: mean over pairs; 0 for one network.

    Args:
        logits: of s networks on the same n samples; only the largest of each matters.

    Raises:
        ValueError: no samples, networks or classes, or NaN.

    Example:
        >>> import torch
        >>> disagreement(torch.eye(3)[torch.tensor([[0, 0, 1]])])  # two pairs of three
        0.666...
    """
    n, s, c = logits.shape
    if min(n, s, c) == 0:
        raise ValueError(f"nothing to compare: {n} samples, {s} networks, {c} classes")
    _check_numbers(logits, "logits")
    if s == 1:
        return 0.0
    answers = logits.argmax(-1)
    votes = torch.zeros(n, c, dtype=torch.float64, device=logits.device)
    votes.scatter_add_(1, answers, torch.ones_like(answers, dtype=torch.float64))
    agreeing = (votes * (votes - 1)).sum(1) / (s * (s - 1))
    return float(1 - agreeing.mean())


class EnsembleReport(NamedTuple):
    """Members beside the ensemble; accuracies and errors in [0, 1], likelihoods in nats."""

    member_accuracy: list[float]
    member_nll: list[float]
    member_calibration_error: list[float]
    accuracy: float
    nll: float
    calibration_error: float
    disagreement: float  # of two members, mean over pairs
    any_right: float  # samples that at least one member answers correctly


def ensemble_report(
    logits: Float[Tensor, "n s c"],
    targets: Int[Tensor, " n"],
    kind: EnsembleKind = "mean_logits",
    num_bins: int = 15,
) -> EnsembleReport:
    """How good the members are, how good together, and how they differ.

    Args:
        logits: of s networks on the same n samples.
        targets: the true classes, in [0, c).
        kind: how the members are joined, see `ensemble_log_probs`.
        num_bins: of the calibration error.

    Raises:
        ValueError: no samples, networks or classes, NaN, targets that do not fit, or an unknown kind.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0]]])
        >>> report = ensemble_report(logits, torch.tensor([0, 1]))
        >>> report.member_accuracy, report.accuracy, report.disagreement
        ([1.0, 0.5], 1.0, 0.5)
    """
    together = ensemble_log_probs(logits, kind)
    differing = disagreement(logits)
    members = [ensemble_log_probs(member) for member in logits.split(1, dim=1)]
    answers = logits.argmax(-1)
    check_targets(targets, len(logits), logits.shape[2])
    right = answers == targets.unsqueeze(1)
    return EnsembleReport(
        right.double().mean(0).tolist(),
        [float(negative_log_likelihood(member, targets).double().mean()) for member in members],
        [calibration_error(member, targets, num_bins) for member in members],
        float((together.argmax(-1) == targets).double().mean()),
        float(negative_log_likelihood(together, targets).double().mean()),
        calibration_error(together, targets, num_bins),
        differing,
        float(right.any(1).double().mean()),
    )


def _check_numbers(values: Tensor, what: str) -> None:
    """NaN is no answer: as the largest of a row it would count as one."""
    undefined = values.isnan().flatten(1).any(1) if len(values) else values.new_zeros(0)
    bad = int(undefined.sum())
    if bad:
        raise ValueError(
            f"{what} hold NaN in {bad} of {len(values)} samples; the network has diverged: train it with a "
            "lower learning rate"
        )
