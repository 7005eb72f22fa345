"""The balanced transportation problem: scores and demand -> the exact best portion of every expert.

The solver works on the dual problem: a price p_j for every expert such that, when every sample i takes
an expert of argmax_j S_ij - p_j, every expert gets its demand. Prices are found on a small sub-sample,
carried to an eight times larger one, and so on to all samples. On each of them:

1. ``_scan``: one pass gives every sample its best expert, and its gap to the second best;
2. ``_newton``: far from balance, Newton steps on the prices (1 and 2 alternate in ``_descend``);
3. ``_gather``: near balance, only samples of a small gap can change expert; the others are left out;
4. ``_exchange``: those gathered move along shortest paths over the k experts until demand is met.

The result is optimal for all samples if no two prices moved apart by more than the gap of the samples
left out; else more samples are gathered. Ties are common (rounded scores, repeated rows), so a tied
sample takes the expert that lacks most, and where near all is tied nothing is left out.

The kernels are plain Python until first use: then numba compiles them, and caches what it compiled.
"""

import math
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
    if math.isnan(objective):
        _raise_unusable(scores)
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
    kind = array.dtype.kind
    if kind not in "fiub" or (kind == "f" and not (array == np.floor(array)).all()):
        raise ValueError(f"demand counts samples, so it must be integers, got {array.tolist()}")
    if array.min() < 0:
        j = int(array.argmin())
        raise ValueError(f"demand must not be negative, got {array[j]} for expert {j}")
    if array.sum() != n:
        raise ValueError(
            f"not balanced: demand sums to {array.sum():g} over {k} experts, but there are {n} "
            "samples; scale demand to match"
        )
    return array.astype(np.int64, order="C")


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
    """Phase 1: what every sample takes at these prices; returns each surplus, and the objective."""
    n, k = scores.shape
    load, row = np.zeros(k, np.int64), np.empty(k)
    lack = np.full(k, -np.inf)  # the share of its demand that an expert still lacks
    scale = 0.0
    for j in range(k):
        scale = max(scale, abs(prices[j]))
        if demand[j] > 0:
            lack[j] = 1.0
    objective = part = 0.0
    for i in range(n):
        best, second, size, taken = -np.inf, -np.inf, 0.0, 0
        for j in range(k):  # without a branch
            value = np.float64(scores[i, j]) - prices[j]
            row[j] = value
            size += abs(value)
            lower = value if value < best else best
            second = lower if lower > second else second
            taken = j if value > best else taken
            best = value if value > best else best
        if not size < LARGEST:
            return load, np.nan
        tie = best - ROUNDING * (abs(best) + scale)
        if second >= tie and expert[i] >= 0 and row[expert[i]] >= tie:
            taken = expert[i]  # no worse than any other: stay
        elif second >= tie:  # among equals, the expert that lacks most
            most = -np.inf
            for j in range(k):
                other = lack[j] if row[j] >= tie else -np.inf
                taken = j if other > most else taken
                most = other if other > most else most
        expert[i] = taken
        gap[i] = best - second
        load[taken] += 1
        lack[taken] -= 1.0 / max(demand[taken], 1)
        part += scores[i, taken]
        if i % 256 == 255:  # sums of sums round less
            objective += part
            part = 0.0
    return load - demand, objective + part


