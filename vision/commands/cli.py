"""The coe-vision command."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vision.commands import export as export_command
from vision.commands import serve as serve_command

# No markup: names of files and classes may hold brackets.
console = Console(
    width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
)
FAILED = 1
USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit status; what is wrong is said in one line on stderr."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if any(text.startswith("-") or "=" not in text for text in rest) or (
        rest and not hasattr(arguments, "overrides")
    ):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides written after an option
        arguments.overrides += rest
    # Threads that spin while they wait cost 10 to 100 times on a machine shared with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    # After parsing: it loads torch, and help should not wait for it.
    from vision.errors import CoEError, Interrupted

    _quiet()
    try:
        return arguments.command(arguments) or 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CoEError, ValueError, OSError) as error:
        print(f"coe-vision {arguments.name}: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(f"coe-vision {arguments.name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Interrupted as stopped:
        print(f"coe-vision {arguments.name}: {stopped}", file=sys.stderr)
        return 128 + stopped.number


def _quiet() -> None:
    """Leave out what a user cannot act on: banners, tips and hints on worker counts."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*The dirpath has changed.*",
        ".*srun.*",
    ):
        warnings.filterwarnings("ignore", text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "coe-vision", description="Train, calibrate and use a Collaboration of Experts on images."
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    train = command("train", _train, "Train a recipe: delegator, experts and controls.")
    train.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=3")
    train.add_argument("--out", help="run folder (default: runs/RECIPE-sSEED)")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.add_argument(
        "--stop-after", type=_at_least_one, metavar="EPOCHS", help="end early, to be resumed later"
    )

    train.add_argument(
        "--dry-run",
        action="store_true",
        help="without data: count multiply-adds against the recipe's budget, run two steps on generated "
        "images, estimate memory and time",
    )

    evaluate = command("evaluate", _evaluate, "Table and pictures of one run, or of several seeds.")
    evaluate.add_argument("runs", nargs="+", help="run folders or checkpoints")
    evaluate.add_argument("--out", help="folder for the results (default: RUN/evaluation)")
    evaluate.add_argument("--data", help="where the data lie now")
    evaluate.add_argument("--batch-size", type=_at_least_one, default=64, help="for measured time")
    evaluate.add_argument("--no-time", action="store_true", help="measure no time")

    calibrate = command(
        "calibrate", _calibrate, "Fit thresholds on held-out data, keep them in the run."
    )
    calibrate.add_argument("run")
    calibrate.add_argument(
        "aims",
        nargs="+",
        help="best, macs=100M, latency=0.3 (ms), accuracy_drop=0.5%%, accuracy=90%%",
    )
    calibrate.add_argument("--data", help="where the data lie now")
    calibrate.add_argument(
        "--guarantee",
        type=float,
        metavar="P",
        help="accuracy_drop holds with probability P, such as 0.95",
    )
    calibrate.add_argument(
        "--batch-size", type=_at_least_one, default=64, help="at which latency is measured"
    )

    predict = command("predict", _predict, "Predict image files, each with its route.")
    predict.add_argument("run", help="run folder or checkpoint")
    predict.add_argument("images", nargs="+", help="files or folders")
    predict.add_argument(
        "--at", help="stored operating point (default: best), or mean multiply-adds such as 100M"
    )
    predict.add_argument(
        "--threshold", type=float, help="exit when confidence >= this; higher exits fewer"
    )
    predict.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")
    predict.add_argument("--batch-size", type=_at_least_one, default=64)
    predict.add_argument(
        "--ensemble", metavar="NAME", help="predict with this ensemble of the run, not the experts"
    )
    predict.add_argument("--out", help="file to write csv or jsonl to")
    predict.add_argument(
        "--resume", action="store_true", help="continue --out: files that it holds are left out"
    )

    serve_command.add_arithmetic(predict)

    export = command("export", _export, "Write a run for use elsewhere: ONNX or torch.export.")
    export_command.add_options(export)

    serve = command("serve", _serve, "Serve a run over HTTP, with a page to try it.")
    serve_command.add_options(serve)

    recipes = command("recipes", _recipes, "List the shipped recipes, or copy one to change it.")
    recipes.add_argument("action", nargs="?", choices=("list", "copy"), default="list")
    recipes.add_argument("recipe", nargs="?", help="to copy")
    recipes.add_argument("to", nargs="?", default=".", help="file or folder (default: here)")

    inspect = command("inspect", _inspect, "MACs and parameters of a recipe's or run's networks.")
    inspect.add_argument("source", help="recipe or run")
    inspect.add_argument("overrides", nargs="*", metavar="key=value")
    inspect.add_argument(
        "--exit-rate", type=float, metavar="R", help="of the mixture, in [0, 1] (default: several)"
    )

    divide = command(
        "divide", _divide, "Divide a network into S small ones of its cost; print what they become."
    )
    divide.add_argument("model", help="any network by name, or paper/NAME such as paper/wrn_28_10")
    divide.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of the network, such as width=64"
    )
    divide.add_argument("-s", type=int, required=True, metavar="S", help="number of networks")
    divide.add_argument(
        "--match", default="macs", help="what stays the same: macs (default) or parameters"
    )
    divide.add_argument(
        "--rule", help="solve, or a published rule such as widening (default: paper's for paper/)"
    )
    divide.add_argument("--knob", help="argument of the network that solve changes")
    divide.add_argument("--size", type=int, help="side of the images (default: 32, or paper's)")
    divide.add_argument("--classes", type=int, help="(default: 10, or paper's)")
    divide.add_argument(
        "--tolerance", type=float, default=0.03, help="of solve, relative (default: 0.03)"
    )
    divide.add_argument("--weight-decay", type=float, help="of the recipe, to be divided too")
    divide.add_argument(
        "--regulariser",
        action="append",
        default=[],
        metavar="KIND=RULE",
        help="such as dropout=none: other than the published rule; may be repeated",
    )
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _train(arguments: argparse.Namespace) -> None:
    from vision.evaluation.calibrate import default_points
    from vision.recipe import load_recipe
    from vision.run import load_run
    from vision.training.processes import processes
    from vision.training.train import train

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        return _dry_run(arguments.recipe, arguments.overrides, recipe)
    folder = Path(arguments.out or f"runs/{Path(arguments.recipe).stem}-s{recipe.seed}")
    start = time.monotonic()
    data = train(recipe, folder, resume=arguments.resume, stop_after=arguments.stop_after)
    if processes().rank != 0:
        return
    print(f"trained in {time.monotonic() - start:.0f} s; run folder: {folder}")
    if recipe.has_team:
        console.print(_points_table(default_points(load_run(folder), data)))
    print(f"next: coe-vision evaluate {folder}")


