"""Is the saving real? Time of a Collaboration of Experts beside what people would pick instead.

    python benchmarks/inference.py [--modes eager onnxruntime] [--run RUN] [--out FOLDER] [--quick]

Without --run: ImageNet-sized networks of timm with untrained weights, at one image size, 1,000
classes. Every network computes in full; only *who exits* is drawn at the stated rate instead of being
decided by the untrained delegator. With --run: the networks of a trained run on its test images, with its
own thresholds, beside its controls, the cascade of two of them and the mean of its experts, with accuracy;
*times as fast* compares with the fastest of the plain networks that are at least as accurate.

All systems run in turns, batch by batch, so that drift of the machine hits all alike. One thread.
``--clock thread`` takes the time the thread had on its processor, for a machine that is shared.
*Efficiency* is (time per MAC of the largest plain network) / (time per MAC of the system): 1 means
that a multiply-add saved is time saved. *Overhead* is the time of the team / the time of the dense
runs it consists of (delegator on the batch, each expert on its group, gathered beforehand).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from inference_systems import MODES, System, laid_out, trained, untrained
from measure import CLOCKS, figures, median_ratio, save
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROUNDS = {1: 12, 8: 9, 64: 5, 256: 3}  # by batch size
SINGLES = 8  # images a round at batch 1


@torch.inference_mode()
def measure(
    systems: list[System], images: Tensor, batch: int, rounds: int, clock: Callable, mode: str
) -> dict[str, list[float]]:
    """Seconds of every call, by system and by "NAME / parts"; all in turns."""
    starts = range(0, len(images) - batch + 1, batch)
    per_round = min(SINGLES, len(starts)) if batch == 1 else 1
    times: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object], counted: bool) -> None:
        begin = clock()
        call()
        if counted:
            times.setdefault(name, []).append(clock() - begin)

    for number in range(-1, rounds):  # the first is not counted
        for system in systems:
            for turn in range(per_round):
                begin = starts[(max(number, 0) * per_round + turn) % len(starts)]
                rows = slice(begin, begin + batch)
                x = laid_out(images[rows], mode)
                calls = [(system.name, lambda x=x, r=rows, s=system: s.predict(x, r))]
                if system.parts is not None:
                    calls.append((f"{system.name} / parts", system.parts(x, rows)))
                # Whoever runs second finds warm caches: take turns at that too.
                for name, call in calls if (number + turn) % 2 else reversed(calls):
                    timed(name, call, number >= 0)
    return times


def report(
    systems: list[System], times: dict[str, list[float]], mode: str, batch: int
) -> list[dict]:
    """One row a system."""
    plain = [s for s in systems if s.name.startswith("plain")]
    reference = max(plain, key=lambda s: s.macs)

    def seconds(name: str) -> list[float]:
        """Seconds of a call, on average over each round: single images take one of two routes."""
        width = SINGLES if batch == 1 else 1
        taken = times[name]
        return [statistics.mean(taken[i : i + width]) for i in range(0, len(taken), width)]

    def per_mac(system: System) -> float:
        return statistics.median(seconds(system.name)) / (batch * system.macs)

    def times_as_fast(system: System) -> float | None:
        """As the fastest plain network of at least its accuracy; None: none of them has it."""
        if system.accuracy is None:
            return None
        able = [seconds(p.name) for p in plain if p.accuracy >= system.accuracy]
        seconds_of_system = statistics.median(seconds(system.name))
        return min(map(statistics.median, able)) / seconds_of_system if able else None

    rows = []
    for system in systems:
        taken = figures(times[system.name])
        parts = f"{system.name} / parts" if system.parts is not None else None
        rows.append(
            {
                "mode": mode,
                "batch": batch,
                "system": system.name,
                "top1": system.accuracy,
                "mmacs": system.macs / 1e6,
                "median_ms": 1e3 * taken.median,
                "p95_ms": 1e3 * taken.p95,
                "images_per_s": batch / statistics.median(seconds(system.name)),
                "efficiency": per_mac(reference) / per_mac(system),
                "times_as_fast": times_as_fast(system),
                "overhead": median_ratio(seconds(system.name), seconds(parts)) if parts else None,
                "calls": len(times[system.name]),
            }
        )
    return rows


def shown(rows: list[dict], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in ("mode", "system") else "right")
    for row in rows:
        table.add_row(
            *(
                "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v)
                for v in row.values()
            )
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager", "onnxruntime"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--run", help="a trained run instead of untrained networks")
    parser.add_argument("--size", type=int, default=96, help="side of the images")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, help="instead of fewer for larger batches")
    parser.add_argument("--out", help="folder for inference.csv and inference.json")
    parser.add_argument("--quick", action="store_true", help="one round of batches 1 and 8")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = CLOCKS[chosen.clock]
    batches = [1, 8] if chosen.quick else chosen.batches
    console, rows = Console(width=150), []
    for mode in chosen.modes:
        with torch.inference_mode():
            if chosen.run:
                systems, images = trained(mode, chosen.run)
            else:
                images = laid_out(torch.randn(max(batches), 3, chosen.size, chosen.size), mode)
                systems = untrained(mode, images)
        for batch in batches:
            rounds = 1 if chosen.quick else chosen.rounds or ROUNDS.get(batch, 5)
            times = measure(systems, images, min(batch, len(images)), rounds, clock, mode)
            reported = report(systems, times, mode, min(batch, len(images)))
            console.print(shown(reported, f"{mode}, batch {batch}"))
            rows += reported
    if chosen.out:
        save("inference", rows, Path(chosen.out), options=vars(chosen))


if __name__ == "__main__":
    main()
