"""Evaluate one run, or several of one recipe: table, CSV, pictures."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from coe_core import Law, TradeOffCurve, confidence
from coe_core.exit_rules import ExitKind
from coe_core.support.files import write_json, write_text
from vision.data.bands import to_be_seen
from vision.data.load import ImageData
from vision.data.shards import Member
from vision.errors import RunError
from vision.evaluation import deployed, doubted, ensemble_table, pictures
from vision.evaluation.deployed import DeployedRow, chosen_budgets, deployed_rows
from vision.evaluation.doubted import Doubted, doubted_labels
from vision.evaluation.ensemble_table import EnsembleRow
from vision.evaluation.law import law_table, team_law
from vision.evaluation.predictions import Predictions, diverged_line, predict_all
from vision.evaluation.stages import fit_stages
from vision.evaluation.summary import (
    SummaryRow,
    by_class_csv,
    csv_table,
    markdown_table,
    plain_rows,
    summarise,
)
from vision.evaluation.table import PredictorRow, table_rows
from vision.evaluation.timing import milliseconds_per_image
from vision.precision import choose_precision, under_autocast
from vision.recipe_networks import run_macs
from vision.run import Run, load_run_data, provenance
from vision.systems import COE

NUM_EXAMPLES = 8
LONGEST_NAME = 100  # bytes of a class in the name of an example


class Evaluation(NamedTuple):
    """What `evaluate` prints."""

    lines: list[SummaryRow]
    ensembles: list[EnsembleRow]  # in detail; none without ensembles
    diverged: list[str]  # a line about each control or ensemble whose logits are not finite
    laws: list[Law]  # of each run with a team, in their order
    deployed: list[DeployedRow]  # what users get at each operating point
    left_out: list[str]  # a line about each stored point that is of other weights
    class_images: list[int]  # test images of each class
    doubted: list[Doubted]  # held-out images whose labels are worth a look

    @property
    def is_uneven(self) -> bool:
        """Whether one class has twice as many test images as another, so that balanced accuracy differs."""
        return max(self.class_images) >= 2 * min(self.class_images)


def evaluate(
    runs: Sequence[Run],
    folder: Path,
    *,
    data_path: str | None = None,
    batch_size: int = 64,
    time_images: int = 512,
    exits_by: ExitKind = "max_probability",
    at: Sequence[str] | None = None,
    system: str | None = None,
) -> Evaluation:
    """Table over the runs; writes it, the law of each, pictures and examples to ``folder``.

    The files are table.csv, table.md, table.json, classes.csv (accuracy on each class), per_run.csv, law.csv,
    trade_off.png and classes_per_expert.png; of runs with ensembles also ensembles.csv and ensembles.md; and
    doubted_labels.csv, of held-out images whose labels are worth a look, where there are some.

    Args:
        runs: of one recipe, differing in seed.
        folder: for the results; made if missing. Files of an earlier evaluation are replaced.
        data_path: where the data lie now, if not where they lay in training.
        batch_size: for measured time.
        time_images: test images that time is measured on; 0 measures none.
        exits_by: what exits are decided by, of the collaboration and of the cascade.
        at: operating points, or multiply-adds, whose deployed system is evaluated; None: all stored ones.
        system: in place of the one that was chosen, see `vision.systems`.

    Raises:
        RunError: runs of different classes, a team whose logits are not finite, or an operating point or
            a system that a run does not have.
    """
    first = runs[0]
    _check_alike(runs)
    chosen = [chosen_budgets(run, at, system) for run in runs]
    data = load_run_data(first, data_path)
    folder.mkdir(parents=True, exist_ok=True)
    tables: list[list[PredictorRow]] = []
    curves: dict[str, list[TradeOffCurve]] = {}
    validations: list[Predictions] = []
    tests: list[Predictions] = []
    diverged: list[str] = []
    laws: list[Law] = []
    for number, run in enumerate(runs):
        validation, test = _predicted(run, data, f"run {number + 1}/{len(runs)}")
        diverged += [
            diverged_line(str(run.folder), name, count, len(test.target))
            for name, count in test.diverged().items()
        ]
        macs = run_macs(run.networks)
        rows = table_rows(
            validation, test, macs, run.networks, seed=run.recipe.seed, confidence=exits_by
        )
        if time_images:
            rows = _timed(run, rows, data, batch_size, time_images)
        tables.append(rows)
        validations.append(validation)
        tests.append(test)
        stages = fit_stages(validation, test, macs, exits_by)
        for name, stage in stages.items():
            curves.setdefault(name, []).append(stage.test.curve())
        laws += [team_law(test, stages[COE])] if COE in stages else []
    _show_images(first, data, tests[0], folder)
    lines = summarise(tables)
    title = f"{first.recipe.data.name}, {len(data.test):,} test images, {len(runs)} run(s)"
    pictures.draw_trade_off(folder / "trade_off.png", title, curves, lines)
    has_ensembles, macs = bool(first.recipe.ensembles), run_macs(first.networks)
    detail = ensemble_table.ensemble_rows(tests, macs) if has_ensembles else []
    at_points = deployed_rows(
        [budgets for budgets, _ in chosen], tests, [run_macs(run.networks) for run in runs]
    )
    left_out = [line for _, lines_of_run in chosen for line in lines_of_run]
    counts = torch.bincount(data.test.targets, minlength=len(data.classes)).tolist()
    odd = _doubted(data, validations, tests)
    evaluation = Evaluation(lines, detail, diverged, laws, at_points, left_out, counts, odd)
    _write_tables(evaluation, runs, tables, folder)
    _write_provenance(data, runs, batch_size, folder)
    return evaluation


def _write_provenance(data: ImageData, runs: Sequence[Run], batch_size: int, folder: Path) -> None:
    about = provenance(
        data,
        runs=[str(run.folder) for run in runs],
        diverged={str(run.folder): run.networks.diverged() for run in runs},
        batch_size=batch_size,
    )
    write_json(folder / "provenance.json", about)


def _doubted(
    data: ImageData, validations: Sequence[Predictions], tests: Sequence[Predictions]
) -> list[Doubted]:
    """Of both held-out splits; of the one where validation stands in for test."""
    found = doubted_labels("test", data.test, tests)
    if data.test_is_validation:
        return found
    return [*doubted_labels("validation", data.validation, validations), *found]


def _predicted(run: Run, data: ImageData, number: str) -> list[Predictions]:
    """On validation and on test data."""
    precision, predictions = choose_precision(run.recipe.train.precision), []
    for split in ("validation", "test"):
        show = f"{number}: {run.folder.name}, {split} data"
        predictions.append(predict_all(run.networks, getattr(data, split), precision, show))
        predictions[-1].check_team(str(run.folder))
    return predictions


def _check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs of other classes or images than the first, and one that is given twice."""
    first = runs[0]
    seen: dict[Path, Run] = {}
    for run in runs:
        if (again := seen.setdefault(run.checkpoint.resolve(), run)) is not run:
            raise RunError(f"{again.folder} is given twice, as if it were two seeds: give it once")
    for run in runs[1:]:
        if run.networks.classes != first.networks.classes:
            raise RunError(
                f"{first.folder} knows {len(first.networks.classes)} classes and {run.folder} "
                f"{len(run.networks.classes)}, or others: evaluate runs of one recipe together"
            )
        if _shape(run) != _shape(first):
            raise RunError(
                f"{first.folder} takes images of (size, channels, resize) {_shape(first)}, {run.folder} "
                f"of {_shape(run)}: evaluate runs of one recipe together"
            )


