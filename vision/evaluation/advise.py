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
SURE = 2.0  # standard errors over the line of single networks that an advice asks for
EXITS_ASKED = (0.0, 0.1, 0.25)
SINGLE = "single network"
NAMES = {COE: "collaboration", CASCADE: "cascade"}


class Advice(NamedTuple):
    """What is expected to win, and the numbers that it goes by."""

    expected: str  # collaboration, cascade or single network
    points: list[PointResult]  # of both, at the exits asked for
    law: Law
    num_samples: int  # that the numbers are of: half of the held-out images
    recipe: Recipe  # that was trained

    @property
    def lines(self) -> list[str]:
        """What the command prints below its table."""
        best = {name: best_point(self.points, name) for name in NAMES}
        shown = [
            f"{NAMES[name]}: at best {point.above_line:+.1f} ± {point.standard_error:.1f} points over "
            f"the line through single networks ({100 * point.exit_rate:.0f}% exits)"
            for name, point in best.items()
            if point is not None
        ]
        return [f"law: {self.law.shown}", *shown, f"expect the {self.expected} to win"]


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
    used = min(1.0, max(seen / (epochs * num_train), recipe.train.batch_size / num_train))
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

    Thresholds and pooling are fitted on one half of the held-out images, all numbers are of the other
    half; the test data are not looked at.

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
    fitted_on, told_by = everything.select(rows[::2]), everything.select(rows[1::2])
    macs = run_macs(run.networks)
    result = measure(OfRun(fitted_on, told_by, macs))
    points = [point for point in result.points if point.exits in EXITS_ASKED]
    law = team_law(told_by, fit_stages(fitted_on, told_by, macs)[COE])
    return Advice(expected_winner(points), points, law, len(told_by.target), run.recipe)


def best_point(points: list[PointResult], system: str) -> PointResult | None:
    """The operating point at which a system is furthest over the line, in its standard errors."""
    known = [point for point in points if point.system == system and point.above_line is not None]
    return max(known, key=_sureness, default=None)


def _sureness(point: PointResult) -> float:
    above, error = point.above_line or 0.0, point.standard_error or 0.0
    return above / error if error > 0 else math.copysign(math.inf, above) if above else 0.0


def expected_winner(points: list[PointResult]) -> str:
    """Collaboration or cascade, if it is over the line by two standard errors; the single network else.

    Of both the one that is further over the line; the cascade, which is cheaper to train, where they are
    within one standard error of each other.

    Example:
        >>> def point(system, above):
        ...     return PointResult(system, 0.0, 0.0, 1e6, 80.0, above, 0.5)
        >>> expected_winner([point("CoE", 1.5), point("cascade", 1.2)])
        'cascade'
        >>> expected_winner([point("CoE", 2.5), point("cascade", 1.2)])
        'collaboration'
        >>> expected_winner([point("CoE", 0.5), point("cascade", -1.0)])
        'single network'
    """
    team, cascade = best_point(points, COE), best_point(points, CASCADE)
    wins = [point for point in (team, cascade) if point and _sureness(point) >= SURE]
    if not wins:
        return SINGLE
    best = max(wins, key=lambda point: point.above_line or 0.0)
    if best is team and cascade in wins and team is not None and cascade is not None:
        ahead = (team.above_line or 0.0) - (cascade.above_line or 0.0)
        best = cascade if ahead < (team.standard_error or 0.0) else team
    return NAMES[best.system]


def _plain(advice: Advice) -> dict[str, Any]:
    return {
        "expected": advice.expected,
        "points": [point._asdict() for point in advice.points],
        "law": {**advice.law._asdict(), "above_mean_expert": advice.law.above_mean_expert},
        "num_samples": advice.num_samples,
        "epochs": advice.recipe.train.epochs,
        "train_fraction": advice.recipe.data.train_fraction,
    }
