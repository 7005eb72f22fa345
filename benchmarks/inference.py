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
import csv
import io
import json
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from coe_core import Delegation, TwoStage, confidence, count_macs, fit_threshold, infer

CLASSES, EXPERTS = 1000, 4
DELEGATOR, EXPERT = "tinynet_e", "tinynet_b"
PLAIN = ("tinynet_e", "tinynet_d", "tinynet_c", "tinynet_b", "tinynet_a")
CONDITIONAL = ("efficientnet_cc_b0_4e", "efficientnet_cc_b0_8e")
EXIT_RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
ROUNDS = {1: 12, 8: 9, 64: 5, 256: 3}  # by batch size
SINGLES = 8  # images a round at batch 1

Compute = Callable[[Tensor], Tensor]


@dataclass
class System:
    """A way to classify a batch; ``parts`` are the dense runs that it consists of, if it has such."""

    name: str
    macs: float  # mean per image
    predict: Callable[[Tensor, slice], object]
    parts: Callable[[Tensor, slice], Callable[[], object]] | None = None
    accuracy: float | None = None


def dense(name: str, macs: float, compute: Compute, accuracy: float | None = None) -> System:
    """A system that is one network."""
    return System(name, macs, lambda batch, _: compute(batch), accuracy=accuracy)


# How a network runs


def eager(network: nn.Module, example: Tensor) -> Compute:
    return network


