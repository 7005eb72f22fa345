"""Try a recipe without its data: what it costs against its budget, two real steps, memory and time."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from coe_core import balanced_assignment, mixture_macs
from coe_core.support.aims import size_text
from vision.data.augmentation import Augmentation
from vision.data.facts import DATA_SETS, DataSet, classes_before_reading
from vision.data.images import ImageSet
from vision.data.load import ImageData
from vision.errors import RunError
from vision.recipe import Portions, Recipe
from vision.recipe_networks import RunMacs

if TYPE_CHECKING:
    from vision.training.module import CoETraining

IMAGES_PER_STEP = 4  # where there is no GPU


@dataclass(frozen=True)
class DryRun:
    """What two steps showed.

    Attributes:
        batch_size: images of each step.
        losses: of both steps.
        seconds: of both steps; the first also pays what is only done once.
        state_bytes: weights, their average, gradients and the optimiser's state, of one process.
        activation_bytes: kept for the backward pass, per image; of the step that keeps more.
        num_images: training images of an epoch; None: not known without the data.
        shared: part of the training in which the experts are one network.
    """

    batch_size: int
    losses: tuple[float, ...]  # of both steps
    seconds: tuple[float, ...]
    state_bytes: int
    activation_bytes: float
    num_images: int | None
    shared: float

    def lines(self, recipe: Recipe) -> Iterator[str]:
        """What the command prints."""
        sides, whole = recipe.data.sides, recipe.train.images_at_once
        yield (
            f"two steps on {self.batch_size} generated images of {sides} each (the recipe's batch: "
            f"{recipe.train.batch_size}): losses {self.losses[0]:.3f}, {self.losses[1]:.3f}"
        )
        yield (
            f"memory of a process: {size_text(self.state_bytes)} for weights, gradients and optimiser, "
            f"and {size_text(self.activation_bytes)} for each image of its part of the batch"
        )
        for count in (1, 8):
            if whole % count == 0:
                total = self.state_bytes + self.activation_bytes * whole / count
                yield f"  {count} process{'es' * (count > 1)}: about {size_text(total)} each"
        images = self.num_images or 1000
        epoch = f"an epoch of {images:,} images" if self.num_images else "1,000 images"
        hours = [s / self.batch_size * images / 3600 for s in self.seconds]
        shown = [f"{h:.1f} h" if h >= 1 else f"{3600 * h:.0f} s" for h in hours]
        device = "GPU" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
        if self.shared:
            yield (
                f"time for {epoch} here ({device}): about {shown[0]} while the experts are one network (the "
                f"first {self.shared:.0%} of the training), then {shown[1]}"
            )
        else:
            yield f"time for {epoch} here ({device}): about {shown[1]}"


class _Meter(Callback):
    """Times steps, and sums up what autograd keeps between forward and backward."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.kept: list[int] = []
        self.state_bytes = 0
        self._hooks: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        parameters = {p.untyped_storage().data_ptr() for p in pl_module.parameters()}
        storages: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        self._storages = storages
        if not cast(
            "CoETraining", pl_module
        ).recipe.train.compile:  # compiled networks refuse such hooks
            self._hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
            self._hooks.__enter__()
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))  # waits for the device
        self.seconds.append(time.monotonic() - self._start)
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None
        self.kept.append(sum(self._storages.values()))
        weights = sum(p.numel() * p.element_size() for p in pl_module.parameters())
        state = trainer.optimizers[0].state.values()
        tensors = [t for entry in state for t in entry.values() if isinstance(t, torch.Tensor)]
        optimiser = sum(t.numel() * t.element_size() for t in tensors)
        averaged = cast("CoETraining", pl_module).recipe.train.ema_decay > 0
        copies = 2 + averaged  # weights, gradients, their average
        self.state_bytes = copies * weights + optimiser


def mean_mmacs(recipe: Recipe, macs: RunMacs) -> float:
    """Million multiply-adds per image that the recipe's budget is about; see `CostPromise`."""
    rate = recipe.budget.exit_rate if recipe.budget else 0.0
    if recipe.has_team:
        return mixture_macs(macs.delegator, macs.experts, rate) / 1e6
    first, ensemble = next(iter(recipe.ensembles.items()))
    return macs.ensembles[first] * ensemble.s / 1e6


