"""What to expect on some data before much is trained: a team, a cascade, or a single network. OURS."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from coe_core import Law
from coe_core.support.files import write_json
from vision.data.load import ImageData, load_data
from vision.evaluation.law import team_law
from vision.evaluation.predictions import predict_all
from vision.evaluation.stages import CASCADE, COE, fit_stages
from vision.evaluation.study import OfRun, PointResult, measure
from vision.precision import choose_precision
from vision.recipe import Recipe, load_recipe
from vision.recipe_networks import run_macs
from vision.run import load_run
from vision.training.train import train

FOR_FOLDERS = "traffic_signs"  # the shipped recipe whose networks try a folder of images
SEEN = 100_000  # training images that each network sees: a few minutes on a processor
FEWEST_EPOCHS = 4
HELD_OUT = 0.2  # of the training data at least, where they have no validation split
LIKELY, SURE = 1.0, 2.0  # standard errors over the line of single networks
EXITS_ASKED = (0.0, 0.1, 0.25)
SINGLE = "single network"
NAMES = {COE: "collaboration", CASCADE: "cascade"}


class Advice(NamedTuple):
    """What is expected to win, and the numbers that it goes by."""

    expected: str  # collaboration, cascade or single network
    points: list[PointResult]  # of both, at the exits asked for
    cost: float  # multiply-adds of an expert's network alone, at which both are compared
    law: Law
    num_samples: int  # held-out images that the numbers are of
    recipe: Recipe  # that was trained

    @property
    def lines(self) -> list[str]:
        """What the command prints below its table."""
        leads = {name: lead(self.points, name, self.cost) for name in NAMES}
        shown = [
            f"{NAMES[name]}: {difference.mean:+.1f} ± {difference.standard_error:.1f} points over the line "
            "through single networks, at about the cost of one expert's network"
            for name, difference in leads.items()
            if difference is not None
        ]
        known = [difference for difference in leads.values() if difference is not None]
        doubt = ""
        if any(abs(difference.in_errors) < SURE for difference in known):
            doubt = "; within two standard errors: look at more images (--seen, data.validation) to be surer"
        return [f"law: {self.law.shown}", *shown, f"expect the {self.expected} to win{doubt}"]


def small_recipe(source: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe that an advice trains, its length still that of the source.

    Args:
        source: a folder of images (train/CLASS/image), a recipe's file or a shipped one's name.
        overrides: of the recipe.

    Raises:
        ValueError: no such recipe, one without a team, or one without the controls that an advice compares.
    """
    if Path(source).is_dir():
        overrides = (f"data.path={source}", *overrides)
        source = FOR_FOLDERS
    recipe = load_recipe(source, overrides)
    if not recipe.has_team:
        raise ValueError(f"{source} has no delegator and experts: there is nothing to advise on")
    if len(recipe.controls) < 2 or not {"delegator", "expert"} <= set(recipe.controls):
        raise ValueError(
            f"{source} has the controls {', '.join(recipe.controls) or 'none'}: an advice compares with the "
            "networks of delegator and expert trained alone; add controls.delegator and controls.expert"
        )
    data = replace(recipe.data, validation=max(recipe.data.validation, HELD_OUT))
    return replace(recipe, data=data, portions=replace(recipe.portions, starts=1))


def shortened(recipe: Recipe, num_train: int, seen: int = SEEN) -> Recipe:
    """The recipe with at most so many images seen: first fewer epochs, then fewer images.

    Args:
        recipe: to shorten.
        num_train: training images there are.
        seen: images that every network sees in the whole training, at least 1.

    Raises:
        ValueError: nothing to see.
    """
    if seen < 1:
        raise ValueError(f"seen must be at least 1, got {seen}")
    epochs = min(recipe.train.epochs, max(math.ceil(seen / num_train), FEWEST_EPOCHS))
    batch = 1 if recipe.train.batch_size == "auto" else recipe.train.images_per_step
    used = min(1.0, max(seen / (epochs * num_train), batch / num_train))
    fraction = recipe.data.train_fraction * used
    steps = replace(
        recipe.train,
        epochs=epochs,
        statistics_epochs=min(recipe.train.statistics_epochs, epochs - 1),
    )
    return replace(
        recipe, train=steps, data=replace(recipe.data, train_fraction=min(1.0, fraction))
    )


