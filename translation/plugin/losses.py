"""Per-sentence losses: from token logits to the arrays [n], [n, k] that the core works on."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class SentenceLoss(NamedTuple):
    """One network on n sentences, each averaged over its reference's tokens (end of sentence too)."""

    smoothed: Float[Tensor, " n"]  # label-smoothed cross entropy, nats per token
    log_likelihood: Float[Tensor, " n"]  # mean log-probability of the reference's tokens


def num_tokens(target: Int[Tensor, "n t"], pad: int) -> Int[Tensor, " n"]:
    """Tokens of each reference."""
    return target.ne(pad).sum(1)


def sentence_loss(
    logits: Float[Tensor, "n t c"], target: Int[Tensor, "n t"], pad: int, smoothing: float = 0.0
) -> SentenceLoss:
    """Label-smoothed loss and log-likelihood of every sentence. RECONSTRUCTED (method section 7).

    The smoothing is fairseq's: (1 - e - e') nll + e' sum_c -log p_c with e' = e / (c - 1).

    Args:
        logits: before the softmax; computed on in float32.
        target: the reference, padded with ``pad``.
        pad: index of the padding.
        smoothing: e, in [0, 1).

    Example:
        >>> import torch
        >>> loss = sentence_loss(torch.zeros(1, 3, 4), torch.tensor([[2, 3, 0]]), pad=0)
        >>> loss.log_likelihood.exp().item()
        0.25
    """
    log_probs = logits.float().log_softmax(-1)
    kept = target.ne(pad)
    count = kept.sum(1).clamp(min=1)
    log_truth = log_probs.gather(2, target.unsqueeze(2)).squeeze(2).masked_fill(~kept, 0.0)
    log_likelihood = log_truth.sum(1) / count
    if smoothing == 0:
        return SentenceLoss(-log_likelihood, log_likelihood)
    everywhere = log_probs.sum(2).masked_fill(~kept, 0.0).sum(1) / count
    each = smoothing / (log_probs.shape[2] - 1)
    smoothed = -(1 - smoothing - each) * log_likelihood - each * everywhere
    return SentenceLoss(smoothed, log_likelihood)


def sentence_mean(
    values: Float[Tensor, " tokens"], target: Int[Tensor, "n t"], pad: int
) -> Float[Tensor, " n"]:
    """Mean over each sentence of one value for every token that is not padding, in reading order.

    Example:
        >>> import torch
        >>> sentence_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([[7, 7], [7, 0]]), pad=0).tolist()
        [2.0, 5.0]
    """
    kept = target.ne(pad)
    spread = values.new_zeros(target.shape).masked_scatter(kept, values)
    return spread.sum(1) / kept.sum(1).clamp(min=1)
