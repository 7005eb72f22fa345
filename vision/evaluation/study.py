"""A study: one recipe, several variants, several seeds, all beside the same controls.

Every variant is trained under the identical recipe and budget. The controls are trained once a seed,
beside the baseline variant (no objective reaches them). Runs that are finished are kept: the same
call continues where it stopped. Thresholds and pooling weights are fitted on validation data; what is
reported is read off test data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from coe_core import fit_threshold
from coe_core.support.command import nearest
from coe_core.support.files import read_json, write_json
from coe_core.support.plain_values import read_yaml
from coe_core.support.progress import duration
from vision.data.load import ImageData, load_data
from vision.evaluation.predictions import Predictions, predict_all
from vision.evaluation.single_line import below_their_neighbours, beside_line
from vision.evaluation.stages import FittedStage, fit_stages
from vision.evaluation.table import row_costs
from vision.precision import choose_precision
from vision.recipe import load_recipe
from vision.recipe_networks import RunMacs, run_macs
from vision.run import load_run
from vision.shipped import find_study
from vision.training.train import train

_LONGEST_NAME = 100
RESULT = "result.json"  # of a run, in its folder
# What is measured of every run; percentages on test data, None where it does not apply.
METRICS = {
    "CoE": "selected expert, no exits",
    "cascade": "delegator's and expert's network trained alone, no exits",
    "CoE, mean": "at the MACs of the largest single network below the expert's, or near them",
    "cascade, mean": "the cascade at the same mean MACs",
    "single, mean": "that single network, if there is one",
    "CoE, expert": "at the expert's MACs",
    "single, expert": "the expert's network trained alone",
    "rough": "the delegator's rough prediction",
    "selected": "the selected expert's own answer, the rough one not pooled with it",
    "best two": "mean of the two best selected experts' probabilities, at the MACs of both",
    "random": "an expert at random: mean of the experts",
    "all": "mean of all experts' probabilities",
    "oracle": "some expert is right",
    "captured": "(CoE - random) / (oracle - random)",
}
EXITS = (
    0.0,
    0.1,
    0.25,
    0.5,
)  # part of the validation images that end early, at the operating points


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        variants: overrides by name; each variant is trained with every seed.
        baseline: the variant beside which the controls are trained, and that the others are compared with.
        seeds: of the recipe; the same for every variant.
        overrides: of all variants.
        name: for headings and the folder.
    """

    recipe: str
    variants: dict[str, list[str]]
    baseline: str
    seeds: list[int]
    overrides: list[str]
    name: str = "study"

    @property
    def names(self) -> list[str]:
        """Names of the variants, the baseline first."""
        return [self.baseline, *(name for name in self.variants if name != self.baseline)]

    def overrides_of(self, variant: str, seed: int) -> list[str]:
        """All overrides of one run; only the baseline trains controls."""
        controls = [] if variant == self.baseline else ["controls={}"]
        return [*self.overrides, *self.variants[variant], f"seed={seed}", *controls]


class PointResult(NamedTuple):
    """A two-stage predictor of one run at one operating point, on test data."""

    system: str  # CoE or cascade
    exits: float  # part of the validation images that the threshold ends, at most
    exit_rate: float  # on test data
    macs: float  # mean per image
    top1: float  # percent
    above_line: (
        float | None
    )  # points over the line through the single networks; None: outside of them
    standard_error: float | None  # of that, paired over the test images, in points


class RunResult(NamedTuple):
    """What one run showed."""

    metrics: dict[str, float | None]  # see `METRICS`
    points: list[PointResult]
    singles: dict[str, tuple[float, float]]  # multiply-adds and top-1 in percent
    below: list[str]  # single networks below the line through their neighbours


def load_study(name: str, data: str | None = None) -> Study:
    """A study from a YAML file or a shipped one's name; every variant's recipe is checked.

    Args:
        name: path of a file, or name of a shipped study such as digits.
        data: folder of the data, instead of the recipe's.

    Raises:
        ValueError: unknown study, key, variant or recipe, or a value of the wrong type.
    """
    path = find_study(name)
    study = _checked(read_yaml(path), path)
    if data is not None:
        overrides = [*study.overrides, f"data.path={data}"]
        study = dataclasses.replace(study, overrides=overrides)
    for variant in study.names:
        try:
            recipe = load_recipe(study.recipe, study.overrides_of(variant, study.seeds[0]))
        except ValueError as error:
            raise ValueError(f"{path}: variant {variant!r}: {error}") from error
        fault = "" if recipe.has_team else "has no delegator; a study compares collaborations"
        if recipe.train.batch_size == "auto":
            fault = (
                "has train.batch_size: auto; a study compares runs of equal batches: give a number"
            )
        if fault:
            raise ValueError(f"{path}: variant {variant!r} {fault}")
    return study


