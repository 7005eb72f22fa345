"""Time of s small networks against the wide one they came from: inference and training, batch by batch.

    python benchmarks/divide.py [NETWORK key=value ...] [--s 2 4] [--batch 1 16 64 256] [--cores 2]

Ways to run the s: one after another (loop), their layers side by side as grouped convolutions, stacked
parameters under torch.func.vmap and, on a CPU, a thread or a process for each network, with one core each;
the other ways use all the cores given. With several cores the wide network runs on one as well, and the
faster of both is what all are compared with: threads that share a small network cost more than they bring.
All ways take turns, so that drift hits all alike; each network has its own images. Milliseconds are medians
over rounds, and their 95th percentile; on CUDA where there is one, else on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from measure import CLOCKS, figures, in_turns
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.profiler import ProfilerActivity, profile

from coe_core.support.files import write_text
from coe_core.support.memory import keep_freed_memory
from coe_core.support.reports import markdown_table
from vision.divide.division import divide_network
from vision.divide.report import parse_options
from vision.networks.network import Network, build_network
from vision.networks.side_by_side import Together, run_side_by_side
from vision.precision import autocast, choose_precision

HEADINGS = ("s", "batch", "mode", "way", "ms", "p95 ms", "of the wide network's time", "chosen")
WIDE_ON_ONE = "wide, one thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="small_resnet")
    parser.add_argument("options", nargs="*", metavar="key=value")
    parser.add_argument("--s", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring, per line at most")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--cores", type=int, help="threads of the ways that share them (default: all)"
    )
    parser.add_argument("--processes", action="store_true", help="a process for each network, too")
    parser.add_argument(
        "--clock", choices=["wall", "process"], default="wall", help="process: on a busy machine"
    )
    parser.add_argument("--profile", action="store_true", help="say what time is spent in instead")
    parser.add_argument(
        "--rates", action="store_true", help="say how fast a convolution of few channels is instead"
    )
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    if arguments.clock == "process" and (arguments.processes or arguments.cores != 1):
        parser.error("processor time says nothing of several cores: --cores 1, no --processes")
    if arguments.cores:
        torch.set_num_threads(arguments.cores)
    keep_freed_memory()  # as the commands do
    if arguments.rates:
        rates(CLOCKS[arguments.clock])
        return
    options = parse_options(arguments.options)
    if not options and arguments.network == "small_resnet":
        options = {"width": 16, "stem_stride": 2}
    network = Network(arguments.network, options=options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(arguments.precision)
    print(f"{device}, {torch.get_num_threads()} thread(s), {precision}, torch {torch.__version__}")
    lines: list[list[str]] = []
    print(markdown_table(HEADINGS, [], left=()), end="")
    for s in arguments.s:
        division = divide_network(
            network, s, image_size=arguments.size, tolerance=arguments.tolerance
        )
        for batch in arguments.batch:
            for line in measure(network, division.divided, s, batch, arguments, device, precision):
                lines.append(line)
                print(f"| {' | '.join(line)} |", flush=True)
        total, whole = division.total, division.undivided_size
        print(
            f"s={s}: {division.divided.options}, {total.macs / 1e6:.2f}M multiply-adds together, "
            f"{whole.macs / 1e6:.2f}M undivided"
        )
    if arguments.out:
        write_text(arguments.out, markdown_table(HEADINGS, lines, left=()))


def measure(
    wide: Network,
    divided: Network,
    s: int,
    batch: int,
    arguments: argparse.Namespace,
    device: torch.device,
    precision: str,
) -> list[list[str]]:
    torch.manual_seed(0)

    def build(network: Network) -> nn.Module:
        return build_network(network, 10).to(device, memory_format=torch.channels_last)

    undivided, members = build(wide), nn.ModuleList(build(divided) for _ in range(s))
    shape = (3, arguments.size, arguments.size)
    together = Together(members, shape)
    views = [
        torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
        for _ in members
    ]
    ways, skeleton = ways_of(undivided, members, together, views)
    rows = []
    with ExitStack() as stack:
        images = (batch, *shape)
        alone = own_workers(stack, divided, s, images, arguments.processes, precision)
        if torch.get_num_threads() > 1:
            alone[WIDE_ON_ONE] = own_workers(stack, wide, 1, images, False, precision)["threads"]
        for mode in ("inference", "training"):
            for network in (undivided, members, skeleton):
                network.train(mode == "training")
            if mode == "training" and batch == 1:
                continue  # normalisation over a batch of one
            if mode == "inference" and together.wide is not None:
                copied = together.inference_copy()
                ways["side by side"] = lambda copied=copied: copied(torch.cat(views, 1))
            calls = {name: step(run, mode, device, precision) for name, run in ways.items()}
            if device.type == "cpu":
                calls |= {name: partial(at_once, pools, mode) for name, pools in alone.items()}
            settle = torch.cuda.synchronize if device.type == "cuda" else None
            if arguments.profile:
                profiled({name: calls[name] for name in ways}, f"s={s}, batch {batch}, {mode}")
                continue
            times = in_turns(
                calls,
                seconds=arguments.seconds,
                clock=CLOCKS[arguments.clock],
                warm_up=2,
                settle=settle,
            )
            chosen = "side by side" if together.side_by_side(batch) else "loop"
            rows += lines_of(times, (str(s), str(batch), mode), chosen)
    return rows


def ways_of(
    undivided: nn.Module, members: nn.ModuleList, together: Together, views: list[Tensor]
) -> tuple[dict[str, Callable[[], Tensor]], nn.Module]:
    """Forward passes by the way's name, and the module whose mode vmap's takes."""
    skeleton = copy.deepcopy(members[0]).to("meta")
    stacked = stack_module_state(list(members))
    images = torch.stack(views, 1)

    def call_member(parameters: dict, buffers: dict, x: Tensor) -> Tensor:
        return functional_call(skeleton, (parameters, buffers), (x,))

    vmapped = torch.vmap(call_member, in_dims=(0, 0, 1), out_dims=1, randomness="different")
    ways: dict[str, Callable[[], Tensor]] = {
        "wide": lambda: undivided(views[0]),
        "loop": lambda: torch.stack([m(x) for m, x in zip(members, views, strict=True)], 1),
        "side by side": lambda: run_side_by_side(together.wide, members, views),
        "vmap": lambda: vmapped(*stacked, images),
    }
    if together.wide is None:
        del ways["side by side"]
    return ways, skeleton


def lines_of(times: dict[str, list[float]], place: Sequence[str], chosen: str) -> list[list[str]]:
    """A line of the table for each way."""
    lines = []
    base = min(figures(times[name]).median for name in ("wide", WIDE_ON_ONE) if name in times)
    for name, values in times.items():
        median, p95, _ = figures(values)
        shown = (f"{1e3 * median:.2f}", f"{1e3 * p95:.2f}", f"{median / base:.2f}")
        lines.append([*place, name, *shown, "yes" * (name == chosen)])
    return lines


def profiled(calls: Mapping[str, Callable[[], None]], title: str, most: int = 6) -> None:
    """What each way's time is spent in, by operator, how many operators it calls, and for how long."""
    for name, call in calls.items():
        call()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            call()
        own = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
        total = sum(e.self_cpu_time_total for e in own)
        shares = [f"{e.key} {100 * e.self_cpu_time_total / total:.0f}%" for e in own[:most]]
        count = sum(e.count for e in own)
        print(f"{title}, {name}: {total / 1e3:.2f} ms, {count} operators; {', '.join(shares)}")