def _quantile(gap, rank):
    """About the gap that ``rank`` samples do not exceed, from at most 512 of them."""
    step = max(1, gap.size // 512)
    some = gap[::step].copy()
    place = min(some.size - 1, rank // step + 1)
    return np.partition(some, place)[place]


def _newton(scores, prices, expert, gap, surplus, reach):
    """Phase 2: a Newton step on the prices.

    The dual is piecewise linear; its curvature is the density of samples nearly tied between two
    experts, which is counted over the samples of a gap up to ``reach``.
    """
    n, k = scores.shape
    matrix = np.zeros((k, k))
    for i in range(n):
        if gap[i] <= reach:
            a, b, second = expert[i], 0, -np.inf
            for j in range(k):
                value = scores[i, j] - prices[j] if j != a else -np.inf
                b = j if value > second else b
                second = value if value > second else second
            matrix[a, b] -= 0.5
            matrix[b, a] -= 0.5
            matrix[a, a] += 0.5
            matrix[b, b] += 0.5
    step = np.empty(k)
    for j in range(k):
        step[j] = surplus[j] * reach
        matrix[j, j] += 0.5  # so that an expert without near-ties has a finite step
    for a in range(k):  # Gaussian elimination; the matrix is diagonally dominant
        for b in range(a + 1, k):
            factor = matrix[b, a] / matrix[a, a]
            for c in range(a, k):
                matrix[b, c] -= factor * matrix[a, c]
            step[b] -= factor * step[a]
    for a in range(k - 1, -1, -1):
        for b in range(a + 1, k):
            step[a] -= matrix[a, b] * step[b]
        step[a] /= matrix[a, a]
    for j in range(k):
        prices[j] += min(max(step[j], -2.0 * reach), 2.0 * reach)


def _exchange(scores, prices, expert, surplus):
    """Phase 4: move the surplus along successive shortest paths; exact for the samples given.

    The arc a -> c over experts costs the least that a sample now at a would lose by going to c.
    Those minima are kept for blocks of samples, so that a move renews one block.
    """
    m, k = scores.shape
    size = max(k, int(np.sqrt(m)))
    blocks = (m + size - 1) // size
    near = np.full((k, blocks, k), np.inf)
    scale = 0.0
    for i in range(m):
        a, b = expert[i], i // size
        own = scores[i, a] - prices[a]
        scale = abs(own) if abs(own) > scale else scale
        for c in range(k):
            cost = own - (scores[i, c] - prices[c])
            near[a, b, c] = cost if cost < near[a, b, c] else near[a, b, c]
    cheapest = np.full((k, k), np.inf)
    left, gain = 0, 0.0
    for a in range(k):
        left += max(surplus[a], 0)
        scale = max(scale, abs(prices[a]))
        for b in range(blocks):
            for c in range(k):
                cost = near[a, b, c]
                cheapest[a, c] = cost if cost < cheapest[a, c] else cheapest[a, c]
    rounding = ROUNDING * scale
    rise = np.zeros(k)
    distance, parent, done = np.empty(k), np.empty(k, np.int64), np.empty(k, np.bool_)
    while left > 0:
        # Dijkstra from every expert with a surplus to the nearest one that lacks samples.
        for j in range(k):
            distance[j] = 0.0 if surplus[j] > 0 else np.inf
            parent[j] = -1
            done[j] = False
        while True:
            target, shortest = -1, np.inf
            for j in range(k):
                if not done[j] and distance[j] < shortest:
                    target, shortest = j, distance[j]
            if target < 0 or surplus[target] < 0:
                break
            done[target] = True
            for c in range(k):
                arc = cheapest[target, c] - rise[target] + rise[c]
                length = shortest + (arc if arc > rounding else 0.0)
                if not done[c] and length < distance[c]:
                    distance[c] = length
                    parent[c] = target
        if target < 0:
            break  # these samples cannot meet the demand
        for j in range(k):
            if done[j]:
                rise[j] += shortest - distance[j]
        tight = True
        while tight:  # ties: again the same path, as long as it costs nothing
            c = target
            while parent[c] >= 0:
                a = parent[c]
                wanted = cheapest[a, c]
                b = 0
                while near[a, b, c] != wanted:
                    b += 1
                first, last = b * size, min(b * size + size, m)
                i = first
                while (
                    expert[i] != a
                    or scores[i, a] - prices[a] - (scores[i, c] - prices[c]) != wanted
                ):
                    i += 1
                expert[i] = c
                gain += np.float64(scores[i, c]) - scores[i, a]
                own = scores[i, c] - prices[c]
                for j in range(k):
                    cost = own - (scores[i, j] - prices[j])
                    near[c, b, j] = cost if cost < near[c, b, j] else near[c, b, j]
                    cheapest[c, j] = cost if cost < cheapest[c, j] else cheapest[c, j]
                    near[a, b, j] = np.inf
                    cheapest[a, j] = np.inf
                for i in range(first, last):
                    if expert[i] == a:
                        own = scores[i, a] - prices[a]
                        for j in range(k):
                            cost = own - (scores[i, j] - prices[j])
                            near[a, b, j] = cost if cost < near[a, b, j] else near[a, b, j]
                for b in range(blocks):
                    for j in range(k):
                        cost = near[a, b, j]
                        cheapest[a, j] = cost if cost < cheapest[a, j] else cheapest[a, j]
                c = a
            source = c
            surplus[source] -= 1
            surplus[target] += 1
            left -= 1
            tight = surplus[source] > 0 and surplus[target] < 0
            c = target
            while tight and c != source:
                a = parent[c]
                tight = cheapest[a, c] - rise[a] + rise[c] <= rounding
                c = a
    for j in range(k):
        prices[j] += rise[j]
    return left, gain


def _descend(scores, demand, prices, expert, gap, few):
    """Phases 1 and 2 in turn, until few are left over or Newton steps no longer help."""
    n, k = scores.shape
    kept, least = prices.copy(), n + 1
    stuck = False
    while True:
        surplus, objective = _scan(scores, prices, demand, expert, gap)
        left = 0
        for j in range(k):
            left += max(surplus[j], 0)
        if left <= few or stuck or np.isnan(objective):
            return left, surplus, objective
        reach = _quantile(gap, 2 * left)
        if left >= least:  # the step did not help: take it back
            prices[:], stuck = kept, True
        elif reach <= 0.0:  # ties, where no density is
            return left, surplus, objective
        else:
            kept[:], least = prices, left
            _newton(scores, prices, expert, gap, surplus, reach)


def _gather(gap, budget, rows):
    """Phase 3: samples of the smallest gaps; returns how many, and the gap up to which."""
    n = gap.size
    limit = _quantile(gap, budget) if 2 * budget < n else np.inf
    count = 0
    for i in range(n):
        rows[count] = i
        count += gap[i] <= limit
        if count > 4 * budget:  # very many ties
            break
    return (n, np.inf) if 2 * budget >= n or count > 4 * budget else (count, limit)


def _balance(scores, demand, prices, expert, gap):
    """All phases, for one set of samples: meets the demand exactly, and improves the prices.

    Returns the objective, NaN if the scores cannot be used.
    """
    n, k = scores.shape
    trust = 8
    while True:
        few = max(n // 16, 8) if trust == 8 else n
        left, surplus, objective = _descend(scores, demand, prices, expert, gap, few)
        if left == 0 or np.isnan(objective):
            return objective
        before = prices.copy()
        rows = np.empty(n, np.int64)
        count, bound = _gather(gap, max(trust * left, 256), rows)
        trust *= 4
        if count == n:
            left, gain = _exchange(scores, prices, expert, surplus)
            if left > 0:  # no assert: pytest makes of it what numba cannot compile
                raise AssertionError("every sample was free to move, yet demand was not met")
            return objective + gain
        some, taken = np.empty((count, k), scores.dtype), np.empty(count, np.int64)
        part = -surplus
        for r in range(count):
            taken[r] = expert[rows[r]]
            part[taken[r]] += 1
            for j in range(k):
                some[r, j] = scores[rows[r], j]
        if count > 1024:
            old = taken.copy()
            _, surplus, _ = _descend(some, part, prices, taken, np.empty(count), count // 64)
            for r in range(count):
                objective += np.float64(some[r, taken[r]]) - some[r, old[r]]
        left, gain = _exchange(some, prices, taken, surplus)
        for r in range(count):
            expert[rows[r]] = taken[r]
        low, high = np.inf, -np.inf
        for j in range(k):
            low = min(low, prices[j] - before[j])
            high = max(high, prices[j] - before[j])
        if left == 0 and high - low <= bound:  # the samples left out keep their expert
            return objective + gain


def _solve(scores, demand):
    """Prices from small to large sub-samples, one sample of every stratum, then all samples."""
    n, k = scores.shape
    prices, expert, gap = np.zeros(k), np.empty(n, np.int64), np.empty(n)
    stride = max(1, n // 64)
    for i in range(0, n, stride):  # where to start: the mean lead over expert 0
        for j in range(k):
            prices[j] += (np.float64(scores[i, j]) - scores[i, 0]) / 64
    stride = 1
    while n // stride >= 8 * 96:
        stride *= 8
    while stride > 1:
        m = n // stride
        some, part = np.empty((m, k), scores.dtype), np.empty(k, np.int64)
        for r in range(m):
            i = r * stride + (r * 40503 >> 4) % stride  # any place: the data may be periodic
            for j in range(k):
                some[r, j] = scores[i, j]
        total = before = 0
        for j in range(k):
            total += demand[j]
            part[j] = total * m // n - before
            before += part[j]
        expert[:m] = -1
        _balance(some, part, prices, expert[:m], gap[:m])
        stride //= 8
    expert[:] = -1  # nothing taken yet
    objective = _balance(scores, demand, prices, expert, gap)
    mean = 0.0
    for j in range(k):
        mean += demand[j] * prices[j] / max(n, 1)
    for j in range(k):
        prices[j] -= mean
    return expert, prices, objective


_lock = threading.Lock()


def _compiled_solve() -> Any:
    """``_solve``, compiled. Importing numba takes a second, so that waits for the first use."""
    with _lock:
        if isinstance(_solve, types.FunctionType):
            import numba

            kernels = (_scan, _quantile, _newton, _exchange, _descend, _gather, _balance, _solve)
            for kernel in kernels:  # callees first: a kernel finds the ones it calls as globals
                try:
                    compiled = numba.njit(cache=True, nogil=True)(kernel)
                except RuntimeError:  # no folder to cache in can be written
                    compiled = numba.njit(nogil=True)(kernel)
                globals()[kernel.__name__] = compiled
    return _solve
