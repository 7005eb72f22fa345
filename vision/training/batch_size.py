"""`train.batch_size: auto`: as many images a step as memory and the number of images allow. OURS."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from coe_core.support.aims import size_text
from coe_core.support.memory import available_memory
from vision.checkpoints import LAST, load_checkpoint
from vision.errors import Interrupted, RunError
from vision.recipe import Recipe, recipe_from_dict
from vision.training.dry_run import DryRun, two_steps
from vision.training.processes import processes
from vision.training.starts import STARTS

SHARE = 0.5  # of the available memory; the rest is for what lives shorter than the backward pass, and others
FEWEST_STEPS = 10  # of an epoch
MOST = 256  # images of a step: a learning rate that is left as it is means no larger batches
AT_ONCE = 2  # images, at least: batch normalisation and balanced portions need a second one
_TRIED = 64  # batch size of the recipe that is measured, of which a few images are; see `two_steps`


@dataclass(frozen=True)
class BatchSize:
    """What was chosen, and within what.

    Attributes:
        images: of a step.
        accumulate: parts of a step.
        memory: images that memory holds at once.
        data: images of a step with `FEWEST_STEPS` in an epoch; None: the number of images is not known.
        available_bytes, state_bytes, image_bytes: of which ``memory`` is made.
    """

    images: int
    accumulate: int
    memory: int
    data: int | None
    available_bytes: int
    state_bytes: int
    image_bytes: float

    def line(self, lr: float) -> str:
        """What was chosen and why, in one line.

        Args:
            lr: the recipe's learning rate, which stays.
        """
        parts = f" in {self.accumulate} parts of {self.images // self.accumulate}"
        data = "the number of images is not known yet"
        if self.data is not None:
            data = f"{FEWEST_STEPS} steps an epoch allow {self.data:,} a step"
        memory = _shares(self.available_bytes, self.state_bytes, self.image_bytes)
        return (
            f"train.batch_size: auto chose {self.images}{parts * (self.accumulate > 1)}: memory holds "
            f"{self.memory:,} images at once ({memory}), {data}, the most is {MOST}; train.lr={lr:g} is left "
            "as it is (--find-lr tries others)"
        )


def _shares(available: int, state: int, image: float) -> str:
    return (
        f"{SHARE:.0%} of {size_text(available)} available, {size_text(state)} for weights, gradients and "
        f"optimiser, {size_text(image)} an image"
    )


def choose_batch_size(
    available_bytes: int,
    state_bytes: int,
    image_bytes: float,
    num_images: int | None,
    accumulate: int = 1,
) -> BatchSize:
    """The largest power of two of images at once that memory, the number of images and `MOST` allow.

    Args:
        available_bytes: of memory; a part of it is used, see `SHARE`.
        state_bytes: weights, their average, gradients and the optimiser's state.
        image_bytes: kept for the backward pass of one image.
        num_images: of an epoch; None: not known.
        accumulate: parts of a step, of which one is in memory at a time.

    Raises:
        RunError: memory holds no two images at once.

    Example:
        >>> choose_batch_size(8 * 2**30, 2**30, 25 * 2**20, num_images=1500).images
        64
    """
    memory = int((SHARE * available_bytes - state_bytes) / max(image_bytes, 1.0))
    if memory < AT_ONCE:
        raise RunError(
            f"train.batch_size: auto finds no room for {AT_ONCE} images at once: "
            f"{_shares(available_bytes, state_bytes, image_bytes)}; lower data.size, take smaller or fewer "
            "networks, or give train.batch_size a number"
        )
    data = None if num_images is None else num_images // FEWEST_STEPS
    step = MOST if data is None else min(MOST, data)
    at_once = max(AT_ONCE, min(memory, step // accumulate))
    images = accumulate * 2 ** (at_once.bit_length() - 1)
    return BatchSize(images, accumulate, memory, data, available_bytes, state_bytes, image_bytes)


def with_batch_size(
    recipe: Recipe,
    num_images: int | None,
    train: Callable[..., object],
    folder: Path | None = None,
) -> Recipe:
    """The recipe with a number for its batch size, which is measured and told; as it is if it has one.

    A run, or a trial of one of its starts, that has begun keeps its number.

    Args:
        recipe: what is trained.
        num_images: of an epoch; None: not known.
        train: `vision.training.train.train`, two steps of which are measured.
        folder: of the run; None: nothing is kept.

    Raises:
        RunError: no room for two images, or a system that does not say what memory is available.
        ValueError: several processes, of which none can be measured alone.
        Interrupted: by a signal; nothing was kept.
    """
    if recipe.train.batch_size != "auto":
        return recipe
    team = processes()
    for place in [] if folder is None else [folder, folder / STARTS / "0"]:
        if os.path.lexists(place / LAST):
            kept = load_checkpoint(place / LAST)["hyper_parameters"]["recipe"]
            images = recipe_from_dict(kept, str(place / LAST)).train.images_per_step
            if team.rank == 0:
                print(f"train.batch_size: auto is {images}, as the run began", flush=True)
            return replace(recipe, train=replace(recipe.train, batch_size=images))
    if team.count > 1:
        raise ValueError(
            f"train.batch_size: auto measures one process, and {team.count} were started: give a number of "
            "images over all of them (`coe-vision train RECIPE --dry-run` tells the memory that each needs)"
        )
    available, steps = _available(), _measured(recipe, train)
    chosen = choose_batch_size(
        available,
        steps.state_bytes,
        steps.activation_bytes,
        num_images,
        recipe.train.accumulate,
    )
    print(chosen.line(recipe.train.lr), flush=True)
    return replace(recipe, train=replace(recipe.train, batch_size=chosen.images))


def _available() -> int:
    """Bytes of the GPU's memory that are free; without one, of the machine's or the control group's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    available = available_memory()
    if available is None:
        raise RunError(
            "train.batch_size: auto: this system does not tell how much memory is available; give a number"
        )
    return available


def _measured(recipe: Recipe, train: Callable[..., object]) -> DryRun:
    # Compiled networks do not tell what they keep; it is no more than others keep.
    short = replace(recipe.train, batch_size=_TRIED, accumulate=1, compile=False)
    try:
        return two_steps(replace(recipe, train=short), train)
    except Interrupted as error:
        raise Interrupted(
            error.number, "stopped while train.batch_size: auto was measured; nothing was kept"
        ) from error
