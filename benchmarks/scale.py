"""What a second process gains a training, and what the exact balance over all processes costs.

    python benchmarks/scale.py [RECIPE key=value ...] [--only training gather] [--rounds 3] [--out FOLDER]

training: the recipe's own path (Lightning, DDP on gloo) on generated images: one process of one thread, one
of two, and two processes of one thread with half of every batch each, in turns. Every step's portions are
counted over all processes and must meet the demand exactly.
gather: time of `gather_rows`, by which all processes learn all scores, for several sizes on 2 and 4 processes
of this machine. A ring's time is fitted to them and checked on sizes and processes that it was not fitted on.
Least times: other work only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import figures, save

from coe_core import even_demand, gather_rows
from coe_core.support.reports import markdown_table
from coe_core.threads import allowed_processors

SETTINGS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
FITTED, CHECKED = ((2, 256), (2, 16384), (4, 256), (4, 16384)), ((2, 4096), (4, 4096), (8, 256))
ASKED, EXPERTS, LARGEST = 1024, 16, 64  # samples of a step, experts, processes


class Clock(Callback):
    """Wall and processor time from the start of a step to that of the next, and the load of every expert."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.steps = self.gathers = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.load = torch.zeros(pl_module.recipe.num_experts).long()

        def count(_: Any, __: Any, portion: torch.Tensor) -> None:
            self.load += portion.bincount(minlength=len(self.load))

        pl_module.objective.partition.register_forward_hook(count)
        all_gather = dist.all_gather

        def counted(*given: Any, **options: Any) -> Any:
            self.gathers += 1
            return all_gather(*given, **options)

        dist.all_gather = counted

    def on_train_batch_start(self, *_: Any) -> None:
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.steps += 1


def train_here(recipe: str, overrides: list[str], steps: int, out: Path) -> None:
    """A training of one epoch in this process; rank 0 writes the times of its steps."""
    from vision.recipe import load_recipe
    from vision.training.dry_run import generated
    from vision.training.processes import processes
    from vision.training.train import train

    fixed = ["train.epochs=1", "data.workers=0", "data.path=null"]
    plan = load_recipe(recipe, [*overrides, *fixed])
    data = generated(plan, steps * plan.train.images_per_step)
    clock, team = Clock(), processes()
    train(plan, out / "run", data=data, watch=[clock])
    images = plan.train.images_per_step
    if team.count > 1:
        dist.all_reduce(clock.load)
    wanted = clock.steps * torch.from_numpy(even_demand(images, plan.num_experts))
    assert clock.load.tolist() == wanted.tolist(), f"{clock.load} is not {wanted}"
    if team.rank == 0:
        skip = clock.steps // 4  # the first steps compile and warm up
        times = {
            name: np.diff(values[skip:]).tolist()
            for name, values in (("wall", clock.wall), ("processor", clock.processor))
        }
        (out / "times.json").write_text(
            json.dumps({**times, "images": images, "gathers": clock.gathers / clock.steps})
        )


