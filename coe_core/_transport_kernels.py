"""How the balanced transportation problem is solved: loops over samples and experts, compiled by numba.

The solver works on the dual problem: a price p_j for every expert such that, when every sample i takes
an expert of argmax_j S_ij - p_j, every expert gets its demand. Prices are found on a small sub-sample,
carried to an eight times larger one, and so on to all samples. On each of them:

1. ``scan``: one pass gives every sample its best expert, and its gap to the second best;
2. ``newton``: far from balance, Newton steps on the prices (1 and 2 alternate in ``descend``);
3. ``gather``: near balance, only samples of a small gap can change expert; the others are left out;
4. ``exchange``: those gathered move along shortest paths over the k experts until demand is met.

The result is optimal for all samples if no two prices moved apart by more than the gap of the samples
left out; else more samples are gathered. Ties are common (rounded scores, repeated rows), so a tied
sample takes the expert that lacks most, and where near all is tied nothing is left out.
"""

from typing import Any

import numpy as np

from coe_core._checks import LARGEST
from coe_core._compiled import Array, compiled

ROUNDING = 2.0**-50  # values closer than this, relative to their size, are tied


@compiled
def scan(
    scores: Array, prices: Array, demand: Array, expert: Array, gap: Array
) -> tuple[Array, float]:
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