def _show_images(run: Run, data: ImageData, test: Predictions, folder: Path) -> None:
    """Examples to try, and which classes go to which expert."""
    _write_examples(run, data, test, folder / "examples")
    if test.selection_logits is not None:
        pictures.draw_selection(
            folder / "classes_per_expert.png",
            f"{run.folder.name}: share of each class that selects each expert, %",
            data.classes,
            test.target,
            test.selected_expert,
            run.recipe.num_experts,
        )


def _write_tables(
    evaluation: Evaluation,
    runs: Sequence[Run],
    tables: Sequence[Sequence[PredictorRow]],
    folder: Path,
) -> None:
    if evaluation.ensembles:
        write_text(folder / "ensembles.csv", ensemble_table.csv_table(evaluation.ensembles))
        write_text(folder / "ensembles.md", ensemble_table.markdown_table(evaluation.ensembles))
    if evaluation.deployed:
        write_text(folder / "deployed.csv", deployed.csv_table(evaluation.deployed))
        write_text(folder / "deployed.md", deployed.markdown_table(evaluation.deployed))
    write_text(folder / "table.csv", csv_table(evaluation.lines))
    write_text(folder / "table.md", markdown_table(evaluation.lines, evaluation.is_uneven))
    classes = runs[0].networks.classes
    write_json(folder / "table.json", plain_rows(evaluation.lines, classes))
    by_class = by_class_csv(evaluation.lines, classes, evaluation.class_images)
    write_text(folder / "classes.csv", by_class)
    labels = folder / "doubted_labels.csv"
    labels.unlink(missing_ok=True)
    if evaluation.doubted:
        write_text(labels, doubted.csv_table(evaluation.doubted))
    if evaluation.laws:
        seeds = [run.recipe.seed for run in runs]
        write_text(folder / "law.csv", law_table(seeds, evaluation.laws))
    per_run = [
        (run.recipe.seed, csv_table(summarise([rows])))
        for run, rows in zip(runs, tables, strict=True)
    ]
    write_text(folder / "per_run.csv", _join_by_seed(per_run))


