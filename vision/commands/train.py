"""`coe-vision train`: its options, and what it prints."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

from coe_core.support.command import DONE, IN_PART, add_overrides, at_least, refuse_unused
from coe_core.support.imports import uncollected


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    add_overrides(parser, "such as train.epochs=3")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-sSEED)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--stop-after", type=at_least(1), metavar="EPOCHS", help="end early, to be resumed later"
    )
    parser.add_argument(
        "--find-lr",
        action="store_true",
        help="without a run: train some steps at a rising learning rate, say where the loss falls fastest",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="without data: count multiply-adds against the recipe's budget, run two steps on generated "
        "images, estimate memory and time",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, store the default operating points, and say where the run is, and what of it failed."""
    with uncollected():
        from vision.commands.calibrate import print_points
        from vision.evaluation.calibrate import default_points
        from vision.recipe import load_recipe, unused_settings
        from vision.run import load_run
        from vision.training.processes import processes
        from vision.training.train import train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    for line in unused_settings(recipe):
        warnings.warn(line, stacklevel=2)
    kept = {name: getattr(arguments, name) for name in ("out", "resume", "stop_after")}
    if arguments.find_lr:
        from vision.training.learning_rate import find_rates

        refuse_unused("--find-lr keeps no run", **kept, dry_run=arguments.dry_run)
        for line in find_rates(recipe).lines():
            print(line)
        return DONE
    if arguments.dry_run:
        refuse_unused("--dry-run keeps no run", **kept)
        _dry_run(arguments, recipe)
        return DONE
    folder = Path(arguments.out or f"runs/{Path(arguments.recipe).stem}-s{recipe.seed}")
    start = time.monotonic()
    data = train(recipe, folder, resume=arguments.resume, stop_after=arguments.stop_after)
    if processes().rank != 0:
        return DONE
    print(f"trained in {time.monotonic() - start:.0f} s; run folder: {folder}")
    trained = load_run(folder, team=False)
    if recipe.has_team:
        print_points(trained, default_points(trained, data))
    failed = trained.networks.diverged()
    for part in failed:
        print(f"failed: {part} diverged (train.lr={recipe.train.lr:g}), its results mean nothing")
    print(f"next: coe-vision evaluate {folder}")
    return IN_PART if failed else DONE


def _dry_run(arguments: argparse.Namespace, recipe) -> None:
    from coe_core.support.reports import print_table
    from vision.commands.inspect import describe
    from vision.recipe_networks import run_macs, untrained
    from vision.training.batch_size import with_batch_size
    from vision.training.dry_run import check_budget, images_of_an_epoch, two_steps
    from vision.training.train import train

    for table in describe(arguments.recipe, arguments.overrides):
        print_table(table)
    print(check_budget(recipe, run_macs(untrained(recipe))), flush=True)
    recipe = with_batch_size(recipe, images_of_an_epoch(recipe), train)
    for line in two_steps(recipe, train).lines(recipe):
        print(line)
