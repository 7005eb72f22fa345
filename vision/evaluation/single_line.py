"""The fair control: the line through the single networks, in top-1 over multiply-adds. OURS.

A collaboration of some mean cost is compared with what single networks of that cost would reach: two of
them, trained on the same batches, one cheaper and one dearer, and the straight line between them. The
line is the accuracy of running either at random, sample by sample, at that mean cost; so its difference
to a predictor is a mean over samples, and has a paired standard error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Difference(NamedTuple):
    """How far a predictor's accuracy lies from the line at its cost."""

    mean: float  # in [-1, 1]; above 0: better than the line
    standard_error: float  # paired, over the samples
    between: tuple[str, str]  # the single networks, cheaper and dearer


def beside_line(
    right: Float[Tensor, " n"],
    macs: float,
    singles: Mapping[str, Float[Tensor, " n"]],
    single_macs: Mapping[str, float],
) -> Difference | None:
    """A predictor beside the line through single networks, on the same samples.

    Args:
        right: 1 where the predictor is right, else 0.
        macs: its mean multiply-adds per sample.
        singles: the same of every single network, by name.
        single_macs: multiply-adds per sample of each.

    Returns:
        None where the cost lies outside of all single networks': nothing is extrapolated.

    Raises:
        ValueError: sets of different size.

    Example:
        >>> import torch
        >>> right = torch.tensor([1.0, 1.0, 1.0, 0.0])
        >>> singles = {"small": torch.tensor([0.0, 0.0, 1.0, 0.0]), "large": torch.tensor([1.0, 0, 1, 1])}
        >>> beside_line(right, 2.0, singles, {"small": 1.0, "large": 3.0})
        Difference(mean=0.25, standard_error=0.3227..., between=('small', 'large'))
        >>> beside_line(right, 3.5, singles, {"small": 1.0, "large": 3.0}) is None
        True
    """
    for name, other in singles.items():
        if other.shape != right.shape:
            raise ValueError(
                f"{name} has {len(other)} samples, the predictor beside it {len(right)}; "
                "compare them on one set"
            )
    ends = _ends(macs, single_macs)
    if ends is None:
        return None
    low, high = ends
    span = single_macs[high] - single_macs[low]
    weight = (macs - single_macs[low]) / span if span > 0 else 0.0
    line = (1 - weight) * singles[low].double() + weight * singles[high].double()
    differences = right.double() - line
    n = len(differences)
    error = float(differences.std()) / math.sqrt(n) if n > 1 else math.inf
    return Difference(float(differences.mean()), error, (low, high))


def _ends(macs: float, single_macs: Mapping[str, float]) -> tuple[str, str] | None:
    """The nearest single networks on either side; rounding of a mean is no extrapolation."""
    slack = 1e-9 * macs
    cheaper = [name for name, cost in single_macs.items() if cost <= macs + slack]
    dearer = [name for name, cost in single_macs.items() if cost >= macs - slack]
    if not (cheaper and dearer) or len(single_macs) < 2:
        return None
    low = max(cheaper, key=lambda name: single_macs[name])
    high = min(dearer, key=lambda name: single_macs[name])
    return low, high


def below_their_neighbours(
    accuracy: Mapping[str, float], single_macs: Mapping[str, float]
) -> list[str]:
    """Single networks that lie below the line through their neighbours.

    Such a one trained badly, or is no good use of its cost; a line through it flatters what is beside it.

    Example:
        >>> below_their_neighbours({"a": 0.5, "b": 0.5, "c": 0.9}, {"a": 1.0, "b": 2.0, "c": 3.0})
        ['b']
    """
    order = sorted(accuracy, key=lambda name: single_macs[name])
    below = []
    for left, name, right in zip(order, order[1:], order[2:], strict=False):
        span = single_macs[right] - single_macs[left]
        weight = (single_macs[name] - single_macs[left]) / span if span > 0 else 0.0
        if accuracy[name] < (1 - weight) * accuracy[left] + weight * accuracy[right]:
            below.append(name)
    return below
