"""`coe-vision evaluate`: its options, and what it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coe_core.support.command import at_least, refuse_unused
from vision.commands.serve import add_system

TIMED_IMAGES = 512  # that time is measured on


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("runs", nargs="+", help="run folders or checkpoints")
    parser.add_argument("--out", help="folder for the results (default: RUN/evaluation)")
    parser.add_argument("--data", help="where the data lie now")
    parser.add_argument("--batch-size", type=at_least(1), help="for measured time (default: 64)")
    parser.add_argument(
        "--confidence",
        choices=("max_probability", "margin", "entropy", "gain"),
        default="max_probability",
        help="what exits are decided by, as in calibrate",
    )
    parser.add_argument("--no-time", action="store_true", help="measure no time")
    parser.add_argument(
        "--at",
        action="append",
        metavar="NAME",
        help="operating point, or multiply-adds, to be evaluated as deployed; may be repeated (default: "
        "all that are stored)",
    )
    add_system(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print the tables, and say where pictures and tables are."""
    from coe_core.support.reports import print_table
    from vision.evaluation import deployed, doubted, ensemble_table
    from vision.evaluation.evaluate import evaluate
    from vision.evaluation.summary import rich_table
    from vision.run import load_run

    if arguments.no_time:
        refuse_unused("--no-time measures no time", batch_size=arguments.batch_size)
    runs = [load_run(path, team=False) for path in arguments.runs]
    recipe = runs[0].recipe
    folder = Path(arguments.out) if arguments.out else runs[0].folder / "evaluation"
    evaluation = evaluate(
        runs,
        folder,
        data_path=arguments.data,
        batch_size=arguments.batch_size or 64,
        time_images=0 if arguments.no_time else TIMED_IMAGES,
        exits_by=arguments.confidence,
        at=arguments.at,
        system=arguments.system,
    )
    lines, ensembles = evaluation.lines, evaluation.ensembles
    names = ", ".join(run.folder.name for run in runs)
    title = f"{names} on test data; thresholds fitted on validation data"
    print_table(rich_table(lines, title, evaluation.is_uneven))
    if ensembles:
        print_table(ensemble_table.rich_table(ensembles))
    for run, law in zip(runs, evaluation.laws, strict=False):
        print(f"law of {run.folder.name}: {law.shown}")
    if evaluation.deployed:
        print_table(deployed.rich_table(evaluation.deployed))
    if evaluation.doubted:
        print(doubted.shown(evaluation.doubted))
    for line in evaluation.left_out:
        print(f"left out: {line}", file=sys.stderr)
    for line in evaluation.diverged:
        print(f"failed: {line}", file=sys.stderr)
    for name in recipe.without_control:
        print(
            f"ensemble {name} has no control: train its undivided network (s = 1) in the same run"
        )
    pictures = ["trade_off.png", *["classes_per_expert.png"] * recipe.has_team]
    tables = [
        "table.csv",
        "table.md",
        "table.json",
        "classes.csv",
        *["law.csv"] * bool(evaluation.laws),
    ]
    tables += ["doubted_labels.csv"] * bool(evaluation.doubted)
    tables += ["ensembles.csv", "ensembles.md"] * bool(ensembles)
    tables += ["deployed.csv", "deployed.md"] * bool(evaluation.deployed)
    for what, files in (("pictures", pictures), ("tables", tables)):
        print(f"{what}: {', '.join(str(folder / name) for name in files)}")
    print(f"images to try: {folder / 'examples'}")