@compiled
def quantile(gap: Array, rank: int) -> Any:
    """An estimate, from at most 1023 samples, of the gap that ``rank`` samples do not exceed."""
    step = max(1, gap.size // 512)
    sampled = gap[::step].copy()
    place = min(sampled.size - 1, rank // step + 1)
    low, high = 0, sampled.size - 1
    while low < high:  # Hoare: numpy.partition would be a quarter of all that is compiled
        pivot, i, j = sampled[place], low, high
        while i <= j:
            if sampled[i] < pivot:
                i += 1
            elif sampled[j] > pivot:
                j -= 1
            else:
                sampled[i], sampled[j] = sampled[j], sampled[i]
                i, j = i + 1, j - 1
        low, high = (i if j < place else low), (j if place < i else high)
    return sampled[place]


@compiled
def newton(
    scores: Array, prices: Array, expert: Array, gap: Array, surplus: Array, reach: float
) -> None:
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


@compiled
def arcs(scores: Array, prices: Array, expert: Array, size: int) -> tuple[Array, Array, float]:
    """What it costs at least to send a sample of a to c: for every block of ``size`` samples, and for all.

    Returns:
        The costs [k, blocks, k], their minima over the blocks [k, k], and the size of the values.
    """
    m, k = scores.shape
    blocks = (m + size - 1) // size
    near = np.full((k, blocks, k), np.inf)
    scale = 0.0
    for i in range(m):
        a, b = expert[i], i // size
        net = scores[i, a] - prices[a]
        scale = abs(net) if abs(net) > scale else scale
        for c in range(k):
            cost = net - (scores[i, c] - prices[c])
            near[a, b, c] = cost if cost < near[a, b, c] else near[a, b, c]
    cheapest = np.full((k, k), np.inf)
    for a in range(k):
        scale = max(scale, abs(prices[a]))
        for b in range(blocks):
            for c in range(k):
                cost = near[a, b, c]
                cheapest[a, c] = cost if cost < cheapest[a, c] else cheapest[a, c]
    return near, cheapest, scale


@compiled
def shortest_path(
    cheapest: Array, surplus: Array, rise: Array, rounding: float, parent: Array, work: Array
) -> int:
    """Dijkstra from every expert with a surplus to the nearest one that lacks samples.

    Returns:
        That expert, -1 if there is none; ``parent`` leads back from it, and ``rise`` is updated.
    """
    k, distance, done = len(surplus), work[0], work[1]  # done: 1.0 or 0.0
    for j in range(k):
        distance[j] = 0.0 if surplus[j] > 0 else np.inf
        parent[j] = -1
        done[j] = 0.0
    while True:
        target, shortest = -1, np.inf
        for j in range(k):
            if not done[j] and distance[j] < shortest:
                target, shortest = j, distance[j]
        if target < 0 or surplus[target] < 0:
            break
        done[target] = 1.0
        for c in range(k):
            arc = cheapest[target, c] - rise[target] + rise[c]
            length = shortest + (arc if arc > rounding else 0.0)
            if not done[c] and length < distance[c]:
                distance[c] = length
                parent[c] = target
    if target >= 0:
        for j in range(k):
            if done[j]:
                rise[j] += shortest - distance[j]
    return target


@compiled
def move(
    scores: Array,
    prices: Array,
    expert: Array,
    size: int,
    near: Array,
    cheapest: Array,
    a: int,
    c: int,
) -> Any:
    """Send the sample of a that loses least to c, and renew the costs of its block; returns the gain."""
    m, k = scores.shape
    blocks = near.shape[1]
    wanted = cheapest[a, c]
    b = 0
    while near[a, b, c] != wanted:
        b += 1
    first, last = b * size, min(b * size + size, m)
    i = first
    while expert[i] != a or scores[i, a] - prices[a] - (scores[i, c] - prices[c]) != wanted:
        i += 1
    expert[i] = c
    gain = np.float64(scores[i, c]) - scores[i, a]
    net = scores[i, c] - prices[c]
    for j in range(k):
        cost = net - (scores[i, j] - prices[j])
        near[c, b, j] = cost if cost < near[c, b, j] else near[c, b, j]
        cheapest[c, j] = cost if cost < cheapest[c, j] else cheapest[c, j]
        near[a, b, j] = np.inf
        cheapest[a, j] = np.inf
    for i in range(first, last):
        if expert[i] == a:
            net = scores[i, a] - prices[a]
            for j in range(k):
                cost = net - (scores[i, j] - prices[j])
                near[a, b, j] = cost if cost < near[a, b, j] else near[a, b, j]
    for b in range(blocks):
        for j in range(k):
            cost = near[a, b, j]
            cheapest[a, j] = cost if cost < cheapest[a, j] else cheapest[a, j]
    return gain


@compiled
def exchange(scores: Array, prices: Array, expert: Array, surplus: Array) -> tuple[int, Any]:
    """Phase 4: move the surplus along successive shortest paths; exact for the samples given.

    The arc a -> c over experts costs the least that a sample now at a would lose by going to c.
    Those minima are kept for blocks of samples, so that a move renews one block.
    """
    m, k = scores.shape
    size = max(k, int(np.sqrt(m)))
    near, cheapest, scale = arcs(scores, prices, expert, size)
    left, gain = 0, 0.0
    for a in range(k):
        left += max(surplus[a], 0)
    rounding = ROUNDING * scale
    rise, parent, work = np.zeros(k), np.empty(k, np.int64), np.empty((2, k))
    while left > 0:
        target = shortest_path(cheapest, surplus, rise, rounding, parent, work)
        if target < 0:
            break  # these samples cannot meet the demand
        tight = True
        while tight:  # ties: again the same path, as long as it costs nothing
            c = target
            while parent[c] >= 0:
                gain += move(scores, prices, expert, size, near, cheapest, parent[c], c)
                c = parent[c]
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


@compiled
def descend(
    scores: Array, demand: Array, prices: Array, expert: Array, gap: Array, few: int
) -> tuple[int, Array, float]:
    """Phases 1 and 2 in turn, until few are left over or Newton steps no longer help."""
    n, k = scores.shape
    kept, least = prices.copy(), n + 1
    stuck = False
    while True:
        surplus, objective = scan(scores, prices, demand, expert, gap)
        left = 0
        for j in range(k):
            left += max(surplus[j], 0)
        if left <= few or stuck or np.isnan(objective):
            return left, surplus, objective
        reach = quantile(gap, 2 * left)
        if left >= least:  # the step did not help: take it back
            prices[:], stuck = kept, True
        elif reach <= 0.0:  # ties, where no density is
            return left, surplus, objective
        else:
            kept[:], least = prices, left
            newton(scores, prices, expert, gap, surplus, reach)


@compiled
def gather(gap: Array, budget: int, rows: Array) -> tuple[int, Any]:
    """Phase 3: samples of the smallest gaps; returns how many, and the gap up to which."""
    n = gap.size
    bound = quantile(gap, budget) if 2 * budget < n else np.inf
    count = 0
    for i in range(n):
        rows[count] = i
        count += gap[i] <= bound
        if count > 4 * budget:  # very many ties
            break
    return (n, np.inf) if 2 * budget >= n or count > 4 * budget else (count, bound)


@compiled
def balance(scores: Array, demand: Array, prices: Array, expert: Array, gap: Array) -> Any:
    """All phases, for one set of samples: meets the demand exactly, and improves the prices.

    Returns the objective, NaN if the scores cannot be used.
    """
    n, k = scores.shape
    trust = 8
    while True:
        few = max(n // 16, 8) if trust == 8 else n
        left, surplus, objective = descend(scores, demand, prices, expert, gap, few)
        if left == 0 or np.isnan(objective):
            return objective
        before = prices.copy()
        rows = np.empty(n, np.int64)
        count, bound = gather(gap, max(trust * left, 256), rows)
        trust *= 4
        if count == n:
            left, gain = exchange(scores, prices, expert, surplus)
            if left > 0:  # no assert: pytest makes of it what numba cannot compile
                raise AssertionError("every sample was free to move, yet demand was not met")
            return objective + gain
        subset, taken = np.empty((count, k), scores.dtype), np.empty(count, np.int64)
        part = -surplus
        for r in range(count):
            taken[r] = expert[rows[r]]
            part[taken[r]] += 1
            for j in range(k):
                subset[r, j] = scores[rows[r], j]
        if count > 1024:
            old = taken.copy()
            _, surplus, _ = descend(subset, part, prices, taken, np.empty(count), count // 64)
            for r in range(count):
                objective += np.float64(subset[r, taken[r]]) - subset[r, old[r]]
        left, gain = exchange(subset, prices, taken, surplus)
        for r in range(count):
            expert[rows[r]] = taken[r]
        low, high = np.inf, -np.inf
        for j in range(k):
            low = min(low, prices[j] - before[j])
            high = max(high, prices[j] - before[j])
        if left == 0 and high - low <= bound:  # the samples left out keep their expert
            return objective + gain


@compiled
def solve(scores: Array, demand: Array) -> tuple[Array, Array, float]:
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
        subset, part = np.empty((m, k), scores.dtype), np.empty(k, np.int64)
        for r in range(m):
            i = r * stride + (r * 40503 >> 4) % stride  # any place: the data may be periodic
            for j in range(k):
                subset[r, j] = scores[i, j]
        total = before = 0
        for j in range(k):
            total += demand[j]
            part[j] = total * m // n - before
            before += part[j]
        expert[:m] = -1
        balance(subset, part, prices, expert[:m], gap[:m])
        stride //= 8
    expert[:] = -1  # nothing taken yet
    objective = balance(scores, demand, prices, expert, gap)
    mean = 0.0
    for j in range(k):
        mean += demand[j] * prices[j] / max(n, 1)
    for j in range(k):
        prices[j] -= mean
    return expert, prices, objective