def start_together(chosen: argparse.Namespace, count: int, threads: int, folder: str) -> None:
    """So many processes that train, as torchrun starts them but without its own imports."""
    words = [chosen.recipe, *chosen.overrides, "--steps", chosen.steps, "--worker", folder]
    common = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if count > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        common |= {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(count)}
        common |= {"LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *map(str, words)],
            env={**common, **({"RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {})},
            stdout=subprocess.DEVNULL,
        )
        for r in range(count)
    ]
    if any([process.wait() for process in started]):  # a list: waits for all
        raise SystemExit("a training failed")


def training(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All settings in turns, each run a process (or two) of its own."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(chosen.rounds):
        for name, (count, threads) in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                start_together(chosen, count, threads, folder)
                found[name].append(json.loads((Path(folder) / "times.json").read_text()))
    rows = []
    for name, (count, threads) in SETTINGS.items():
        wall, processor = (
            [1e3 * statistics.median(times[clock]) for times in found[name]]
            for clock in ("wall", "processor")
        )
        first = [1e3 * statistics.median(t["wall"]) for t in found["1 process, 1 thread"]]
        spent = [1e3 * statistics.median(t["processor"]) for t in found["1 process, 1 thread"]]
        faster = statistics.median(a / b for a, b in zip(first, wall, strict=True))
        rows.append(
            {
                "training": name,
                "ms a step": statistics.median(wall),
                "images a second": 1e3 * found[name][0]["images"] / statistics.median(wall),
                "times as fast": faster,
                "efficiency": faster / (count * threads),
                "gathers a step": found[name][0]["gathers"],
                "processor ms, all": count * statistics.median(processor),
                "of one process's": statistics.median(
                    count * b / a for a, b in zip(spent, processor, strict=True)
                ),
            }
        )
    return rows


def time_gathers(rank: int, count: int, samples: Sequence[int], repeats: int, folder: str) -> None:
    """Seconds of every call of one process; rank 0 keeps them."""
    torch.set_num_threads(1)
    meeting = (Path(folder) / f"meeting-{count}").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    times: dict[int, list[float]] = {n: [] for n in samples}
    scores = {n: torch.randn(n // count, EXPERTS) for n in samples}
    for number in range(repeats + 20):
        for n in samples:
            dist.barrier()
            start = time.perf_counter()
            rows = gather_rows(scores[n]).rows
            if number >= 20:
                times[n].append(time.perf_counter() - start)
            assert len(rows) == n // count * count
    if rank == 0:
        (Path(folder) / f"{count}.json").write_text(json.dumps(times))
    dist.destroy_process_group()


def hops(count: int, samples: int, cores: float) -> tuple[float, float]:
    """Of a ring of processes: how often something is passed on, and the bytes that one of them passes on.

    Processes that share cores take turns: everything takes as many times as long as there are on a core.
    """
    turns = max(1.0, count / cores)
    return turns * (count - 1), turns * 4.0 * EXPERTS * samples * (count - 1) / count


def gather(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Measured, and as the model fitted at two counts of processes says; then the model alone."""
    least: dict[tuple[int, int], float] = {}
    median: dict[tuple[int, int], float] = {}
    sizes = {n for _, n in (*FITTED, *CHECKED)} | {ASKED}
    with tempfile.TemporaryDirectory() as folder:
        for count in sorted({count for count, _ in (*FITTED, *CHECKED)}):
            given = (count, sorted(sizes), chosen.repeats, folder)
            torch.multiprocessing.start_processes(time_gathers, given, count, start_method="fork")
            for n, times in json.loads((Path(folder) / f"{count}.json").read_text()).items():
                least[count, int(n)] = figures(times).least
                median[count, int(n)] = figures(times).median
    places = np.array([hops(*place, allowed_processors()) for place in FITTED])
    seconds = np.array([least[place] for place in FITTED])
    # Relative errors: a small gather counts as much as a large one.
    (latency, per_byte), *_ = np.linalg.lstsq(places / seconds[:, None], np.ones(len(seconds)))
    print(f"latency {1e6 * latency:.0f} us a hop, {1e-9 / per_byte:.2f} GB/s", flush=True)
    rows = []
    measured = sorted(least, key=lambda place: (place[1], place[0]))
    for count, n in [*measured, *((c, ASKED) for c in (16, 32, LARGEST))]:
        seen = least.get((count, n))
        first, moved = hops(count, n, allowed_processors() if seen else count)
        said = 1e3 * (latency * first + per_byte * moved)
        place = (count, n)
        rows.append(
            {
                "processes": count,
                "samples": n,
                "use": "fitted" if place in FITTED else "checked" if seen else "predicted",
                "measured, least ms": seen and 1e3 * seen,
                "measured, median ms": seen and 1e3 * median[place],
                "model, ms": said,
                "model / least": seen and said / (1e3 * seen),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="cifar10")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--only", nargs="+", choices=["training", "gather"])
    parser.add_argument("--steps", type=int, default=40, help="of a training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=300, help="of a gather")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        train_here(chosen.recipe, chosen.overrides, chosen.steps, chosen.worker)
        return
    for part, measured in (("training", training), ("gather", gather)):
        if part in (chosen.only or (part,)):
            rows = measured(chosen)
            cells = [
                [
                    "" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)
                    for v in r.values()
                ]
                for r in rows
            ]
            print(markdown_table(list(rows[0]), cells), end="", flush=True)
            if chosen.out:
                save(f"scale_{part}", rows, chosen.out)


if __name__ == "__main__":
    main()
