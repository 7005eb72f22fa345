"""Time of a multiply-add in networks of conditional computation, the collaboration and a plain network.

    python benchmarks/conditional.py [--modes eager onnxruntime compiled] [--only NAME ...] [--out FOLDER]

All systems are of one family of blocks (`conditional_networks.py`), have the multiply-adds of the plain
network within a tenth, as their papers count them, and run in turns on the same images. Weights are
untrained, so routes are drawn at the stated rates; routers compute in full. *Relative* is the time of a
multiply-add over that of the plain network: 1 means that what is not computed costs no time. One thread.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from conditional_networks import (
    CLASSES,
    DEPTHS,
    EXPERTS,
    WIDEN,
    Block,
    Conditional,
    ExpertsPerceptron,
    GatedPerceptron,
    MixedPerceptron,
    Perceptron,
    SkippedBlock,
    Stage,
)
from inference_systems import exit_by_exit, laid_out, onnx_session
from measure import CLOCKS, in_turns, save
from torch import Tensor, nn

from coe_core import Delegation, confidence, count_macs, infer
from coe_core.support.memory import keep_freed_memory
from coe_core.support.reports import markdown_table

MODES = ("eager", "onnxruntime", "compiled")
WIDTH = 32  # of the plain network
DELEGATOR_WIDTH = 16  # a quarter of the multiply-adds
SKIP_RATE = KEPT = 0.5
ROUNDS = {1: 9, 8: 9, 64: 4, 256: 3}  # by batch size
SINGLES = 8  # images a round at batch 1

Run = Callable[[Tensor, slice], object]


class System(NamedTuple):
    name: str
    macs: float  # mean per image, as the papers count
    run: Run


# Routes


def ranks(n: int, seeded: torch.Generator) -> Tensor:
    """The place of every image among its eight, at random: exactly a stated share of them is below it."""
    return torch.rand(n // 8, 8, generator=seeded).argsort(1).argsort(1).flatten()


def draw(network: Conditional, n: int, size: int, seed: int = 0) -> list[Tensor]:
    """Scores for the routers of n images (a multiple of 8): the same whatever the network's width."""
    seeded, drawn = torch.Generator().manual_seed(seed), []
    for number, stage in enumerate(network.stages):
        side = size // (4 * 2**number)
        for block in stage:
            if isinstance(block, SkippedBlock):
                drawn.append((ranks(n, seeded) < 8 * SKIP_RATE).float()[:, None] - 0.5)
            elif block.routes:
                places = (n, side, side) if block.perceptron.by_position else (n,)
                chosen = torch.randint(EXPERTS, places, generator=seeded)
                drawn.append(8.0 * nn.functional.one_hot(chosen, EXPERTS).float())
    return drawn


# How a network runs


def prepared(network: nn.Module, mode: str, example: Sequence) -> Callable[..., object]:
    """The network as a function of its inputs, in a mode; raises where it cannot be exported."""
    if mode == "eager":
        return network
    if mode == "compiled":
        # One forward is compiled for every system and shape; beyond a limit of 8 torch would run it eagerly.
        torch._dynamo.config.recompile_limit = 1024
        compute = torch.compile(network, dynamic=True)
        for n in (8, 1, 3):
            compute(*(_rows(value, slice(0, n)) for value in example))
        return compute
    return onnx_session(network, [_rows(value, slice(0, 3)) for value in example])


def _rows(value: Tensor | list[Tensor], rows: slice) -> Tensor | list[Tensor]:
    return value[rows] if isinstance(value, Tensor) else [one[rows] for one in value]


def single(out: object) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


# The systems


