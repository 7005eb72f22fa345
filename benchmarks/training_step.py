"""A step that trains the team and its controls, against the sum of steps that train each network alone.

    python benchmarks/training_step.py [RECIPE key=value ...] [--freed kept ...] [--optimizer fused ...]

No data: random images of the recipe's size, already augmented. Both sides prepare the batch (the team once,
every network alone its own), run forward and backward and step the optimiser. Every setting runs in a process
of its own, settings in turns; figures are medians over all steps, page faults those that the kernel counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from measure import CLOCKS, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coe_core.support.memory import keep_freed_memory
from coe_core.support.reports import markdown_table
from vision.data.preprocess import Preprocess
from vision.precision import autocast, choose_precision
from vision.recipe import load_recipe
from vision.training.module import CoETraining
from vision.training.optimizer import build_optimizer

CLASSES = 10
FREED, OPTIMIZERS = ("returned", "kept"), ("loop", "foreach", "fused")


class Steps(CoETraining):
    """The training without a trainer: it logs nothing and counts its own steps."""

    steps = 0

    @property
    def global_step(self) -> int:
        return self.steps

    @property
    def global_rank(self) -> int:
        return 0

    def log_dict(self, *_: Any, **__: Any) -> None:
        pass


def training(recipe: str, overrides: list[str]) -> Steps:
    torch.manual_seed(0)
    plan = load_recipe(recipe, overrides)
    side, channels = plan.data.size, plan.data.channels
    preprocess = Preprocess(
        size=side, channels=channels, mean=[0.5] * channels, std=[0.25] * channels
    )
    names = [str(number) for number in range(CLASSES)]
    module = Steps(plan.to_dict(), names, preprocess.to_dict(), num_samples=50_000)
    return module.train()


def batch_of(module: Steps) -> dict[str, Tensor]:
    n, side = module.recipe.train.images_per_step, module.recipe.data.size
    images = torch.randint(256, (n, module.recipe.data.channels, side, side), dtype=torch.uint8)
    return {"image": images, "target": torch.randint(CLASSES, (n,)), "index": torch.arange(n)}


def optimizer_of(module: nn.Module, train: Any, kind: str) -> torch.optim.Optimizer:
    optimizer = build_optimizer(train, module)
    for group in optimizer.param_groups:
        group.update(fused=kind == "fused", foreach=kind == "foreach")
    return optimizer


def together(module: Steps, batch: dict[str, Tensor], kind: str, precision: str) -> Callable:
    """One step of the whole recipe."""
    optimizer = optimizer_of(module, module.recipe.train, kind)

    def step() -> None:
        with autocast(torch.device("cpu"), precision):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.steps += 1

    return step


def alone(
    module: Steps, network: nn.Module, batch: dict[str, Tensor], kind: str, precision: str
) -> Callable:
    """One step of one network with the plain loss."""
    optimizer, smoothing = (
        optimizer_of(network, module.recipe.train, kind),
        module.recipe.train.label_smoothing,
    )

    def step() -> None:
        images = module.networks.prepare(batch["image"])
        with autocast(torch.device("cpu"), precision):
            logits = network(images)
            loss = cross_entropy(logits.float(), batch["target"], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def one(chosen: argparse.Namespace, freed: str, kind: str) -> dict[str, Any]:
    """Milliseconds and page faults of a step together, and of the sum of steps alone."""
    torch.set_num_threads(1)
    if freed == "kept":
        keep_freed_memory()
    precision = choose_precision("auto")
    module, copy = (training(chosen.recipe, chosen.overrides) for _ in range(2))
    batch = batch_of(module)
    steps = {"together": together(module, batch, kind, precision)}
    team, controls = copy.networks.required_team, copy.networks.controls
    for number, network in enumerate([*team.networks, *controls.values()]):
        steps[f"alone {number}"] = alone(copy, network, batch, kind, precision)
    times: dict[str, list[float]] = {name: [] for name in steps}
    faults: dict[str, list[int]] = {name: [] for name in steps}
    for number in range(-2, chosen.rounds):  # the first two are not counted
        for name, step in steps.items():
            before, begin = (
                resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
                CLOCKS[chosen.clock](),
            )
            step()
            if number >= 0:
                times[name].append(1e3 * (CLOCKS[chosen.clock]() - begin))
                faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    ms = {name: statistics.median(values) for name, values in times.items()}
    mean_faults = {name: statistics.mean(values) for name, values in faults.items()}
    separate = sum(value for name, value in ms.items() if name != "together")
    separate_faults = sum(value for name, value in mean_faults.items() if name != "together")
    return {
        "freed memory": freed,
        "optimiser": kind,
        "together, ms": ms["together"],
        "alone, ms": separate,
        "together / alone": ms["together"] / separate,
        "page faults together": mean_faults["together"],
        "page faults alone": separate_faults,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="cifar10")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--freed", nargs="+", choices=FREED, default=list(FREED))
    parser.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=["foreach", "fused"])
    parser.add_argument("--rounds", type=int, default=20, help="steps of every kind in a process")
    parser.add_argument("--processes", type=int, default=3, help="of every setting")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, help="folder for training_step.csv and .json")
    parser.add_argument("--here", action="store_true", help="one setting, in this process, as JSON")
    chosen = parser.parse_args()
    settings = list(product(chosen.freed, chosen.optimizer))
    if chosen.here:
        print(json.dumps(one(chosen, *settings[0])))
        return
    found: dict[tuple[str, str], list[dict]] = {setting: [] for setting in settings}
    for _ in range(chosen.processes):
        for setting in settings:
            options = ["--freed", setting[0], "--optimizer", setting[1], "--clock", chosen.clock]
            command = [
                sys.executable,
                __file__,
                chosen.recipe,
                *chosen.overrides,
                *options,
                "--here",
            ]
            command += ["--rounds", str(chosen.rounds)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[setting].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for lines in found.values():
        numbers = [key for key, value in lines[0].items() if not isinstance(value, str)]
        middle = {key: statistics.median(line[key] for line in lines) for key in numbers}
        rows.append({**lines[0], **middle})
    shown = [[v if isinstance(v, str) else f"{v:.3g}" for v in row.values()] for row in rows]
    print(markdown_table(list(rows[0]), shown, left=(0, 1)), end="")
    if chosen.out:
        save("training_step", rows, chosen.out, options=vars(chosen))


if __name__ == "__main__":
    main()
