"""How sure a score and a difference of scores are: bootstrap over sentences, seeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from translation.evaluation.metrics import CorpusQuality

RESAMPLES, SEED = 1000, 12345  # those of sacreBLEU
_AT_ONCE = 2**24  # numbers in memory


class Interval(NamedTuple):
    """A score, or a difference of two, and where 95% of the resamples lie."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """First system minus second."""

    interval: Interval
    p: float  # that a difference of this size is chance


def draws(sentences: int, resamples: int = RESAMPLES, seed: int = SEED) -> Tensor:
    """How often each resample has each sentence, [resamples, sentences]; as many sentences as the set."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, sentences))
    step = max(1, _AT_ONCE // sentences)
    for start in range(0, resamples, step):
        rows = rng.integers(sentences, size=(min(step, resamples - start), sentences))
        for place, row in enumerate(rows, start):
            counts[place] = np.bincount(row, minlength=sentences)
    return torch.from_numpy(counts)


def interval(quality: CorpusQuality, text: Sequence[str], drawn: Tensor) -> Interval:
    """A system's score.

    Args:
        quality: the metric, with the references.
        text: translations of the system.
        drawn: see `draws`.

    Example:
        >>> quality = CorpusQuality("chrF", ["a cat", "a dog"])
        >>> interval(quality, ["a cat", "a dog"], draws(2))
        Interval(value=100.0, low=100.0, high=100.0)
    """
    counts = quality.counts(text)
    value = float(quality.scores(counts.sum(0, keepdim=True))[0])
    return _interval(value, quality.scores(drawn @ counts))


def _interval(value: float, resampled: Tensor) -> Interval:
    low, high = torch.quantile(
        resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return Interval(value, low, high)


def difference(
    quality: CorpusQuality, first: Sequence[Tensor], second: Sequence[Tensor], drawn: Tensor
) -> Difference:
    """Paired bootstrap (Koehn 2004) of two systems, each the mean of its seeds' scores.

    Both systems are scored on the same resamples. p is sacreBLEU's: how often a resampled difference is as
    far from the mean of all as the observed one is from none.

    Args:
        quality: the metric.
        first: `CorpusQuality.counts` of each seed of a system.
        second: of another system.
        drawn: see `draws`.

    Example:
        >>> quality = CorpusQuality("chrF", ["a cat", "a dog"])
        >>> same = [quality.counts(["a cat", "a dot"])]
        >>> difference(quality, same, same, draws(2)).p
        1.0
    """
    values, resampled = [], []
    for seeds in (first, second):
        scored = [quality.scores(counts.sum(0, keepdim=True)) for counts in seeds]
        values.append(float(torch.stack(scored).mean()))
        resampled.append(torch.stack([quality.scores(drawn @ counts) for counts in seeds]).mean(0))
    differences = resampled[0] - resampled[1]
    value = values[0] - values[1]
    extreme = int(((differences - differences.mean()).abs() >= abs(value)).sum())
    return Difference(_interval(value, differences), (extreme + 1) / (len(differences) + 1))