def later_half(special: Callable[[int], nn.Module]) -> Callable[[int, int], Block]:
    """Blocks whose perceptron is special in the later half of the network."""
    return lambda c, number: Block(c, special(c) if number >= sum(DEPTHS) // 2 else Perceptron(c))


def every_second(special: Callable[[int], nn.Module]) -> Callable[[int, int], Block]:
    return lambda c, number: Block(c, special(c) if number % 2 else Perceptron(c))


def everywhere(special: Callable[[int], nn.Module]) -> Callable[[int, int], Block]:
    return lambda c, _: Block(c, special(c))


VARIANTS: dict[str, Callable[[int, int], Block]] = {
    "CondConv": later_half(partial(MixedPerceptron, dynamic=False, way="published")),
    "CondConv, as products": later_half(partial(MixedPerceptron, dynamic=False, way="fast")),
    "dynamic convolution": everywhere(partial(MixedPerceptron, dynamic=True, way="published")),
    "dynamic convolution, as products": everywhere(
        partial(MixedPerceptron, dynamic=True, way="fast")
    ),
    "mixture of experts, per image": every_second(partial(ExpertsPerceptron, by_position=False)),
    "mixture of experts, per position": every_second(partial(ExpertsPerceptron, by_position=True)),
    "channel gating, masked": everywhere(partial(GatedPerceptron, kept=KEPT)),
    "layer skipping, masked": lambda c, _: SkippedBlock(c, masked=True),
    "layer skipping, really": lambda c, _: SkippedBlock(c, masked=False),
}


@cache
def counted(name: str, width: int, size: int) -> float:
    """Multiply-adds of an image as the papers count them: masked work is not counted."""
    image = torch.zeros(1, 3, size, size)
    if name == "channel gating, masked":
        gates = sum(d * WIDEN * (width * 2**i) ** 2 for i, d in enumerate(DEPTHS))
        kept = everywhere(lambda c: Perceptron(c, round(KEPT * WIDEN * c)))
        return gates + count_macs(Conditional(width, kept), image)
    if name.startswith("layer skipping"):
        network = Conditional(width, VARIANTS["layer skipping, really"])
        drawn = [s[:8] for s in draw(network, 8, size)]
        return count_macs(network, image.expand(8, -1, -1, -1), drawn) / 8
    network = Conditional(width, VARIANTS.get(name))
    drawn = [s[:1] for s in draw(network, 8, size)]
    return count_macs(network, image, drawn)


def nearest_width(spent: Callable[[int], float], macs: float) -> int:
    """The width, a multiple of 4, whose multiply-adds are nearest."""
    guess = 4 * round(WIDTH * (macs / spent(WIDTH)) ** 0.5 / 4)
    return min((guess - 4, guess, guess + 4), key=lambda width: abs(spent(width) - macs))


def ready(network: nn.Module) -> nn.Module:
    return network.eval().to(memory_format=torch.channels_last)


def variant(name: str, macs: float, mode: str, images: Tensor) -> System:
    """A network of conditional computation of about so many multiply-adds."""
    size = images.shape[-1]
    width = nearest_width(lambda width: counted(name, width, size), macs)
    network = ready(Conditional(width, VARIANTS.get(name)))
    drawn = draw(network, len(images), size)
    compute = prepared(network, mode, (images[:8], _rows(drawn, slice(0, 8))))
    return System(
        name,
        counted(name, width, size),
        lambda batch, rows: single(compute(batch, _rows(drawn, rows))),
    )


def collaboration(rate: float, macs: float, mode: str, images: Tensor) -> System:
    """Delegator and four experts under the engine; so many of every 8 images exit."""
    size, seeded = images.shape[-1], torch.Generator().manual_seed(0)
    first = counted("plain", DELEGATOR_WIDTH, size)
    width = nearest_width(lambda width: counted("plain", width, size), (macs - first) / (1 - rate))
    example = (images[:8],)
    delegator = ready(Conditional(DELEGATOR_WIDTH, outputs=CLASSES + EXPERTS))
    delegate = prepared(delegator, mode, example)
    experts = [prepared(ready(Conditional(width)), mode, example) for _ in range(EXPERTS)]
    calls = [lambda x, e=expert: single(e(x)) for expert in experts]
    confidences = (ranks(len(images), seeded) < 8 * rate).float()
    chosen = torch.randint(EXPERTS, (len(images),), generator=seeded)
    selection = nn.functional.one_hot(chosen, EXPERTS).float()

    def run(batch: Tensor, rows: slice) -> object:
        def delegation(x: Tensor) -> Delegation:
            out = single(delegate(x))
            rough = out[:, :CLASSES]
            confidence(rough)  # computed as always, then drawn instead
            return Delegation(rough, confidences[rows], selection[rows])

        return infer(delegation, calls, batch, 0.5)

    spent = first + (1 - rate) * counted("plain", width, size)
    return System(f"collaboration, {100 * rate:.0f}% exit", spent, run)


def multi_exit(macs: float, mode: str, images: Tensor) -> System:
    """A third of the images ends at each of three exits; the others go on together."""
    size = images.shape[-1]

    def stages_of(width: int) -> tuple[list[Stage], float]:
        stages = [ready(Stage(Conditional(width), number)) for number in range(3)]
        x, spent = torch.zeros(1, 3, size, size), 0.0
        for number, stage in enumerate(stages):
            spent += (1 - number / 3) * count_macs(stage, x)
            x = stage(x)[0]
        return stages, spent

    width = nearest_width(lambda width: stages_of(width)[1], macs)
    stages, spent = stages_of(width)
    calls, x = [], images[:8]
    for stage in stages:
        calls.append(prepared(stage, mode, (x,)))
        x = laid_out(stage(x)[0], mode)
    order = torch.arange(len(images)) % 3  # every third image in a row leaves at the same exit

    def run(batch: Tensor, rows: slice) -> Tensor:
        return exit_by_exit(calls, batch, order[rows], mode)

    return System("multi-exit, a third at each", spent, run)


def systems(mode: str, images: Tensor, only: Sequence[str]) -> tuple[list[System], dict[str, str]]:
    """The plain network first; and why others cannot run in this mode."""
    torch.manual_seed(0)
    target = counted("plain", WIDTH, images.shape[-1])
    makers: dict[str, Callable[[], System]] = {
        "plain": lambda: variant("plain", target, mode, images),
        "collaboration, 0%": lambda: collaboration(0.0, target, mode, images),
        "collaboration, 50%": lambda: collaboration(0.5, target, mode, images),
        **{name: partial(variant, name, target, mode, images) for name in VARIANTS},
        "multi-exit": lambda: multi_exit(target, mode, images),
    }
    made, failed = [], {}
    for name, make in makers.items():
        if name != "plain" and only and not any(name.startswith(some) for some in only):
            continue
        try:
            made.append(make())
        except torch.onnx.errors.OnnxExporterError as error:
            failed[name] = type(error.__cause__ or error).__name__
    return made, failed


def measure(
    chosen: Sequence[System], images: Tensor, batch: int, mode: str, clock: str, rounds: int
) -> list[dict]:
    """One row a system: at batch 1 the mean over some images, which take different routes."""
    starts = range(0, min(SINGLES, len(images)) if batch == 1 else batch, batch)
    parts = [slice(start, start + batch) for start in starts]
    inputs = [(laid_out(images[rows], mode), rows) for rows in parts]

    def call(system: System) -> None:
        for x, rows in inputs:
            system.run(x, rows)

    calls = {system.name: partial(call, system) for system in chosen}
    times = in_turns(calls, rounds=rounds, clock=CLOCKS[clock])
    base = None
    rows = []
    for system in chosen:
        median = statistics.median(times[system.name]) / len(inputs)
        per_mac = median / (batch * system.macs)
        base = base or per_mac
        rows.append(
            {
                "mode": mode,
                "batch": batch,
                "system": system.name,
                "mmacs": round(system.macs / 1e6, 1),
                "ms": round(1e3 * median, 3),
                "relative": round(per_mac / base, 2),
            }
        )
    return rows


def table(rows: Sequence[dict]) -> str:
    """One line a system, with two columns for every batch."""
    batches = sorted({row["batch"] for row in rows})
    headings = ["system", "MMACs"]
    headings += [title for n in batches for title in (f"{n}: ms", "relative")]
    lines: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["batch"]):
        line = lines.setdefault(row["system"], [row["system"], str(row["mmacs"])])
        line += [f"{row['ms']:.3g}", f"{row['relative']:.2f}"]
    return markdown_table(headings, list(lines.values()))