def _dry_run(source: str, overrides: Sequence[str], recipe) -> None:
    from vision.commands.inspect import describe, untrained
    from vision.recipe_networks import run_macs
    from vision.training.dry_run import check_budget, two_steps

    for table in describe(source, overrides):
        console.print(table)
    print(check_budget(recipe, run_macs(untrained(recipe))), flush=True)
    for line in two_steps(recipe).lines(recipe):
        print(line)


def _evaluate(arguments: argparse.Namespace) -> None:
    from vision.evaluation import ensemble_table
    from vision.evaluation.evaluate import evaluate
    from vision.evaluation.table import rich_table
    from vision.run import load_run

    runs = [load_run(path, team=False) for path in arguments.runs]
    folder = Path(arguments.out) if arguments.out else runs[0].folder / "evaluation"
    lines, ensembles = evaluate(
        runs,
        folder,
        data_path=arguments.data,
        batch_size=arguments.batch_size,
        time_images=0 if arguments.no_time else 512,
    )
    names = ", ".join(run.folder.name for run in runs)
    console.print(rich_table(lines, f"{names} on test data; thresholds fitted on validation data"))
    if ensembles:
        console.print(ensemble_table.rich_table(ensembles))
    for name in runs[0].recipe.without_control:
        print(
            f"ensemble {name} has no control: train its undivided network (s = 1) in the same run"
        )
    pictures = ["trade_off.png", *["classes_per_expert.png"] * runs[0].recipe.has_team]
    tables = ["table.csv", "table.md", *["ensembles.csv", "ensembles.md"] * bool(ensembles)]
    for what, names in (("pictures", pictures), ("tables", tables)):
        print(f"{what}: {', '.join(str(folder / name) for name in names)}")
    print(f"images to try: {folder / 'examples'}")


def _calibrate(arguments: argparse.Namespace) -> None:
    from vision.evaluation.calibrate import calibrate
    from vision.run import load_run, load_run_data

    run = load_run(arguments.run)
    data = load_run_data(run, arguments.data, decode=("validation",))
    points = calibrate(
        run, data, arguments.aims, guarantee=arguments.guarantee, batch_size=arguments.batch_size
    )
    console.print(_points_table(points))


def _points_table(points: Iterable) -> Table:
    table = Table(title="operating points, fitted on validation data", title_justify="left")
    for heading in ("name", "threshold", "exits %", "top-1 %", "mean cost"):
        table.add_column(heading, justify="left" if heading == "name" else "right")
    for point in points:
        cost = (
            f"{point.cost / 1e6:.3g} MMACs" if point.cost_unit == "macs" else f"{point.cost:.3f} ms"
        )
        table.add_row(
            point.name,
            f"{point.threshold:.4f}",
            f"{100 * point.exit_rate:.1f}",
            f"{100 * point.quality:.2f}",
            cost,
        )
    return table


