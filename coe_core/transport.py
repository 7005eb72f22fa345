"""The balanced transportation problem: scores and demand -> the exact best portion of every expert.

This is the contract and the certificate; the loops that solve it are in ``_transport_kernels``, which is
imported on first use, because numba takes a second to load.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

from coe_core._checks import LARGEST, scientific, whole


class Assignment(NamedTuple):
    """The exact optimum of the balanced transportation problem, with its certificate.

    Args:
        expert: the expert of each sample; expert j occurs exactly demand[j] times.
        prices: one for each expert, in the unit of the scores: expert[i] is in
            argmax_j scores[i, j] - prices[j] for every sample i, which proves optimality. Their
            demand-weighted mean is zero, so objective = sum_i max_j (scores[i, j] - prices[j]).
        objective: sum_i scores[i, expert[i]].
    """

    expert: Int64[np.ndarray, " n"]
    prices: Float64[np.ndarray, " k"]
    objective: float


def balanced_assignment(
    scores: ArrayLike, demand: ArrayLike | None = None, prices: ArrayLike | None = None
) -> Assignment:
    """Give every sample one expert and every expert its demand, at the highest total score.

    Equation (W1) of docs/method.md, RECONSTRUCTED. The solution is exact, up to the rounding of
    float64, and deterministic; where several solutions are optimal, any of them may be returned.

    Args:
        scores: [n, k], finite, higher is better; an array of floats or integers, or a tensor on any
            device (also float16 and bfloat16; gradients do not flow). Only differences within a
            row matter.
        demand: [k], samples for each expert, nonnegative integers that sum to n. None means
            ``even_demand(n, k)``.
        prices: [k], to start from, such as those of the batch before; the nearer they are the sooner it is
            done, by a third where scores move slowly (docs/results/transport.md). The objective is the same.

    Returns:
        The experts [n], the prices [k] that prove optimality, and the objective.

    Raises:
        ValueError: scores that are not [n, k] with k >= 1, not real numbers, not finite, or too
            large to be subtracted; demand of another length than k, negative, not integer, or not
            summing to n; prices of another length than k, or not finite.

    Example:
        >>> best = balanced_assignment([[5.0, 0.0], [4.0, 1.0], [3.0, 2.5], [2.0, 1.9]])
        >>> best.expert
        array([0, 0, 1, 1])
        >>> round(best.objective, 6)
        13.4
        >>> balanced_assignment([[5.0, 0.0], [4.0, 1.0]], demand=[0, 2]).expert
        array([1, 1])
    """
    scores = _as_matrix(scores)
    n, k = scores.shape
    demand = even_demand(n, k) if demand is None else _as_demand(demand, n, k)
    if prices is not None:
        start = _as_prices(prices, k)
    from coe_core._transport_kernels import balance, solve

    objective = math.nan
    if prices is not None:
        expert, found = np.full(n, -1, np.int64), start
        objective = balance(scores, demand, found, expert, np.empty(n))
        found -= 0.0 if math.isnan(objective) else demand @ found / max(n, 1)
    if math.isnan(objective):  # as from prices too large to be subtracted
        expert, found, objective = solve(scores, demand)
    if math.isnan(objective):
        _raise_unusable(scores)
    return Assignment(expert, found, objective)


def even_demand(n: int, k: int) -> Int64[np.ndarray, " k"]:
    """Split n samples over k experts: n // k each, and one more for the first n % k.

    The default demand of (W1), RECONSTRUCTED.

    Args:
        n: number of samples, >= 0.
        k: number of experts, >= 1.

    Returns:
        Samples for each expert.

    Raises:
        ValueError: n or k out of range.

    Example:
        >>> even_demand(7, 3)
        array([3, 2, 2])
    """
    if n < 0 or k < 1:
        raise ValueError(f"cannot split {n} samples over {k} experts; need n >= 0 and k >= 1")
    n, k = whole("n", n), whole("k", k, least=1)
    try:
        demand = np.full(k, n // k, np.int64)
    except (MemoryError, ValueError) as error:
        raise ValueError(f"{k} experts do not fit into memory") from error
    demand[: n % k] += 1
    return demand


def duality_gap(scores: ArrayLike, assignment: Assignment) -> float:
    """How far an assignment can be from the optimum of its own demand: 0 up to rounding if exact.

    The gap of (W1) and its dual, RECONSTRUCTED: sum_i max_j (S_ij - p_j) + sum_j d_j p_j - objective,
    summed as what each sample loses at the prices, which avoids cancellation.

    Args:
        scores: [n, k], as given to ``balanced_assignment``.
        assignment: experts and prices to judge.

    Returns:
        The gap, in the unit of the scores; never negative.

    Raises:
        ValueError: shapes that do not match, experts that do not exist, or prices that are not finite.

    Example:
        >>> scores = [[5.0, 0.0], [4.0, 1.0]]
        >>> duality_gap(scores, balanced_assignment(scores))
        0.0
        >>> duality_gap(scores, Assignment(np.array([1, 0]), np.array([1.0, -1.0]), 4.0))
        3.0
    """
    scores = _as_matrix(scores)
    expert, prices = np.asarray(assignment.expert), np.asarray(assignment.prices)
    if scores.shape != (*expert.shape, *prices.shape):
        raise ValueError(
            f"scores are {scores.shape}, but the assignment has experts of shape {expert.shape} "
            f"and prices of shape {prices.shape}; pass the scores it was computed from"
        )
    if expert.dtype.kind not in "iu" or not np.isfinite(prices).all():
        raise ValueError("an assignment has whole numbers as experts and finite prices")
    if len(expert) and not 0 <= expert.min() <= expert.max() < len(prices):
        raise ValueError(
            f"the assignment names experts {expert.min()} to {expert.max()}, but there are "
            f"{len(prices)} (0..{len(prices) - 1})"
        )
    gap = 0.0
    for start in range(0, len(expert), 1 << 16):  # in blocks, to need little memory
        value = scores[start : start + (1 << 16)] - prices
        chosen = np.take_along_axis(value, expert[start : start + (1 << 16), None], 1)[:, 0]
        gap += float((value.max(1) - chosen).sum())
    return gap


def _as_array(values: Any) -> np.ndarray:
    """A numpy array of an array, a nested list, or a tensor wherever it lives."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values if values.element_size() >= 4 else values.float()
    return np.asarray(values)


