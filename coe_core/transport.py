"""The balanced transportation problem: scores and demand -> the exact best portion of every expert.

The solver works on the dual problem: a price p_j for every expert such that, when every sample i takes
an expert of argmax_j S_ij - p_j, every expert gets its demand. Prices are found on a small sub-sample,
carried to an eight times larger one, and so on to all samples. On each of them there are two phases:

1. far from balance, Newton steps on the prices (``_newton``), judged by one pass over the scores;
2. near balance, the exact finish: only samples whose best and second best expert are nearly tied can
   change expert, so those are gathered and moved along shortest paths over the k experts
   (``_exchange``). If the prices rose by less than the gap of every sample left out, the result is
   optimal for all samples; else more samples are gathered.

The kernels below are plain Python until first use: then numba compiles and caches them.
"""

import threading
import types
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

LARGEST = 1e150  # sums and differences of larger scores might overflow
ROUNDING = 2.0**-50  # values closer than this, relative to their size, are tied


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


def balanced_assignment(scores: ArrayLike, demand: ArrayLike | None = None) -> Assignment:
    """Give every sample one expert and every expert its demand, at the highest total score.

    Equation (W1) of docs/method.md, RECONSTRUCTED. The solution is exact, up to the rounding of
    float64, and deterministic; where several solutions are optimal, any of them may be returned.

    Args:
        scores: [n, k], finite, higher is better; an array of floats or integers, or a tensor on any
            device (also float16 and bfloat16; gradients do not flow). Only differences within a
            row matter.
        demand: [k], samples for each expert, nonnegative integers that sum to n. None means
            ``even_demand(n, k)``.

    Returns:
        The experts [n], the prices [k] that prove optimality, and the objective.

    Raises:
        ValueError: scores that are not [n, k] with k >= 1, not real numbers, not finite, or too
            large to be subtracted; demand of another length than k, negative, not integer, or not
            summing to n.

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
    expert, prices, objective = _compiled_solve()(scores, demand)
    if np.isnan(objective):
        _raise_unusable(scores)
    if n:
        prices -= demand @ prices / n
    return Assignment(expert, prices, objective)


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
    demand = np.full(k, n // k, np.int64)
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
        ValueError: shapes that do not match.

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
    array = _as_array(scores)
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
    if array.dtype.kind not in "fiub" or not (array == np.floor(array)).all():
        raise ValueError(f"demand counts samples, so it must be integers, got {array.tolist()}")
    if (array < 0).any():
        j = int(np.argmax(array < 0))
        raise ValueError(f"demand must not be negative, got {array[j]} for expert {j}")
    if array.sum() != n:
        raise ValueError(
            f"not balanced: demand sums to {array.sum():g} over {k} experts, but there are {n} "
            "samples; scale demand to match"
        )
    return array.astype(np.int64)


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


def _scan(scores, prices, demand, expert, gap):
    n, k = scores.shape
    load = np.zeros(k, np.int64)
    scale = np.abs(prices).max()
    objective = part = 0.0
    for i in range(n):
        best, second, size, arg = -np.inf, -np.inf, 0.0, 0
        for j in range(k):
            value = np.float64(scores[i, j]) - prices[j]
            size += abs(value)
            low = value if value < best else best
            second = low if low > second else second
            arg = j if value > best else arg
            best = value if value > best else best
        if not size < LARGEST:
            return load, np.nan
        tie = best - ROUNDING * (abs(best) + scale)
        if second >= tie:
            most = -np.inf
            for j in range(k):
                if scores[i, j] - prices[j] >= tie and demand[j] > 0:
                    lack = (demand[j] - load[j]) / demand[j]
                    if lack > most:
                        most, arg = lack, j
        expert[i] = arg
        gap[i] = best - second
        load[arg] += 1
        part += scores[i, arg]
        if i % 256 == 255:  # sums of sums round less
            objective += part
            part = 0.0
    return load - demand, objective + part


def _quantile(gap, rank):
    step = max(1, gap.size // 2048)
    some = np.sort(gap[::step])
    return some[min(some.size - 1, rank // step + 1)]


def _newton(scores, prices, expert, gap, surplus, left):
    n, k = scores.shape
    reach = _quantile(gap, 2 * left)
    if reach <= 0.0:
        reach = gap.mean()
    matrix = np.zeros((k, k))
    for i in range(n):
        if gap[i] <= reach:
            a = expert[i]
            second, b = -np.inf, a
            for j in range(k):
                value = scores[i, j] - prices[j]
                if j != a and value > second:
                    second, b = value, j
            matrix[a, b] -= 0.5
            matrix[b, a] -= 0.5
            matrix[a, a] += 0.5
            matrix[b, b] += 0.5
    step = surplus * reach
    for j in range(k):
        matrix[j, j] += 0.5
    for a in range(k):
        for b in range(a + 1, k):
            factor = matrix[b, a] / matrix[a, a]
            if factor != 0.0:
                for c in range(a, k):
                    matrix[b, c] -= factor * matrix[a, c]
                step[b] -= factor * step[a]
    for a in range(k - 1, -1, -1):
        for b in range(a + 1, k):
            step[a] -= matrix[a, b] * step[b]
        step[a] /= matrix[a, a]
    for j in range(k):
        prices[j] += min(max(step[j], -2 * reach), 2 * reach)


def _exchange(values, expert, surplus, bound, rounding):
    m, k = values.shape
    size = max(k, int(np.sqrt(m)))
    blocks = (m + size - 1) // size
    near = np.full((k, blocks, k), np.inf)
    for i in range(m):
        a = expert[i]
        for c in range(k):
            cost = values[i, a] - values[i, c]
            if cost < near[a, i // size, c]:
                near[a, i // size, c] = cost
    cheapest = np.full((k, k), np.inf)
    for a in range(k):
        for b in range(blocks):
            for c in range(k):
                if near[a, b, c] < cheapest[a, c]:
                    cheapest[a, c] = near[a, b, c]
    rise = np.zeros(k)
    distance = np.empty(k)
    parent = np.empty(k, np.int64)
    done = np.empty(k, np.bool_)
    left = 0
    for j in range(k):
        left += max(surplus[j], 0)
    while left > 0:
        for j in range(k):
            distance[j] = 0.0 if surplus[j] > 0 else np.inf
            parent[j] = -1
            done[j] = False
        while True:
            a, shortest = -1, np.inf
            for j in range(k):
                if not done[j] and distance[j] < shortest:
                    a, shortest = j, distance[j]
            if a < 0 or surplus[a] < 0:
                break
            done[a] = True
            for c in range(k):
                length = shortest + max(0.0, cheapest[a, c] - rise[a] + rise[c])
                if not done[c] and length < distance[c]:
                    distance[c] = length
                    parent[c] = a
        if a < 0:
            break
        target = a
        top = 0.0
        for j in range(k):
            if done[j]:
                top = max(top, rise[j] + shortest - distance[j])
        if top > bound + rounding:
            break
        for j in range(k):
            if done[j]:
                rise[j] += shortest - distance[j]
        tight = True
        while tight:
            c = target
            while parent[c] >= 0:
                a = parent[c]
                wanted = cheapest[a, c]
                b = 0
                while near[a, b, c] != wanted:
                    b += 1
                i = b * size
                while expert[i] != a or values[i, a] - values[i, c] != wanted:
                    i += 1
                expert[i] = c
                for j in range(k):
                    near[a, b, j] = np.inf
                    cost = values[i, c] - values[i, j]
                    near[c, b, j] = min(near[c, b, j], cost)
                    cheapest[c, j] = min(cheapest[c, j], cost)
                for r in range(b * size, min(b * size + size, m)):
                    if expert[r] == a:
                        for j in range(k):
                            near[a, b, j] = min(near[a, b, j], values[r, a] - values[r, j])
                for j in range(k):
                    cheapest[a, j] = np.inf
                for b in range(blocks):
                    for j in range(k):
                        cheapest[a, j] = min(cheapest[a, j], near[a, b, j])
                c = a
            surplus[c] -= 1
            surplus[target] += 1
            left -= 1
            tight = surplus[c] > 0 and surplus[target] < 0
            source, c = c, target
            while tight and c != source:
                a = parent[c]
                tight = cheapest[a, c] - rise[a] + rise[c] <= rounding
                c = a
    return rise


def _balance(scores, demand, prices, expert, gap):
    n, k = scores.shape
    newton = True
    before = n + 1
    kept = prices.copy()
    budget = 0
    while True:
        surplus, objective = _scan(scores, prices, demand, expert, gap)
        left = 0
        for j in range(k):
            left += max(surplus[j], 0)
        if left == 0 or np.isnan(objective):
            return objective
        if newton and left > n // 32 + 4:
            if left < before:
                before = left
                kept[:] = prices
                _newton(scores, prices, expert, gap, surplus, left)
            else:
                newton = False
                prices[:] = kept
            continue
        newton = False
        budget = max(4 * budget, 8 * left, 1024)
        bound, skip = np.inf, 1
        limit = np.inf
        if 2 * budget < n:
            limit = _quantile(gap, budget)
            bound = limit
            skip = max(1, (gap <= limit).sum() // (4 * budget))
        count = 0
        rows = np.empty(n, np.int64)
        near = 0
        for i in range(n):
            if gap[i] <= limit:
                if near % skip == 0:
                    rows[count] = i
                    count += 1
                else:
                    bound = min(bound, gap[i])
                near += 1
        if count == n:
            bound = np.inf
        values = np.empty((count, k))
        where = np.empty(count, np.int64)
        for r in range(count):
            where[r] = expert[rows[r]]
            for j in range(k):
                values[r, j] = scores[rows[r], j] - prices[j]
        rounding = ROUNDING * (np.abs(prices).max() + np.abs(values).max())
        rise = _exchange(values, where, surplus, bound, rounding)
        prices += rise
        for r in range(count):
            i = rows[r]
            objective += np.float64(scores[i, where[r]]) - np.float64(scores[i, expert[i]])
            expert[i] = where[r]
        done = True
        for j in range(k):
            done = done and surplus[j] == 0
        if done:
            return objective
        if bound == np.inf:  # not an assert: pytest rewrites those to what numba cannot compile
            raise AssertionError("every sample was free to move, yet demand was not met")


def _solve(scores, demand):
    n, k = scores.shape
    prices = np.zeros(k)
    expert = np.empty(n, np.int64)
    gap = np.empty(n)
    stride = 1
    while n // stride >= 8 * 96:
        stride *= 8
    while stride > 1:
        m = n // stride
        some = np.empty((m, k), scores.dtype)
        part = np.empty(k, np.int64)
        total, before = 0, 0
        for j in range(k):
            total += demand[j]
            part[j] = total * m // n - before
            before += part[j]
        for r in range(m):
            some[r] = scores[r * stride + (r * 40503 >> 4) % stride]
        if np.isnan(_balance(some, part, prices, expert[:m], gap[:m])):
            break
        stride //= 8
    objective = _balance(scores, demand, prices, expert, gap)
    return expert, prices, objective


_lock = threading.Lock()


def _compiled_solve() -> Any:
    """``_solve``, compiled. Importing numba takes a second, so that waits for the first use."""
    with _lock:
        if isinstance(_solve, types.FunctionType):
            import numba

            kernels = (_scan, _quantile, _newton, _exchange, _balance, _solve)
            for kernel in kernels:  # callees first: a kernel finds the ones it calls as globals
                try:
                    compiled = numba.njit(cache=True, nogil=True)(kernel)
                except RuntimeError:  # no folder to cache in can be written
                    compiled = numba.njit(nogil=True)(kernel)
                globals()[kernel.__name__] = compiled
    return _solve
