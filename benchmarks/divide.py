"""Time of s small networks against the wide one they came from: inference and training, batch by batch.

    python benchmarks/divide.py [NETWORK key=value ...] [--s 2 4] [--size 32] [--batch 1 16 64 256]

Three ways to run the s: one after another (loop), their layers side by side as grouped convolutions, and
stacked parameters under torch.func.vmap. All ways take turns, so that drift hits all alike; each network
has its own images. Milliseconds are medians over rounds, and their 95th percentile; on CUDA where there
is one, else on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from vision.divide.division import divide_network, parse_options
from vision.networks.network import Network, build_network
from vision.networks.side_by_side import Together, run_side_by_side
from vision.precision import autocast, choose_precision
from vision.run import write_text

HEADINGS = ("s", "batch", "mode", "way", "ms", "p95 ms", "of the wide network's time", "chosen")


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
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    options = parse_options(arguments.options)
    if not options and arguments.network == "small_resnet":
        options = {"width": 16, "stem_stride": 2}
    network = Network(arguments.network, options=options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(arguments.precision)
    print(f"{device}, {torch.get_num_threads()} thread(s), {precision}, torch {torch.__version__}")
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + " ---: |" * len(HEADINGS)]
    print(*lines, sep="\n")
    for s in arguments.s:
        division = divide_network(
            network, s, image_size=arguments.size, tolerance=arguments.tolerance
        )
        for batch in arguments.batch:
            for line in measure(network, division.divided, s, batch, arguments, device, precision):
                lines.append(f"| {' | '.join(line)} |")
                print(lines[-1], flush=True)
        total, whole = division.total, division.undivided_size
        print(
            f"s={s}: {division.divided.options}, {total.macs / 1e6:.2f}M multiply-adds together, "
            f"{whole.macs / 1e6:.2f}M undivided"
        )
    if arguments.out:
        write_text(arguments.out, "\n".join(lines) + "\n")


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
    skeleton = copy.deepcopy(members[0]).to("meta")
    stacked = stack_module_state(list(members))
    images = torch.stack(views, 1)

    def one(parameters: dict, buffers: dict, x: Tensor) -> Tensor:
        return functional_call(skeleton, (parameters, buffers), (x,))

    vmapped = torch.vmap(one, in_dims=(0, 0, 1), out_dims=1, randomness="different")
    ways: dict[str, Callable[[], Tensor]] = {
        "wide": lambda: undivided(views[0]),
        "loop": lambda: torch.stack([m(x) for m, x in zip(members, views, strict=True)], 1),
        "side by side": lambda: run_side_by_side(together.wide, members, views),
        "vmap": lambda: vmapped(*stacked, images),
    }
    if together.wide is None:
        del ways["side by side"]
    rows = []
    for mode in ("inference", "training"):
        for network in (undivided, members, skeleton):
            network.train(mode == "training")
        if mode == "training" and batch == 1:
            continue  # normalisation over a batch of one
        if mode == "inference" and together.wide is not None:
            copied = together.inference_copy()
            ways["side by side"] = lambda copied=copied: copied(torch.cat(views, 1))
        calls = {name: step(run, mode, device, precision) for name, run in ways.items()}
        times = in_turns(calls, arguments.seconds, device)
        base = statistics.median(times["wide"])
        chosen = "side by side" if together.side_by_side(batch) else "loop"
        for name, values in times.items():
            median = statistics.median(values)
            p95 = sorted(values)[int(0.95 * (len(values) - 1))]
            figures = (f"{1e3 * median:.2f}", f"{1e3 * p95:.2f}", f"{median / base:.2f}")
            mark = "yes" if name == chosen else ""
            rows.append([str(s), str(batch), mode, name, *figures, mark])
    return rows


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


def in_turns(
    calls: dict[str, Callable[[], None]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    for counted in [False, False, *[True] * 10_000]:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if counted:
                times[name].append(time.perf_counter() - start)
        if time.perf_counter() > end and min(map(len, times.values())) >= 5:
            return times
    return times


if __name__ == "__main__":
    main()
