"""What the benchmarks here share: calls that take turns, robust figures, a description of the machine."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from coe_core.support.files import write_text
from coe_core.support.provenance import provenance
from coe_core.support.reports import csv_text

CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time, "process": time.process_time}


class Figures(NamedTuple):
    """Figures of the times of one call."""

    median: float
    p95: float
    least: float


def figures(times: Iterable[float]) -> Figures:
    ordered = sorted(times)
    last = len(ordered) - 1
    return Figures(statistics.median(ordered), ordered[min(last, round(0.95 * last))], ordered[0])


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of two calls that took turns, turn by turn, so that drift cancels."""
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
    settle: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, all in turns, so that drift of the machine hits all alike.

    Args:
        calls: by name.
        rounds: how many times each is called; None: for so long as ``seconds`` last, five at least.
        seconds: of measuring, for each call.
        clock: see `CLOCKS`: "thread" and "process" leave out what other work takes.
        warm_up: rounds that are not counted.
        settle: called within the time measured, such as to wait for a device.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + (seconds or 0) * len(calls)
    round_number = 0
    while True:
        for name, call in calls.items():
            start = clock()
            call()
            if settle is not None:
                settle()
            if round_number >= warm_up:
                times[name].append(clock() - start)
        round_number += 1
        counted = round_number - warm_up
        if counted >= (rounds if rounds is not None else 5) and time.perf_counter() >= end:
            return times


def machine(*packages: str, **more: Any) -> dict[str, Any]:
    """Where and how a benchmark ran: provenance, threads, and the load that the machine was under."""
    import torch

    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return provenance(
        ["torch", *packages], threads=torch.get_num_threads(), load_average=load, **more
    )


def save(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    packages: Iterable[str] = (),
    **more: Any,
) -> None:
    """NAME.csv with the rows, NAME.json with what they depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    headings = list(rows[0])
    write_text(folder / f"{name}.csv", csv_text(headings, [list(row.values()) for row in rows]))
    about = machine(*packages, **more)
    write_text(folder / f"{name}.json", json.dumps(about, indent=2, default=str) + "\n")