def _checked(content: Any, path: Path) -> Study:
    known = ("recipe", "variants", "baseline", "seeds", "overrides")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a study: expected keys and values at its top")
    for key in content:
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}{nearest(str(key), known)}")
    for key in known[:4]:
        if key not in content:
            raise ValueError(f"{path}: missing {key}; a study has {', '.join(known)}")
    variants, seeds = content["variants"], content["seeds"]
    overrides = content.get("overrides") or []
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"{path}: variants must be overrides by name, got {variants!r}")
    variants = {str(name): [] if words is None else words for name, words in variants.items()}
    for where, words in (("overrides", overrides), *variants.items()):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path}: {where} must be a list of key=value, got {words!r}")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{path}: seeds must be a list of whole numbers, got {seeds!r}")
    for seed in seeds:  # of the last one it would be known after hours
        if not 0 <= seed < 2**32:
            raise ValueError(f"{path}: a seed must be in [0, {2**32 - 1}], got {seed}")
    for name in variants:
        if not name.isprintable() or not 0 < len(name.encode()) <= _LONGEST_NAME:
            raise ValueError(
                f"{path}: a variant's name has 1 to {_LONGEST_NAME} bytes of printable letters, got "
                f"{name!r:.80}"
            )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}: a seed is named twice in {seeds}")
    baseline = str(content["baseline"])
    if baseline not in variants:
        raise ValueError(
            f"{path}: the baseline {baseline!r} is no variant{nearest(baseline, variants)}"
        )
    folders = [folder_name(name, 0) for name in variants]
    if len(set(folders)) < len(folders):
        raise ValueError(f"{path}: two variants differ in spaces or slashes only: rename one")
    return Study(str(content["recipe"]), variants, baseline, seeds, overrides, path.stem)


def folder_name(variant: str, seed: int) -> str:
    """The name of one run's folder inside the study's.

    Example:
        >>> folder_name("focus 0", 1)
        'focus_0-s1'
    """
    return f"{variant.replace(' ', '_').replace('/', '_')}-s{seed}"


def run_study(
    study: Study, out: Path, tell: Callable[[str], None] = lambda line: None
) -> dict[tuple[str, int], RunResult]:
    """Train and measure what is missing; results by variant and seed.

    Args:
        study: what to compare.
        out: folder of the runs; what is finished there is kept.
        tell: called with a line after each run.
    """
    out.mkdir(parents=True, exist_ok=True)
    grid = [(seed, name) for seed in study.seeds for name in study.names]
    results: dict[tuple[str, int], RunResult] = {}
    data: ImageData | None = None
    start, trained = time.monotonic(), 0
    for number, (seed, name) in enumerate(grid, 1):
        folder = out / folder_name(name, seed)
        kept = _kept(folder / RESULT)
        if kept is None:
            if data is None:
                data = load_data(load_recipe(study.recipe, study.overrides).data)
            baseline = out / folder_name(study.baseline, seed)
            kept = _run_once(study, name, seed, folder, baseline, data)
            write_json(folder / RESULT, _plain(kept))
            trained += 1
            left = (time.monotonic() - start) / trained * (len(grid) - number)
            parts = ", ".join(
                f"{metric} {kept.metrics[metric]:.1f}"
                for metric in ("CoE", "cascade", "oracle")
                if kept.metrics[metric] is not None
            )
            tell(f"{number}/{len(grid)} {name}, seed {seed}: {parts}; {duration(left)} left")
        results[name, seed] = kept
    return results


def _kept(path: Path) -> RunResult | None:
    """A finished run's result; None where there is none, or one of an older version."""
    if not path.is_file():
        return None
    stored = read_json(path)
    if set(stored) != set(RunResult._fields):
        return None  # the run is kept, and measured again
    try:
        points = [PointResult(**point) for point in stored["points"]]
        singles = {name: (float(m), float(top1)) for name, (m, top1) in stored["singles"].items()}
        metrics = {metric: stored["metrics"][metric] for metric in METRICS}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it to measure again") from error
    return RunResult(metrics, points, singles, stored["below"])


def _plain(result: RunResult) -> dict[str, Any]:
    return {**result._asdict(), "points": [point._asdict() for point in result.points]}


def _run_once(
    study: Study, variant: str, seed: int, folder: Path, baseline: Path, data: ImageData
) -> RunResult:
    recipe = load_recipe(study.recipe, study.overrides_of(variant, seed))
    with contextlib.redirect_stdout(io.StringIO()):  # the study has its own progress
        train(recipe, folder, resume=True, data=data)
    predictions = _predictions(folder, data)
    if variant != study.baseline:
        beside = _predictions(baseline, data)
        predictions = OfRun(
            dataclasses.replace(
                predictions.validation, control_logits=beside.validation.control_logits
            ),
            dataclasses.replace(predictions.test, control_logits=beside.test.control_logits),
            dataclasses.replace(predictions.macs, controls=beside.macs.controls),
        )
    return measure(predictions)