def rates(clock: Callable[[], float], batch: int = 16, side: int = 16) -> None:
    """Multiply-adds a second of a 3 x 3 convolution in fp32, by its channels."""
    calls = {}
    for channels in (8, 11, 16, 22, 32, 45, 64, 128):
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layer = layer.to(memory_format=torch.channels_last)
        images = torch.randn(batch, channels, side, side).contiguous(
            memory_format=torch.channels_last
        )
        calls[str(channels)] = partial(layer, images)
    with torch.inference_mode():
        times = in_turns(calls, rounds=100, clock=clock, warm_up=5)
    for name, values in times.items():
        macs = batch * side**2 * 9 * int(name) ** 2
        print(
            f"{name} channels: {macs / figures(values).median / 1e9:.1f} G multiply-adds a second"
        )


# A thread or a process for each network: what it holds is there once, and it is told which step to take.

_own = threading.local()


def hold(network: Network, shape: Sequence[int], precision: str) -> None:
    """Build a worker's own network and images; it computes on one core."""
    torch.set_num_threads(1)
    built = build_network(network, 10).to(memory_format=torch.channels_last)
    images = torch.randn(*shape).contiguous(memory_format=torch.channels_last)
    device = torch.device("cpu")
    _own.steps = {
        mode: step(lambda: built(images), mode, device, precision)
        for mode in ("inference", "training")
    }
    _own.network = built


def take_step(mode: str) -> None:
    _own.network.train(mode == "training")
    _own.steps[mode]()


def own_workers(
    stack: ExitStack,
    network: Network,
    s: int,
    shape: Sequence[int],
    processes: bool,
    precision: str,
) -> dict[str, list[Executor]]:
    """s workers of one thread each, by kind."""
    given = {"initializer": hold, "initargs": (network, shape, precision)}
    pools: dict[str, list[Executor]] = {
        "threads": [ThreadPoolExecutor(1, **given) for _ in range(s)]
    }
    if processes:
        # Not forked from this process, whose threads would be missing; what is imported is so once.
        context = multiprocessing.get_context("forkserver")
        pools["processes"] = [ProcessPoolExecutor(1, context, **given) for _ in range(s)]
    for pool in (pool for some in pools.values() for pool in some):
        stack.enter_context(pool)
    return pools


def at_once(pools: Sequence[Executor], mode: str) -> None:
    """One step of every worker."""
    for done in [pool.submit(take_step, mode) for pool in pools]:
        done.result()


def step(
    run: Callable[[], Tensor], mode: str, device: torch.device, precision: str
) -> Callable[[], None]:
    """One forward pass, or one with its backward."""

    def infer() -> None:
        with torch.inference_mode(), autocast(device, precision):
            run()

    def train() -> None:
        with autocast(device, precision):
            logits = run()
        logits.float().logsumexp(-1).sum().backward()

    return infer if mode == "inference" else train


if __name__ == "__main__":
    main()
