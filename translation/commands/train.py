"""`coe-translation train` and `recipes`: their options, and what they print."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from coe_core.support.command import add_overrides, at_least


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation train`."""
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    add_overrides(parser, "such as training.updates=3")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-sSEED)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--parallel",
        type=at_least(1, 64),
        default=1,
        metavar="N",
        help="trainings side by side (1)",
    )


def run_train(arguments: argparse.Namespace) -> None:
    """Everything from raw text to the table, and say where the run is."""
    from translation.recipe import load_recipe
    from translation.training.train import train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    folder = Path(arguments.out or f"runs/{Path(arguments.recipe).stem}-s{recipe.seed}")
    start = time.monotonic()
    train(
        recipe,
        folder,
        resume=arguments.resume,
        parallel=arguments.parallel,
        say=lambda line: print(line, flush=True),
    )
    print(f"done in {time.monotonic() - start:.0f} s; run folder: {folder}")
    print(f"next: coe-translation evaluate {folder}")


def add_recipes_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation recipes`."""
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list")
    parser.add_argument("recipe", nargs="?", help="to copy")
    parser.add_argument("to", nargs="?", default=".", help="file or folder (default: here)")


def run_recipes(arguments: argparse.Namespace) -> None:
    """List, or copy one; nothing is overwritten."""
    from coe_core.support.recipes import copy_shipped, find_shipped, print_shipped
    from translation.shipped import PROGRAM, shipped_recipes

    if arguments.action == "list":
        if arguments.recipe is not None:
            raise ValueError(f"list takes no name, got {arguments.recipe!r}; copy does")
        print_shipped(shipped_recipes())
        return
    if arguments.recipe is None:
        raise ValueError(f"copy which recipe? `{PROGRAM} recipes` lists them")
    target = copy_shipped(find_shipped(arguments.recipe, shipped_recipes(), PROGRAM), arguments.to)
    print(f"copied to {target}; run it with: {PROGRAM} train {target}")


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation evaluate`."""
    parser.add_argument("runs", nargs="+", help="run folders of one recipe, differing in seed")
    parser.add_argument(
        "--out", help="folder for the results (default: RUN/evaluation of the first)"
    )


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Tables of every test: mean and spread over the runs, paired bootstrap against every control."""
    from translation.evaluation import table
    from translation.evaluation.evaluate import evaluate
    from translation.run import load_run

    runs = [load_run(path) for path in arguments.runs]
    folder = Path(arguments.out) if arguments.out else runs[0].folder / "evaluation"
    for name in runs[0].recipe.texts.tests:
        evaluation = evaluate(runs, folder / name, name)
        print(f"{name}: {', '.join(run.folder.name for run in runs)}")
        print(table.shown(evaluation.rows))
        if evaluation.comparisons:
            width = max(len(f"{c.system} - {c.control}") for c in evaluation.comparisons)
            print("difference in BLEU, 95% interval, p (paired bootstrap over sentences)")
            for system, control, compared in evaluation.comparisons:
                value, low, high = compared.interval
                line = f"{system} - {control}"
                print(
                    f"{line:{width}}  {value:+6.2f}  [{low:+.2f}, {high:+.2f}]  p {compared.p:.4f}"
                )
        for system, scores in evaluation.directions.items():
            shown = ", ".join(
                f"{direction} {score.shown(2)}" for direction, score in scores.items()
            )
            print(f"BLEU of {system}: {shown}")
        for direction, parts in evaluation.loads.items():
            print(f"experts of {direction}: {', '.join(f'{100 * part:.0f}%' for part in parts)}")
        print(f"tables and pictures: {folder / name}")
