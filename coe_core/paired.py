"""Two systems on the same samples: by how much one is better, with an interval and a test. OURS.

Right and wrong answers are compared by McNemar's test in its mid-p form, which errs at its level for any
number of samples; other numbers by their mean difference; qualities of a whole corpus by resampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RESAMPLES = 2000  # of a corpus
_BLOCK = 250  # resamples at a time, so that memory stays small


class PairedDifference(NamedTuple):
    """First minus second, on the same samples."""

    mean: float
    low: float  # of the interval that holds the true difference with probability 1 - level
    high: float
    p_value: float  # two-sided: how often a difference at least as large comes of equal systems


def paired_difference(
    first: Float[Tensor, " n"], second: Float[Tensor, " n"], level: float = 0.05
) -> PairedDifference:
    """The mean difference of two systems' numbers per sample, such as 1 right and 0 wrong, or costs.

    Where all numbers are 0 and 1: McNemar's test, mid-p (Fagerland, Lydersen, Laake 2013), and the
    interval of Bonett and Price (2012). Else the normal approximation.

    Args:
        first: of each sample.
        second: of the same samples.
        level: of the test, in (0, 1]; the interval is of 1 - level.

    Raises:
        ValueError: no samples, sets of different size, numbers that are not finite, or a level outside
            (0, 1].

    Example:
        >>> first, second = torch.ones(30), torch.ones(30)
        >>> second[:6] = 0
        >>> difference = paired_difference(first, second)
        >>> round(difference.mean, 3), round(difference.low, 3), round(difference.p_value, 4)
        (0.2, 0.027, 0.0156)
    """
    check_level(level)
    first, second = first.detach().cpu().double(), second.detach().cpu().double()
    n = _same_samples(first, second)
    both = torch.stack([first, second])
    if bool(((both == 0) | (both == 1)).all()):
        return _of_answers(int((first > second).sum()), int((second > first).sum()), n, level)
    differences = first - second
    mean = float(differences.mean())
    error = float(differences.std()) / math.sqrt(n) if n > 1 else math.inf
    width = _normal_quantile(level) * error if error else 0.0
    p_value = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
    return PairedDifference(mean, mean - width, mean + width, p_value)


def resampled_difference(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    score: Callable[[Float[Tensor, "m d"]], Float[Tensor, " m"]],
    level: float = 0.05,
    seed: int = 0,
) -> PairedDifference:
    """As `paired_difference`, for a quality of the whole corpus, such as BLEU.

    The test exchanges the systems' answers sample by sample at random (approximate randomisation), the
    interval draws samples with replacement (paired bootstrap); both `RESAMPLES` times.

    Args:
        first: numbers of each sample that add up, see `coe_core.StageQuality`.
        second: of the same samples.
        score: sums over the samples, one row each -> quality.
        level: see `paired_difference`.
        seed: of the resamples.

    Raises:
        ValueError: as `paired_difference`.

    Example:
        >>> words = torch.tensor([[3.0, 4.0], [2.0, 4.0], [4.0, 4.0], [1.0, 2.0]])
        >>> precision = lambda sums: sums[:, 0] / sums[:, 1]
        >>> resampled_difference(words, words, precision).p_value
        1.0
    """
    check_level(level)
    first, second = first.detach().cpu().double(), second.detach().cpu().double()
    n = _same_samples(first, second)
    draw = torch.Generator().manual_seed(seed)
    totals = torch.stack([first.sum(0), second.sum(0)])
    mean = float(score(totals[:1])[0] - score(totals[1:])[0])
    exchanged, drawn = [], []
    for _ in range(0, RESAMPLES, _BLOCK):
        swap = torch.randint(0, 2, (_BLOCK, n), generator=draw).double()
        moved = swap @ (second - first)
        exchanged.append(score(totals[0] + moved) - score(totals[1] - moved))
        rows = torch.randint(0, n, (_BLOCK, n), generator=draw)
        times = torch.zeros(_BLOCK, n, dtype=torch.float64)
        times.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        drawn.append(score(times @ first) - score(times @ second))
    as_large = torch.cat(exchanged).abs() >= abs(mean) - 1e-12
    ends = torch.tensor([level / 2, 1 - level / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(drawn).double(), ends).tolist()
    p_value = (1 + int(as_large.sum())) / (1 + RESAMPLES)
    return PairedDifference(mean, low, high, p_value)


def check_level(level: float) -> None:
    """Refuse a level of a test outside (0, 1].

    Example:
        >>> check_level(5)
        Traceback (most recent call last):
        ValueError: the level of a test is in (0, 1], such as 0.05; got 5
    """
    if not 0 < level <= 1:
        raise ValueError(f"the level of a test is in (0, 1], such as 0.05; got {level}")


def _of_answers(only_first: int, only_second: int, n: int, level: float) -> PairedDifference:
    """Of answers that only one of both has right."""
    from scipy.special import bdtr  # the binomial distribution; scipy.stats takes seconds to import

    fewer, differing = min(only_first, only_second), only_first + only_second
    p_value = 1.0
    if only_first != only_second:  # of as few or fewer, those of as few by half: both sides alike
        below = float(bdtr(fewer - 1, differing, 0.5)) if fewer else 0.0
        p_value = float(bdtr(fewer, differing, 0.5)) + below
    first_rate, second_rate = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    error = math.sqrt((first_rate + second_rate - (first_rate - second_rate) ** 2) / (n + 2))
    width = _normal_quantile(level) * error
    low, high = (
        max(-1.0, first_rate - second_rate - width),
        min(1.0, first_rate - second_rate + width),
    )
    return PairedDifference((only_first - only_second) / n, low, high, p_value)


def _normal_quantile(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(1 - level / 2))


def _same_samples(first: Tensor, second: Tensor) -> int:
    if first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"two systems are compared on the same samples, at least one; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    bad = int((~torch.isfinite(first)).sum() + (~torch.isfinite(second)).sum())
    if bad:
        raise ValueError(f"{bad} of the numbers to be compared are not finite")
    return len(first)