def _images(run: Run, data: ImageData, count: int) -> Tensor:
    raw = torch.stack([data.test[i]["image"] for i in range(min(count, len(data.test)))])
    return run.networks.prepare(raw.to(run.networks.device))


def _timed(
    run: Run, rows: list[PredictorRow], data: ImageData, batch_size: int, count: int
) -> list[PredictorRow]:
    """Rows with measured time: real early termination, in batches, all predictors in turns."""
    precision = choose_precision(run.recipe.train.precision)
    images = _images(run, data, count)
    predictors = {
        row.name: under_autocast(row.predictor, precision)
        for row in rows
        if row.predictor is not None
    }
    times = milliseconds_per_image(predictors, images, min(batch_size, len(images)))
    return [dataclasses.replace(row, milliseconds=times.get(row.name)) for row in rows]


def _write_examples(run: Run, data: ImageData, test: Predictions, folder: Path) -> None:
    """A few test images as files, the surest and the least sure, to try `predict` on."""
    folder.mkdir(exist_ok=True)
    for earlier in folder.glob("[0-9]_*"):
        earlier.unlink()
    logits = test.rough_logits
    if logits is None:
        logits = next(iter(test.ensemble_logits.values())).mean(1)
    order = torch.argsort(confidence(logits), descending=True).tolist()
    half = NUM_EXAMPLES // 2
    for number, index in enumerate(order[:half] + order[-half:]):
        sample = data.test[index]
        name = f"{number}_{_file_name(data.classes[int(sample['target'])])}"
        if data.test.paths is not None:  # as it is: what networks see is made from it once more
            source = data.test.paths[index]
            if isinstance(source, Member):
                (folder / (name + Path(source.name).suffix)).write_bytes(source.read_bytes())
            else:
                shutil.copyfile(source, folder / (name + Path(source).suffix))
            continue
        to_be_seen(sample["image"]).save(folder / f"{name}.png")


def _file_name(label: str) -> str:
    r"""A class's name as part of a file's: of letters that any system takes, and not too long.

    Example:
        >>> _file_name("a/b\r"), len(_file_name("ö" * 250).encode())
        ('a_b_', 100)
    """
    plain = "".join(
        letter if letter.isprintable() and letter not in '/\\:*?"<>|' else "_" for letter in label
    )
    return plain.encode(errors="replace")[:LONGEST_NAME].decode(errors="ignore")


def _shape(run: Run) -> tuple[int | tuple[int, int], int, str]:
    preprocess = run.networks.preprocess
    return preprocess.size, preprocess.channels, preprocess.resize


def _join_by_seed(tables: Sequence[tuple[int, str]]) -> str:
    """One CSV with a column for the seed."""
    lines: list[str] = []
    for seed, text in tables:
        heading, *body = text.splitlines()
        lines += [f"seed,{heading}"] if not lines else []
        lines += [f"{seed},{line}" for line in body]
    return "\n".join(lines) + "\n"