def check_budget(recipe: Recipe, macs: RunMacs) -> str:
    """A line that tells how the count compares with the budget.

    Raises:
        RunError: it is further away than the budget tolerates.
    """
    counted, budget = mean_mmacs(recipe, macs), recipe.budget
    if budget is None:
        return f"no budget in the recipe; {counted:.4g} MMACs per image without exits"
    at = f" with {budget.exit_rate:.0%} of the images ending early" if recipe.has_team else ""
    line = f"{counted:.4g} MMACs per image{at}; budget {budget.mmacs:.4g} ± {budget.tolerance:.0%}"
    if abs(counted / budget.mmacs - 1) > budget.tolerance:
        raise RunError(
            f"over or under its budget: {line}. Change the networks, or what budget: says"
        )
    return f"budget met: {line}"


def two_steps(recipe: Recipe, train: Callable[..., object]) -> DryRun:
    """Train two real steps on generated images, validation and checkpoints included, and measure them.

    On a GPU a step has as many images as one of 8 processes has; elsewhere four.

    Args:
        recipe: what is tried.
        train: `vision.training.train.train`, which measures with this before it begins.

    Raises:
        RunError: a loss that is not finite.
        ValueError: whatever the recipe's networks and settings do not take.
    """
    batch_size = min(recipe.train.images_at_once, IMAGES_PER_STEP)
    if torch.cuda.is_available():
        batch_size = max(1, recipe.train.images_at_once // 8)
    if recipe.has_team:
        batch_size = max(batch_size, 2)
    short = replace(
        recipe.train,
        batch_size=batch_size,
        accumulate=1,
        epochs=2,  # of one step each
        statistics_epochs=min(1, recipe.train.statistics_epochs),
        ema_decay=min(
            recipe.train.ema_decay, 0.1
        ),  # an average is kept, and nothing said of its length
        head_epochs=min(1, recipe.train.head_epochs),
        logger=None,
    )
    # Generated images have no groups, and one start is like another.
    follow = "selection" if recipe.portions.follow == "known" else recipe.portions.follow
    portions = Portions(follow=follow)
    # The second step is the first of different experts, however long they are one network.
    shared = 0.5 if recipe.objective.shared_start else 0.0
    objective = replace(recipe.objective, shared_start=shared)
    tried = replace(
        recipe,
        data=replace(recipe.data, workers=0),
        train=short,
        portions=portions,
        objective=objective,
    )
    meter = _Meter()
    balanced_assignment(torch.zeros(2, 2))  # compiles on its first call: not to be timed
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(tried, Path(folder), data=generated(tried, batch_size), watch=[meter])
    if not all(map(math.isfinite, meter.losses)):
        raise RunError(f"losses of two steps on generated images are not finite: {meter.losses}")
    return DryRun(
        batch_size,
        tuple(meter.losses),
        tuple(meter.seconds),
        meter.state_bytes,
        max(meter.kept) / batch_size,
        images_of_an_epoch(recipe),
        recipe.shared_start,
    )


def images_of_an_epoch(recipe: Recipe) -> int | None:
    """Training images; None: not known without the data."""
    facts = DATA_SETS.get(recipe.data.name, DataSet())
    return round((facts.num_train or 0) * (1 - recipe.data.validation)) or None


def generated(recipe: Recipe, count: int) -> ImageData:
    """Noise a little larger than the crops, of every class in turn."""
    data = recipe.data
    preprocess, generator = data.preprocess(), torch.Generator().manual_seed(recipe.seed)
    classes = classes_before_reading(data.name)
    augmentation = Augmentation(data.augmentation, data.sides) if data.augmentation else None
    exact = preprocess.resize == "exact" and not (augmentation and augmentation.crops_originals)
    height, width = data.sides
    shape = (data.channels, *(data.sides if exact else preprocess.before_crop))

    def noise(number: int) -> list[torch.Tensor]:
        return [
            torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            for _ in range(number)
        ]

    def images(number: int, drawn: Augmentation | None) -> ImageSet:
        targets = torch.arange(number) % len(classes)
        each = noise(number)
        pixels: list[torch.Tensor] | torch.Tensor = each
        if drawn is None:
            pixels = torch.stack(each)[..., :height, :width].contiguous()
        elif exact:
            pixels = torch.stack(each)
        return ImageSet(targets, classes, preprocess, pixels, None, drawn)

    held_out = images(2, None)
    return ImageData(
        images(count, augmentation), held_out, held_out, classes, preprocess, {"name": "generated"}
    )