def _predict(arguments: argparse.Namespace) -> int:
    from vision.prediction.ensemble_predictor import EnsemblePredictor
    from vision.prediction.files import find_images, predict_files
    from vision.prediction.predictor import Predictor
    from vision.prediction.results import heading, line, open_results
    from vision.progress import progress
    from vision.run import load_run

    kind, path = arguments.format, arguments.out and Path(arguments.out)
    if path and kind == "table":
        kind = "csv" if path.suffix == ".csv" else "jsonl"
    if arguments.resume and not path:
        raise ValueError("--resume continues a file: give it as --out FILE")
    run = load_run(arguments.run, team=False)
    options = {"batch_size": arguments.batch_size, "precision": arguments.precision}
    if arguments.ensemble is not None or run.networks.team is None:
        if arguments.compiled:
            raise ValueError("--compiled is for delegator and experts, not for an ensemble")
        predictor = EnsemblePredictor(run, arguments.ensemble, **options)
    else:
        predictor = Predictor(run, compiled=arguments.compiled, **options)
    files = find_images(arguments.images)
    budget = predictor.resolve(arguments.at, arguments.threshold)
    results, done = sys.stdout, set()
    if path:
        results, done = open_results(path, kind, budget.threshold, arguments.resume)
    elif kind != "table":
        results.write(heading(kind))
    files = [file for file in files if str(file) not in done]
    outcomes = predict_files(predictor, files, budget)
    rows, failed = [], 0
    for outcome in progress(outcomes, len(files), "predicting"):
        failed += outcome.error is not None
        if kind == "table":
            rows.append(outcome)
        else:
            results.write(line(outcome, kind))
            results.flush()
    if kind == "table":
        console.print(_predictions_table(rows, budget.threshold))
    if path:
        results.close()
        left_out = f", {len(done)} were there already" if done else ""
        print(f"{len(files)} predictions written to {path}{left_out}")
    if failed:
        print(
            f"coe-vision predict: {failed} of {len(files)} files could not be read", file=sys.stderr
        )
    return FAILED if failed else 0


def _route(exited: bool | None, expert: int | None) -> str:
    if exited is None:
        return "ensemble"
    return "ended early" if exited else f"expert {expert}"


def _predictions_table(outcomes: Sequence, threshold: float) -> Table:
    title = None if all(o.exited is None for o in outcomes) else f"threshold {threshold:.4f}"
    table = Table(title=title, title_justify="left")
    for heading in ("file", "label", "probability", "route", "confidence", "MMACs"):
        table.add_column(
            heading, justify="left" if heading in ("file", "label", "route") else "right"
        )
    for outcome in outcomes:
        if outcome.error is not None:
            table.add_row(outcome.file, Text(outcome.error, "red"), "", "", "", "")
            continue
        table.add_row(
            outcome.file,
            outcome.label,
            f"{outcome.probability:.3f}",
            _route(outcome.exited, outcome.expert),
            f"{outcome.confidence:.3f}",
            f"{outcome.macs / 1e6:.3g}",
        )
    return table


def _export(arguments: argparse.Namespace) -> None:
    export_command.export(arguments)


def _serve(arguments: argparse.Namespace) -> None:
    serve_command.serve(arguments)


def _recipes(arguments: argparse.Namespace) -> None:
    from vision.recipe import find_recipe, shipped_recipes

    if arguments.action == "list":
        shipped = shipped_recipes()
        width = 2 + max(map(len, shipped))
        for name, path in shipped.items():
            print(f"{name:{width}}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
        return
    if arguments.recipe is None:
        raise ValueError("copy which recipe? `coe-vision recipes` lists them")
    source = find_recipe(arguments.recipe)
    target = Path(arguments.to)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ValueError(f"{target} exists already and is left as it is; choose another name")
    shutil.copyfile(source, target)
    print(f"copied to {target}; run it with: coe-vision train {target}")


def _inspect(arguments: argparse.Namespace) -> None:
    from vision.commands.inspect import describe

    for table in describe(arguments.source, arguments.overrides, arguments.exit_rate):
        console.print(table)


def _divide(arguments: argparse.Namespace) -> None:
    from vision.divide.division import divide_network, division_tables, parse_options, recipe_entry
    from vision.networks.network import Network

    rules = dict(text.partition("=")[::2] for text in arguments.regulariser)
    division = divide_network(
        Network(arguments.model, options=parse_options(arguments.overrides)),
        arguments.s,
        arguments.match,
        rule=arguments.rule,
        num_classes=arguments.classes,
        image_size=arguments.size,
        tolerance=arguments.tolerance,
        knob=arguments.knob,
        weight_decay=arguments.weight_decay,
        regulariser_rules=rules,
    )
    for table in division_tables(division):
        console.print(table)
    print(f"in a recipe, for each of the {division.s}:")
    print(recipe_entry(division))


if __name__ == "__main__":
    sys.exit(main())
