"""Time and memory of PWLU against SiLU and PReLU: the operator by layout and type, and whole networks.

    python benchmarks/pwlu.py [--rounds 15] [--threads 1]

All candidates are measured in turns in one process. Time is processor time of the process, the least over
rounds, since other work on the machine only ever adds; memory is what a training step allocates at most.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from measure import CLOCKS, figures, in_turns
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vision.networks.network import Network, build_network
from vision.networks.pwlu.layer import PWLU, start_learning

SHAPES = {"56 x 56 x 72": (16, 72, 56, 56), "14 x 14 x 480": (32, 480, 14, 14)}
NETWORKS = {"mobilenetv3_large_100": 128, "efficientnet_b0": 128}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=170)
    console.print(operators(arguments.rounds))
    console.print(networks(max(2, arguments.rounds // 3)))


def operators(rounds: int) -> Table:
    """One activation on one tensor."""
    table = _table("one activation, 1 forward; forward + backward", "tensor", "type", "layout")
    for (size, shape), dtype, (layout, memory_format) in (
        (s, d, f)
        for s in SHAPES.items()
        for d in (torch.float32, torch.bfloat16)
        for f in FORMATS.items()
    ):
        x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
        weight = torch.randn_like(x)
        candidates = {
            "SiLU": nn.SiLU(),
            "PReLU": nn.PReLU(shape[1], dtype=dtype),
            "PWLU": PWLU(shape[1]),
        }
        candidates["PWLU"].start_learning()
        _measure(table, candidates, x, weight, rounds, size, str(dtype)[6:], layout)
    return table


def networks(rounds: int) -> Table:
    """A whole network whose activations are replaced; channels_last, batch of 8."""
    table = _table("networks, a batch of 8", "network", "type", "layout")
    for name, size in NETWORKS.items():
        x = torch.randn(8, 3, size, size).contiguous(memory_format=torch.channels_last)
        candidates = {}
        for activation in ("SiLU", "PReLU", "PWLU"):
            options = {"per_channel": False} if activation == "PReLU" else {}
            named = Network(name, activation=activation.lower(), activation_options=options)
            built = build_network(named, 100)
            start_learning(built)
            candidates[activation] = built.to(memory_format=torch.channels_last)
        _measure(table, candidates, x, torch.ones(8, 100), rounds, name, "float32", "channels_last")
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading)
    for what in ("inference", "training"):
        for name in ("SiLU", "PReLU", "PWLU"):
            table.add_column(f"{what} {name}, ms", justify="right")
        table.add_column("PWLU / SiLU", justify="right")
    table.add_column("training, MiB: SiLU PReLU PWLU", justify="right")
    return table


def _measure(
    table: Table,
    candidates: dict[str, nn.Module],
    x: torch.Tensor,
    weight: torch.Tensor,
    rounds: int,
    *labels: str,
) -> None:
    x = x.requires_grad_()
    cells: list[str] = []
    for step in (_infer, _train):
        steps = {name: lambda m=m, step=step: step(m, x, weight) for name, m in candidates.items()}
        times = in_turns(steps, rounds=rounds, clock=CLOCKS["process"])
        best = {name: figures(values).least for name, values in times.items()}
        cells += [f"{1e3 * value:.2f}" for value in best.values()]
        cells.append(f"{best['PWLU'] / best['SiLU']:.2f}")
    memory = [_peak(lambda m=m: _train(m, x, weight)) for m in candidates.values()]
    table.add_row(*labels, *cells, " ".join(f"{value / 2**20:.1f}" for value in memory))


def _infer(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> None:
    with torch.inference_mode():
        module.eval()(x)


def _train(module: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> None:
    module.train()(x).backward(weight)
    x.grad = None
    module.zero_grad()


def _peak(step: Callable[[], None]) -> int:
    """Most bytes that torch's allocator held at once beyond those before the step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