def profiled(chosen: Sequence[System], images: Tensor, mode: str, most: int = 5) -> None:
    """What each system's time is spent in, by operator."""
    from torch.profiler import ProfilerActivity, profile

    for system in chosen:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            system.run(laid_out(images, mode), slice(0, len(images)))
        own = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
        total = sum(e.self_cpu_time_total for e in own)
        shares = [f"{e.key} {100 * e.self_cpu_time_total / total:.0f}%" for e in own[:most]]
        print(f"{system.name}, batch {len(images)}: {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager", "onnxruntime"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--only", nargs="+", default=[], help="first words of names; plain always")
    parser.add_argument("--size", type=int, default=96, help="side of the images")
    parser.add_argument("--rounds", type=int, help="instead of fewer for larger batches")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--profile", action="store_true", help="say what time is spent in instead")
    parser.add_argument("--out", type=Path, help="folder for conditional.csv and conditional.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do
    rows = []
    with torch.inference_mode():
        images = torch.randn(max(8, *arguments.batches), 3, arguments.size, arguments.size)
        for mode in arguments.modes:
            chosen, failed = systems(mode, laid_out(images, mode), arguments.only)
            for name, why in failed.items():
                print(f"{mode}: {name} is not exported: {why}")
            for batch in arguments.batches:
                if arguments.profile:
                    profiled(chosen, images[:batch], mode)
                    continue
                rounds = arguments.rounds or ROUNDS.get(batch, 5)
                rows += measure(chosen, images, batch, mode, arguments.clock, rounds)
    for mode in arguments.modes if rows else ():
        print(f"\n{mode}: milliseconds, and a multiply-add's time relative to the plain network's")
        print(table([row for row in rows if row["mode"] == mode]), end="")
    if arguments.out and rows:
        save("conditional", rows, arguments.out, ["onnxruntime"], options=vars(arguments))


if __name__ == "__main__":
    main()
