"""How fast and how exact the balanced transportation solver is, beside POT's network simplex.

    python benchmarks/transport.py [--quick] [--clock thread] [--out FOLDER]

For every size and kind of scores: the median time over several instances of ours, of ``ot.emd`` on
the same instances in turn, and of ``np.argmax(scores, 1)``, which reads every score once and so is
the floor; the largest duality gap; and the largest relative difference of the two objectives. All run
on one thread. Five minutes in full, seconds with --quick.
"""

import argparse
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ot
import torch
from measure import CLOCKS, save
from rich.console import Console
from rich.table import Table

from coe_core import Partitioner, balanced_assignment, even_demand
from coe_core.support.provenance import processor
from coe_core.transport import duality_gap

SIZES = ((128, 4), (1024, 16), (8192, 16), (65536, 16), (1281167, 16))
KINDS = ("random", "skewed", "duplicated", "nearly tied", "all equal")
EMD_LIMIT = 100_000  # samples; above, ot.emd would take minutes and gigabytes


def make_scores(kind: str, n: int, k: int, seed: int) -> np.ndarray:
    """One instance, float32, except where float32 cannot hold the near-ties."""
    rng = np.random.default_rng(seed)
    if kind == "all equal":
        return np.full((n, k), -np.log(k), np.float32)
    if kind == "nearly tied":
        return -np.log(k) + 1e-8 * rng.standard_normal((n, k))
    logits = rng.standard_normal((8 if kind == "duplicated" else n, k))
    if kind == "skewed":
        logits[:, : max(1, k // 8)] += 4
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    if kind == "duplicated":
        scores = scores[rng.integers(0, 8, n)]
    return scores.astype(np.float32)


def timed(
    function: Callable[..., Any], *arguments: Any, clock: Callable[[], float]
) -> tuple[float, Any]:
    """Milliseconds, and the result."""
    start = clock()
    result = function(*arguments)
    return 1e3 * (clock() - start), result


def measure(
    kind: str, n: int, k: int, repeats: int, emd_repeats: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """One row of the table."""
    demand = even_demand(n, k)
    ours, emd, floor, gaps, differences = [], [], [], [], []
    scores = make_scores(kind, n, k, 0)
    for repeat in range(repeats):
        if n <= EMD_LIMIT or repeat == 0:  # an instance of the largest size takes seconds to make
            scores = make_scores(kind, n, k, repeat)
        milliseconds, best = timed(balanced_assignment, scores, demand, clock=clock)
        ours.append(milliseconds)
        floor.append(timed(np.argmax, scores, 1, clock=clock)[0])
        gaps.append(duality_gap(scores, best))
        if n <= EMD_LIMIT and repeat < emd_repeats:
            cost = -scores.astype(np.float64)
            mass = np.ones(n), demand.astype(np.float64)
            milliseconds, plan = timed(
                lambda: ot.emd(*mass, cost, numItermax=100_000_000),  # noqa: B023
                clock=clock,
            )
            emd.append(milliseconds)
            optimum = -(plan * cost).sum()
            differences.append(abs(best.objective - optimum) / abs(optimum))
    row = {
        "n": n,
        "k": k,
        "kind": kind,
        "ours_ms": statistics.median(ours),
        "ours_min_ms": min(ours),
        "ours_p95_ms": float(np.quantile(ours, 0.95)),
        "argmax_ms": statistics.median(floor),
        "emd_ms": statistics.median(emd) if emd else None,
        "emd_over_ours": statistics.median(emd) / statistics.median(ours) if emd else None,
        "duality_gap": max(gaps),
        "objective_difference": max(differences) if differences else None,
        "repeats": repeats,
        "emd_repeats": len(emd),
    }
    return row


def from_last_prices(n: int, k: int, batches: int) -> dict[str, Any]:
    """Batches of a training whose scores move slowly: from nothing, and from the prices of the batch before.

    Scores are log-probabilities of a linear selection of 32 features whose weights take a step of a random
    walk, a tenth of their first size, before every batch; processor time of the thread.
    """
    rng = np.random.default_rng(0)
    weight, prices, demand = rng.standard_normal((32, k)), None, even_demand(n, k)
    cold, warm = [], []
    for _ in range(batches):
        weight += 0.1 * rng.standard_normal(weight.shape)
        logits = rng.standard_normal((n, 32)) @ weight / 5
        scores = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
        start = time.thread_time()
        best = balanced_assignment(scores, demand)
        middle = time.thread_time()
        if prices is not None:
            moved = balanced_assignment(scores, demand, prices)
            warm.append(1e3 * (time.thread_time() - middle))
            cold.append(1e3 * (middle - start))
            assert np.isclose(moved.objective, best.objective, rtol=1e-12)
        prices = best.prices
    return {
        "n": n,
        "k": k,
        "from_nothing_ms": statistics.median(cold),
        "from_last_prices_ms": statistics.median(warm),
        "ratio": statistics.median(a / b for a, b in zip(cold, warm, strict=True)),
    }


def around_the_solver(n: int, k: int, repeats: int) -> dict[str, Any]:
    """What else a call costs: other dtypes, the way a training takes, and the memory that it allocates.

    Processor time of the thread, in turns on the same scores. int32 is brought to float64 by one copy.
    """
    demand, partition = even_demand(n, k), Partitioner(k)
    scores = [make_scores("random", n, k, seed) for seed in range(10)]
    tensors = [torch.from_numpy(some) for some in scores]
    whole = [np.round(1000 * some).astype(np.int32) for some in scores]
    exact = [some.astype(np.float64) for some in whole]
    calls: dict[str, Callable[[int], Any]] = {
        "float32": lambda i: balanced_assignment(scores[i], demand),
        "float64 of whole numbers": lambda i: balanced_assignment(exact[i], demand),
        "int32": lambda i: balanced_assignment(whole[i], demand),
        "of it copying": lambda i: whole[i].astype(np.float64),
        "in training": lambda i: partition(tensors[i]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats):
        for name, call in calls.items():
            times[name].append(timed(call, number % len(scores), clock=time.thread_time)[0])
    tracemalloc.start()
    balanced_assignment(scores[0], demand)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    medians = {
        name: 1e3 * statistics.median(values[len(scores) :]) for name, values in times.items()
    }
    return {"n": n, "k": k, **medians, "allocated KiB": peak / 1024}


def shown(rows: list[dict], setting: str) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title="Balanced transportation, median ms", caption=setting)
    headers = (
        "n x k",
        "kind",
        "ours",
        "min",
        "p95",
        "argmax",
        "ot.emd",
        "emd / ours",
        "gap",
        "diff",
    )
    for header in headers:
        table.add_column(header, justify="left" if header in headers[:2] else "right")
    for row in rows:
        with_emd = row["emd_ms"] is not None
        table.add_row(
            f"{row['n']} x {row['k']}",
            row["kind"],
            *(
                f"{row[name]:.3f}"
                for name in ("ours_ms", "ours_min_ms", "ours_p95_ms", "argmax_ms")
            ),
            f"{row['emd_ms']:.2f}" if with_emd else "skipped",
            f"{row['emd_over_ours']:.0f}" if with_emd else "-",
            f"{row['duality_gap']:.0e}",
            f"{row['objective_difference']:.0e}" if with_emd else "-",
            end_section=row["kind"] == KINDS[-1],
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats")
    parser.add_argument("--clock", choices=["wall", "thread"], default="wall", help="of the table")
    parser.add_argument("--out", type=Path, help="folder for transport.csv")
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "pot"))
    setting = f"{processor()}, python {platform.python_version()}, {packages}"

    for dtype in (np.float32, np.float64):  # compile before timing
        balanced_assignment(np.eye(4, dtype=dtype))
    rows = []
    for n, k in SIZES[:3] if arguments.quick else SIZES:
        repeats = int(np.clip(1_000_000 // n, 7, 100)) // (5 if arguments.quick else 1)
        emd_repeats = 2 if n > 10_000 else min(repeats, 20)
        for kind in KINDS:
            rows.append(measure(kind, n, k, max(repeats, 3), emd_repeats, CLOCKS[arguments.clock]))

    console = Console(width=120)
    console.print(shown(rows, setting))
    for n, k in sorted({(row["n"], row["k"]) for row in rows}):
        ratios = [row["emd_over_ours"] for row in rows if row["n"] == n]
        if None in ratios:
            console.print(f"{n} x {k}: ot.emd skipped, it would take minutes and gigabytes")
        else:
            console.print(
                f"{n} x {k}: {statistics.median(ratios):.0f} times faster than ot.emd (median)"
            )
    console.print(
        "gap: largest duality gap. diff: largest relative difference of the objective from ot.emd's."
    )
    moving = [from_last_prices(n, k, 60) for n, k in SIZES[: 3 if arguments.quick else 4]]
    for row in moving:
        console.print(
            f"{row['n']} x {row['k']}, scores that move slowly: {row['from_nothing_ms']:.3f} ms, from the "
            f"last prices {row['from_last_prices_ms']:.3f} ms, {row['ratio']:.2f} times as fast"
        )
    around = [around_the_solver(n, k, 110) for n, k in SIZES[:3]]
    for row in around:
        console.print(", ".join(f"{name} {value:.4g}" for name, value in row.items()) + " (us)")
    if arguments.out:
        save("transport_around", around, arguments.out, packages=["numpy", "numba"])
        save("transport_moving", moving, arguments.out, packages=["numpy", "numba"])
        save("transport", rows, arguments.out, packages=["numpy", "numba", "pot"])


if __name__ == "__main__":
    main()
