"""Terms that pull networks which train together towards agreement (Divide and Co-training)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = -1e30  # of a log-probability, so that 0 times it is 0


def _log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities in float32 at least; float64 stays."""
    if logits.shape[1] == 0:
        raise ValueError("logits of 0 networks have no agreement; give [n, s, c] with s >= 1")
    if logits.shape[2] == 0:
        raise ValueError("logits over 0 classes have no agreement")
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return log_probs.clamp(min=LEAST)  # the softmax of finite logits may underflow to log 0


def _log_mean(log_probs: Tensor) -> Tensor:
    """Log of the networks' mean probability: finite for any logits, unlike the log of a mean."""
    return log_probs.logsumexp(1) - math.log(log_probs.shape[1])


def js_divergence(logits: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """Jensen-Shannon divergence of s networks' predictions, in nats: PAPER (Divide and Co-training).

    JS = H(mean_i p_i) - mean_i H(p_i); gradient into all networks; between 0 and log s. Finite for
    all finite logits, however confident.

    Args:
        logits: of s networks on the same n samples.

    Raises:
        ValueError: no networks or no classes (the same for all terms of this file).

    Example:
        >>> import torch
        >>> js_divergence(torch.tensor([[[900.0, 0.0], [0.0, 900.0]]])).item()  # log 2
        0.693147...
    """
    log_probs = _log_probs(logits)
    log_mean = _log_mean(log_probs)
    return (log_probs.exp() * (log_probs - log_mean.unsqueeze(1))).sum(-1).mean(1)


def mutual_learning(logits: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """Mean over ordered pairs of KL(stopgrad p_j || p_i), summed over i: PAPER (the alternative to JS).

    (1 / (s - 1)) sum_i sum_{j != i} KL(p_j || p_i); 0 for a single network.

    Args:
        logits: of s networks on the same n samples.

    Example:
        >>> import torch
        >>> mutual_learning(torch.zeros(1, 3, 4)).item()
        0.0
    """
    num_networks = logits.shape[1]
    log_probs = _log_probs(logits)
    if num_networks == 1:
        return log_probs.sum((1, 2)) * 0
    teacher = log_probs.detach()
    entropy = (teacher.exp() * teacher).sum(-1).sum(1)  # [n], minus the entropies
    cross = (teacher.exp().sum(1, keepdim=True) - teacher.exp()) * log_probs
    return ((num_networks - 1) * entropy - cross.sum((1, 2))) / (num_networks - 1)


def distil_from_mean(logits: Float[Tensor, "n s c"]) -> Float[Tensor, " n"]:
    """Mean over networks of KL(stopgrad p_mean || p_i): each learns from the mean of all. OURS.

    Args:
        logits: of s networks on the same n samples.

    Example:
        >>> import torch
        >>> distil_from_mean(torch.zeros(1, 3, 4)).item()
        0.0
    """
    log_probs = _log_probs(logits)
    log_mean = _log_mean(log_probs).detach().unsqueeze(1)
    return (log_mean.exp() * (log_mean - log_probs)).sum(-1).mean(1)


Agreement = Literal["none", "distil", "js", "mutual"]  # no term, or one of `AGREEMENTS`
AGREEMENTS = {"distil": distil_from_mean, "js": js_divergence, "mutual": mutual_learning}


def ramped_agreement(weight: float, progress: float, warmup: float, least: float = 0.005) -> float:
    """Weight of an agreement term after a part of the training, rising over the warm-up: PAPER.

    max(weight * progress / warmup, least) during the warm-up, then ``weight``; the paper's are .5,
    least .005, over 40 of 300 epochs.

    Args:
        weight: after the warm-up, at least 0.
        progress: part of the training done, in [0, 1].
        warmup: part of the training over which it rises, in [0, 1].
        least: during the warm-up, unless ``weight`` is less.

    Raises:
        ValueError: a weight (also the least) that is negative or not finite, or a progress or warm-up
            outside [0, 1].

    Example:
        >>> [ramped_agreement(0.5, epoch / 300, 40 / 300) for epoch in (0, 20, 40, 200)]
        [0.005, 0.25, 0.5, 0.5]
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be finite and at least 0, got {weight}")
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is a part of the training, in [0, 1]; got {warmup}")
    if not progress >= 0:
        raise ValueError(f"progress is a part of the training, in [0, 1]; got {progress}")
    if not 0 <= least < math.inf:
        raise ValueError(f"least must be finite and at least 0, got {least}")
    if progress >= warmup:
        return weight
    return min(weight, max(weight * progress / warmup, least))