class OfRun(NamedTuple):
    """What all networks of a run say, and what they cost."""

    validation: Predictions
    test: Predictions
    macs: RunMacs


def _predictions(folder: Path, data: ImageData) -> OfRun:
    run = load_run(folder)
    precision = choose_precision(run.recipe.train.precision)
    validation, test = (
        predict_all(run.networks, split, precision) for split in (data.validation, data.test)
    )
    return OfRun(validation, test, run_macs(run.networks))


def measure(of_run: OfRun) -> RunResult:
    """Everything that a study reports of one run."""
    validation, test, macs = of_run
    stages = fit_stages(validation, test, macs)
    right = {name: test.right(logits) for name, logits in test.control_logits.items()}
    accuracy = {name: float(column.mean()) for name, column in right.items()}
    points = [
        _point(name, stage, exits, right, macs.controls)
        for name, stage in stages.items()
        for exits in EXITS
    ]
    return RunResult(
        _metrics(stages, test, macs, accuracy),
        points,
        {name: (float(macs.controls[name]), 100 * top1) for name, top1 in accuracy.items()},
        below_their_neighbours(accuracy, macs.controls),
    )


def _point(
    name: str,
    stage: FittedStage,
    exits: float,
    singles: Mapping[str, Tensor],
    single_macs: Mapping[str, float],
) -> PointResult:
    """The operating point at which at most this part of the validation images ends early."""
    curve = stage.validation.curve()
    index = int((curve.exit_rate <= exits + 1e-9).sum()) - 1
    reached = stage.test.at(float(curve.threshold[index]))
    rough, final = stage.test.qualities["accuracy"][:2]
    right = torch.where(reached.exits, rough[:, 0], final[:, 0])
    cost = reached.cost["macs"]
    beside = beside_line(right, cost, singles, single_macs)
    return PointResult(
        name,
        exits,
        reached.exit_rate,
        cost,
        100 * reached.quality,
        None if beside is None else 100 * beside.mean,
        None if beside is None else 100 * beside.standard_error,
    )


def _metrics(
    stages: Mapping[str, FittedStage],
    test: Predictions,
    macs: RunMacs,
    single: Mapping[str, float],
) -> dict[str, float | None]:
    """`METRICS` of one run, in percent."""

    def accuracy(logits: Tensor) -> float:
        return float(test.right(logits).mean())

    def at(name: str, budget: float) -> float | None:
        if name not in stages:
            return None
        curve = stages[name].validation.curve()
        index = fit_threshold(curve, "macs", max(budget, float(curve.cost.min())))
        return stages[name].test.at(float(curve.threshold[index])).quality

    team = test.team
    experts = torch.stack([test.right(logits) for logits in team.expert_logits.unbind(1)], 1)
    selected, random = accuracy(test.selected_logits), float(experts.mean())
    oracle = float(experts.amax(1).mean())
    smaller = [m for m in row_costs(macs) if m < 0.99 * macs.expert]
    mean = max(smaller, default=macs.delegator + 0.5 * macs.expert)
    of_that_cost = [name for name, m in macs.controls.items() if m == mean]
    values = {
        "CoE": _without_exits(stages, "CoE"),
        "cascade": _without_exits(stages, "cascade"),
        "CoE, mean": at("CoE", mean),
        "cascade, mean": at("cascade", mean),
        "single, mean": single[of_that_cost[0]] if of_that_cost else None,
        "CoE, expert": at("CoE", macs.expert),
        "single, expert": single.get("expert"),
        "rough": accuracy(team.rough_logits),
        "selected": selected,
        "best two": accuracy(best_two(test)),
        "random": random,
        "all": accuracy(team.expert_logits.softmax(2).mean(1)),
        "oracle": oracle,
    }
    headroom = oracle - random
    values["captured"] = (selected - random) / headroom if headroom > 0 else None
    return {name: None if value is None else 100 * value for name, value in values.items()}


def _without_exits(stages: Mapping[str, FittedStage], name: str) -> float | None:
    return None if name not in stages else stages[name].test.at(torch.inf).quality


def best_two(test: Predictions) -> Tensor:
    """Mean probabilities of the two experts that the delegator would select first."""
    _, selection, experts = test.team
    two = selection.topk(min(2, selection.shape[1]), 1).indices
    return experts.softmax(2)[torch.arange(len(two))[:, None], two].mean(1)


def results_of(
    results: Mapping[tuple[str, int], RunResult], name: str, seeds: Sequence[int]
) -> list[RunResult]:
    """The results of one variant, in the order of the seeds."""
    return [results[name, seed] for seed in seeds]