def bf16(network: nn.Module, example: Tensor) -> Compute:
    def compute(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(images).float()

    return compute


def compiled(network: nn.Module, example: Tensor) -> Compute:
    compute = torch.compile(network, dynamic=True)
    for size in (len(example), 1, 3):
        compute(example[:size])
    return compute


def onnx_session(network: nn.Module, example: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A network in onnxruntime: all its outputs."""
    import onnxruntime as ort

    batch = torch.export.Dim("n", min=1, max=65536)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (example[:2],), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )
    file = io.BytesIO()
    program.save(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: tuple(map(torch.from_numpy, session.run(None, {name: x.numpy()})))


def onnxruntime(network: nn.Module, example: Tensor) -> Compute:
    run = onnx_session(network, example)
    return lambda images: run(images)[0]


MODES = {f.__name__: f for f in (eager, bf16, compiled, onnxruntime)}


# Systems of untrained networks


def network(name: str, outputs: int = CLASSES) -> nn.Module:
    made = timm.create_model(name, num_classes=outputs).eval()
    return made.to(memory_format=torch.channels_last)


class MultiExit(nn.Module):
    """A network with a classifier after each third of its blocks: the family of MSDNet and BranchyNet."""

    def __init__(self, whole: nn.Module, example: Tensor):
        super().__init__()
        blocks, third = list(whole.blocks), len(whole.blocks) // 3
        first = nn.Sequential(whole.conv_stem, whole.bn1, *blocks[:third])
        second = nn.Sequential(*blocks[third : 2 * third])
        last = nn.Sequential(*blocks[2 * third :], whole.conv_head, whole.bn2)
        self.stages, self.heads = nn.ModuleList([first, second, last]), nn.ModuleList()
        for stage in self.stages:
            example = stage(example)
            head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.heads.append(head.append(nn.Linear(example.shape[1], CLASSES)))

    def stage(self, i: int) -> nn.Module:
        class Both(nn.Module):
            def __init__(self, stage: nn.Module, head: nn.Module):
                super().__init__()
                self.stage, self.head = stage, head

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                features = self.stage(x)
                return features, self.head(features)

        return Both(self.stages[i], self.heads[i]).eval()


def untrained(mode: str, images: Tensor) -> list[System]:
    """Plain networks, CoE, cascade, ensemble, conditional convolutions."""
    run, one = MODES[mode], images[:1]
    seeded = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(images), generator=seeded)
    chosen = torch.randint(0, EXPERTS, (len(images),), generator=seeded)
    plain = {name: network(name) for name in PLAIN}
    compute = {name: run(net, images[:8]) for name, net in plain.items()}
    systems = [
        dense(f"plain {name}", count_macs(net, one), compute[name]) for name, net in plain.items()
    ]
    delegator = network(DELEGATOR, CLASSES + EXPERTS)
    experts = [network(EXPERT) for _ in range(EXPERTS)]
    first, second = count_macs(delegator, one), count_macs(experts[0], one)
    delegate = run(delegator, images[:8])
    answers = [run(expert, images[:8]) for expert in experts]

    def team(name: str, rate: float, calls: Sequence[Compute]) -> System:
        # Exactly this share of every 8 images exits.
        rank = uniform.view(-1, 8).argsort(1).argsort(1).flatten()
        sure = (rank < round(8 * rate)).float()
        selection = nn.functional.one_hot(chosen % len(calls), len(calls)).float()

        def predict(batch: Tensor, rows: slice) -> object:
            def delegation(x: Tensor) -> Delegation:
                out = delegate(x)
                rough = out[:, :CLASSES]
                confidence(rough), out[:, CLASSES:]  # computed as always, then drawn instead
                return Delegation(rough, sure[rows], selection[rows])

            return infer(delegation, calls, batch, 0.5)

        def parts(batch: Tensor, rows: slice) -> Callable[[], object]:
            stays, experts_of = sure[rows] < 0.5, (chosen % len(calls))[rows]
            groups = {}
            for j in range(len(calls)):
                index = (stays & (experts_of == j)).nonzero().flatten()
                if len(index):
                    groups[j] = laid_out(batch[index], mode)

            def alone() -> None:
                delegate(batch)
                for j, group in groups.items():
                    calls[j](group)

            return alone

        share = round(8 * rate) / 8
        return System(name, first + (1 - share) * second, predict, parts)

    systems += [team(f"CoE, {100 * rate:.0f}% exit", rate, answers) for rate in EXIT_RATES]
    systems.append(team("cascade, 50% exit", 0.5, answers[:1]))

    def mean_of_all(batch: Tensor, _: slice) -> Tensor:
        return torch.stack([answer(batch).softmax(1) for answer in answers]).mean(0)

    systems.append(System("ensemble of 4 experts", EXPERTS * second, mean_of_all))
    systems.append(multi_exit(mode, images, uniform))
    for name in CONDITIONAL:
        if mode in ("eager", "bf16"):  # their kernels are made per image: neither is exported
            conditional = network(name)
            macs = count_macs(conditional, one)
            systems.append(dense(f"CondConv {name}", macs, run(conditional, one)))
    return systems


def multi_exit(mode: str, images: Tensor, uniform: Tensor) -> System:
    """A third of the images ends at each of three exits."""
    made = MultiExit(network(EXPERT), images[:2])
    stages, inputs, macs, calls = [made.stage(i) for i in range(3)], images[:8], 0.0, []
    for i, stage in enumerate(stages):
        macs += (1 - i / 3) * count_macs(stage, inputs[:1])
        calls.append(stage_call(mode, stage, inputs))
        inputs = stage(inputs)[0]
    leaves = (uniform * 3).long()

    def predict(batch: Tensor, rows: slice) -> Tensor:
        left, here = leaves[rows], torch.arange(len(batch))
        result, features = torch.empty(len(batch), CLASSES), batch
        for i, call in enumerate(calls):
            features, logits = call(features)
            confidence(logits)
            result[here] = logits
            stay = (left[here] > i).nonzero().flatten()
            if not len(stay) or i == 2:
                return result
            if len(stay) < len(here):
                features, here = laid_out(features[stay], mode), here[stay]
        raise AssertionError("the last exit takes all")

    return System("multi-exit, a third at each", macs, predict)


def stage_call(mode: str, stage: nn.Module, example: Tensor) -> Callable:
    if mode == "onnxruntime":
        return onnx_session(stage, example)
    if mode == "bf16":

        def call(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                features, logits = stage(x)
                return features, logits.float()

        return call
    return torch.compile(stage, dynamic=True) if mode == "compiled" else stage


# Systems of a trained run


def trained(mode: str, path: str) -> tuple[list[System], Tensor]:
    """The team at its operating points, and its controls, with accuracy on the test images given."""
    from vision.evaluation.predictions import predict_all
    from vision.evaluation.stages import coe_logits, fit_stages
    from vision.evaluation.stages import two_stage as stage_of
    from vision.recipe_networks import run_macs
    from vision.run import load_run, load_run_data

    loaded = load_run(path)
    networks, team = loaded.networks, loaded.networks.team
    data = load_run_data(loaded)
    test, macs = data.test, run_macs(networks)
    every = predict_all(networks, test)
    size = min(len(test) - len(test) % 8, 512)
    images = networks.prepare(torch.stack([test[i]["image"] for i in range(size)]))
    images = laid_out(images, mode)
    delegate = MODES[mode](team.delegator, images[:8])
    answers = [MODES[mode](expert, images[:8]) for expert in team.experts]
    plain = {name: MODES[mode](net, images[:8]) for name, net in networks.controls.items()}
    systems = [
        dense(
            f"plain {name}",
            macs.controls[name],
            compute,
            float(every.right(every.control_logits[name]).mean()),
        )
        for name, compute in plain.items()
    ]
    c = team.num_classes

    def two_stage(
        name: str, stage: TwoStage, limit: float, weight: float, first, second, selected
    ) -> System:
        """A first network, and one of several others where it is not sure."""
        stays = stage.confidence < limit

        def predict(batch: Tensor, _: slice) -> object:
            def delegation(x: Tensor) -> Delegation:
                out = first(x)
                selection = out[:, c:] if out.shape[1] > c else out[:, :1]
                return Delegation(out[:, :c], confidence(out[:, :c]), selection)

            pool = (lambda rough, answer: answer + weight * rough) if weight else None
            return infer(delegation, second, batch, limit, combine=pool)

        def parts(batch: Tensor, rows: slice) -> Callable[[], object]:
            groups = {
                j: laid_out(batch[index], mode)
                for j in range(len(second))
                if len(index := (stays & (selected == j))[rows].nonzero().flatten())
            }

            def alone() -> None:
                first(batch)
                for j, group in groups.items():
                    second[j](group)

            return alone

        spent = torch.where(stays, stage.costs["macs"].second, 0.0)[:size].mean()
        return System(
            name, stage.costs["macs"].first + float(spent), predict, parts, stage.at(limit).quality
        )

    for name, point in loaded.operating_points.items():
        weight = point.rough_weight
        stage = stage_of(every, coe_logits(every, macs), weight)
        team_of = (stage, point.threshold, weight, delegate, answers, every.selected_expert)
        systems.append(two_stage(f"CoE at {name}", *team_of))
    fitted = fit_stages(predict_all(networks, data.validation), every, macs).get("cascade")
    if fitted is not None:
        curve, only = fitted.validation.curve(), torch.zeros(len(test))
        both = (fitted.rough_weight, plain["delegator"], [plain["expert"]], only)
        for name, point in loaded.operating_points.items():
            if point.cost_unit == "macs":
                index = fit_threshold(curve, "macs", max(point.cost, float(curve.cost.min())))
                limit = float(curve.threshold[index])
                systems.append(two_stage(f"cascade, MACs of {name}", fitted.test, limit, *both))

    def mean_of_all(batch: Tensor, _: slice) -> Tensor:
        return torch.stack([answer(batch).softmax(1) for answer in answers]).mean(0)

    accuracy = float(every.right(every.expert_logits.softmax(2).mean(1)).mean())
    ensemble = f"ensemble of {len(answers)} experts"
    systems.append(System(ensemble, sum(macs.experts), mean_of_all, accuracy=accuracy))
    return systems, images


# Measuring


def laid_out(images: Tensor, mode: str) -> Tensor:
    """In the memory format that the mode computes in."""
    wanted = torch.contiguous_format if mode == "onnxruntime" else torch.channels_last
    return images.contiguous(memory_format=wanted)


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
        """Of a call, on average over each round: single images take one of two routes."""
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
        own = statistics.median(seconds(system.name))
        return min(map(statistics.median, able)) / own if able else None

    rows = []
    for system in systems:
        taken = sorted(times[system.name])
        parts = f"{system.name} / parts" if system.parts is not None else None
        rows.append(
            {
                "mode": mode,
                "batch": batch,
                "system": system.name,
                "top1": system.accuracy,
                "mmacs": system.macs / 1e6,
                "median_ms": 1e3 * statistics.median(taken),
                "p95_ms": 1e3 * taken[min(len(taken) - 1, round(0.95 * len(taken)))],
                "images_per_s": batch / statistics.median(seconds(system.name)),
                "efficiency": per_mac(reference) / per_mac(system),
                "times_as_fast": times_as_fast(system),
                "overhead": statistics.median(
                    a / b for a, b in zip(seconds(system.name), seconds(parts), strict=True)
                )
                if parts
                else None,
                "calls": len(taken),
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
    parser.add_argument("--clock", choices=("wall", "thread"), default="wall")
    parser.add_argument("--rounds", type=int, help="instead of fewer for larger batches")
    parser.add_argument("--out", help="folder for inference.csv and inference.json")
    parser.add_argument("--quick", action="store_true", help="one round of batches 1 and 8")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = time.perf_counter if chosen.clock == "wall" else time.thread_time
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
            found = report(systems, times, mode, min(batch, len(images)))
            console.print(shown(found, f"{mode}, batch {batch}"))
            rows += found
    if chosen.out:
        folder = Path(chosen.out)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "inference.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        about = {
            **vars(chosen),
            "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
        (folder / "inference.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