def _as_matrix(scores: ArrayLike) -> np.ndarray:
    try:
        array = _as_array(scores)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"scores must be [n, k]: {error}") from error
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"scores must be [n, k] with k >= 1 experts, got shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"scores must be real numbers, got dtype {array.dtype}")
    # Two dtypes, one layout and writeable, so that at most two versions are ever compiled.
    dtype = np.float32 if array.dtype.kind == "f" and array.itemsize <= 4 else np.float64
    return np.require(array, dtype, ["C", "A", "W"])


def _as_demand(demand: ArrayLike, n: int, k: int) -> np.ndarray:
    array = _as_array(demand)
    if array.shape != (k,):
        raise ValueError(f"demand must have one entry for each of {k} experts, got {array.shape}")
    values = array.tolist()
    if not all(
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        for value in values
    ):
        raise ValueError(f"demand counts samples, so it must be integers, got {values}")
    counts = [int(value) for value in values]  # of any size: their sum cannot wrap around
    if min(counts) < 0:
        j = counts.index(min(counts))
        raise ValueError(f"demand must not be negative, got {values[j]} for expert {j}")
    if sum(counts) != n:
        raise ValueError(
            f"not balanced: demand sums to {scientific(sum(counts))} over {k} experts, but there are {n} "
            "samples; scale demand to match"
        )
    return np.array(counts, np.int64)


def _as_prices(prices: ArrayLike, k: int) -> Float64[np.ndarray, " k"]:
    """A copy of them, which the solver changes."""
    array = np.array(_as_array(prices), np.float64)
    if array.shape != (k,) or not np.isfinite(array).all():
        raise ValueError(
            f"prices to start from must be one finite number for each of {k} experts, got {array.tolist()}"
        )
    return array


def _raise_unusable(scores: np.ndarray) -> None:
    finite = np.isfinite(scores)
    if not finite.all():
        i, j = np.argwhere(~finite)[0]
        raise ValueError(
            f"scores hold {(~finite).sum()} values that are not finite of {scores.size} (first at "
            f"sample {i}, expert {j}); mask or clip them first"
        )
    raise ValueError(
        f"scores of size {np.abs(scores).max():.3g} overflow when summed over {scores.shape[1]} "
        f"experts; keep row sums under {LARGEST:.0e}"
    )