def advise(recipe: Recipe, folder: Path, seen: int = SEEN) -> Advice:
    """Train the recipe for a short while and say what to expect; the advice lies in ``folder``/advice.json.

    Thresholds and pooling are fitted on one half of the held-out images and read off the other, then the
    other way round, and the numbers are means of both; the test data are not looked at.

    Args:
        recipe: of `small_recipe`.
        folder: of the run; one that was interrupted goes on.
        seen: see `shortened`.

    Raises:
        RunError: the folder holds another run, or a team that has diverged.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no test split.*")  # none is needed
        data = load_data(recipe.data, decode=())
        recipe = shortened(recipe, len(data.train), seen)
        data = load_data(recipe.data, decode=("train", "validation"))
    with contextlib.redirect_stdout(io.StringIO()):
        train(recipe, folder, resume=True, data=data)
    advice = advice_of(folder, data)
    write_json(folder / "advice.json", _plain(advice))
    return advice


def advice_of(folder: Path, data: ImageData) -> Advice:
    """The advice that a trained run gives on its held-out images."""
    run = load_run(folder)
    everything = predict_all(
        run.networks, data.validation, choose_precision(run.recipe.train.precision)
    )
    everything.check_team(str(folder))
    rows = torch.arange(len(everything.target))
    halves, macs = (
        (everything.select(rows[::2]), everything.select(rows[1::2])),
        run_macs(run.networks),
    )
    laws, results = [], []
    for fitted_on, told_by in (halves, halves[::-1]):
        results.append(measure(OfRun(fitted_on, told_by, macs)).points)
        laws.append(team_law(told_by, fit_stages(fitted_on, told_by, macs)[COE]))
    points = [
        _mean_point(first, second)
        for first, second in zip(*results, strict=True)
        if first.exits in EXITS_ASKED
    ]
    law = Law(*(_mean(*parts) for parts in zip(*laws, strict=True)))  # type: ignore[arg-type]
    cost = float(macs.controls["expert"])
    return Advice(expected_winner(points, cost), points, cost, law, len(rows), run.recipe)


def _mean(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2


def _mean_point(first: PointResult, second: PointResult) -> PointResult:
    """One operating point on both halves, which are other samples: their errors are independent."""
    error = None
    if first.standard_error is not None and second.standard_error is not None:
        error = math.hypot(first.standard_error, second.standard_error) / 2
    means: dict[str, Any] = {
        name: _mean(getattr(first, name), getattr(second, name))
        for name in ("exit_rate", "macs", "top1", "above_line")
    }
    return first._replace(**means, standard_error=error)


class Lead(NamedTuple):
    """How far a system is over the line through single networks, in points."""

    mean: float
    standard_error: float

    @property
    def in_errors(self) -> float:
        """In standard errors."""
        if self.standard_error > 0:
            return self.mean / self.standard_error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0


def lead(points: list[PointResult], system: str, cost: float) -> Lead | None:
    """At the operating point of a system that costs most nearly what one expert's network costs.

    None where no single networks lie on both sides of it.
    """
    own = [point for point in points if point.system == system]
    if not own:
        return None
    nearest = min(own, key=lambda point: abs(point.macs - cost))
    if nearest.above_line is None or nearest.standard_error is None:
        return None
    return Lead(nearest.above_line, nearest.standard_error)


def expected_winner(points: list[PointResult], cost: float) -> str:
    """Collaboration or cascade, if it leads the line by a standard error; the single network else.

    All at about the cost of one expert's network, so that a budget is compared and not the best of many.

    Of both the one that leads further; the cascade, which is cheaper to train, where they are within one
    standard error of each other.

    Example:
        >>> def point(system, above):
        ...     return PointResult(system, 0.0, 0.0, 1e6, 80.0, above, 0.5)
        >>> expected_winner([point("CoE", 1.5), point("cascade", 1.2)], cost=1e6)
        'cascade'
        >>> expected_winner([point("CoE", 2.5), point("cascade", 1.2)], cost=1e6)
        'collaboration'
        >>> expected_winner([point("CoE", 0.4), point("cascade", -1.0)], cost=1e6)
        'single network'
    """
    leads = {
        name: difference for name in NAMES if (difference := lead(points, name, cost)) is not None
    }
    wins = {
        name: difference for name, difference in leads.items() if difference.in_errors >= LIKELY
    }
    if not wins:
        return SINGLE
    best = max(wins, key=lambda name: wins[name].mean)
    if best == COE and CASCADE in wins:
        ahead = wins[COE].mean - wins[CASCADE].mean
        best = CASCADE if ahead < wins[COE].standard_error else COE
    return NAMES[best]


def _plain(advice: Advice) -> dict[str, Any]:
    return {
        "expected": advice.expected,
        "points": [point._asdict() for point in advice.points],
        "law": {**advice.law._asdict(), "above_mean_expert": advice.law.above_mean_expert},
        "num_samples": advice.num_samples,
        "epochs": advice.recipe.train.epochs,
        "train_fraction": advice.recipe.data.train_fraction,
    }
