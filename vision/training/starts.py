"""Several cheap starts of one training: the one goes on whose specialists gain most on held-out images."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from coe_core.support.files import write_bytes, write_json
from vision.checkpoints import LAST
from vision.errors import RunError
from vision.recipe import Recipe
from vision.training.module import GAIN

STARTS = Path("starts")  # folder of the trials, inside the run's; gone when one of them goes on
RECORD = Path("starts.json")  # what each gained
_SEEDS_APART = 104_729  # a prime: starts of neighbouring seeds are not each other's


def seed_of_start(recipe: Recipe, start: int) -> int:
    """The seed of the initial weights; of the first start the recipe's own.

    Example:
        >>> from vision.recipe import load_recipe
        >>> seed_of_start(load_recipe("digits"), 0), seed_of_start(load_recipe("digits"), 2)
        (0, 209458)
    """
    return (recipe.seed + start * _SEEDS_APART) % 2**32


def keep_best_start(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    rank: int,
    try_start: Callable[[Path, int], object],
) -> None:
    """Train every start up to the trial's end, and make the best one the run; nothing where that is done.

    Args:
        recipe: with several starts.
        folder: of the run.
        resume: go on with trials that were interrupted.
        rank: of this process; the first writes.
        try_start: trains one start up to the trial's end, in its folder, from where it stopped.

    Raises:
        RunError: trials lie there and are not to be resumed, or none of them can be compared.
    """
    if (folder / LAST).exists():
        return
    # Not by the folders: another process may have made them a moment ago.
    if not resume and any((folder / STARTS).glob(f"*/{LAST}")):
        raise RunError(
            f"{folder} already holds trials of a run; continue it with --resume, or choose another --out"
        )
    gains = []
    for start in range(recipe.portions.starts):
        trial = folder / STARTS / str(start)
        try_start(trial, start)
        if rank == 0:
            gains.append(_gain(trial))
            print(
                f"start {start + 1}/{recipe.portions.starts}: specialists gain {100 * gains[-1]:+.2f} points "
                f"of probability after {recipe.trial_epochs} of {recipe.train.epochs} epochs",
                flush=True,
            )
    if rank == 0:
        best = max(range(len(gains)), key=gains.__getitem__)
        print(f"start {best + 1} is kept", flush=True)
        write_json(folder / RECORD, {"specialist_gain": gains, "kept": best})
        _go_on(folder / STARTS / str(best), folder)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()  # the others read what the first has copied


def _gain(trial: Path) -> float:
    """What the specialists of a trial gain after its last epoch."""
    path = trial / "metrics/metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            values = [row[GAIN] for row in csv.DictReader(file) if row.get(GAIN)]
        return float(values[-1])
    except (OSError, ValueError, IndexError) as error:
        raise RunError(
            f"{path} does not tell what the specialists gain ({error}); remove {trial} to try it again"
        ) from error


def _go_on(trial: Path, folder: Path) -> None:
    """Copy a trial to the run, its state last: a process that is killed before begins again from here."""
    for path in sorted(trial.rglob("*")):
        place = folder / path.relative_to(trial)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        elif path != trial / LAST and not path.name.startswith("."):
            write_bytes(place, path.read_bytes())
    write_bytes(folder / LAST, (trial / LAST).read_bytes())
    shutil.rmtree(trial.parent)
