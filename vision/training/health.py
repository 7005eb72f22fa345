"""What a training says of itself: what it costs before it starts, how long it will take, what looks wrong."""

from __future__ import annotations

import datetime
import resource
import sys
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from coe_core.support.aims import size_text
from vision.recipe import Recipe
from vision.recipe_networks import Networks, RunMacs

if TYPE_CHECKING:
    from vision.training.module import CoETraining

WORTH_TELLING = 30.0  # seconds that are left
FIRST_STEPS = 10  # from which the time of a training is told
STANDING = 0.99  # of the first epoch's loss: a loss above it has not moved
STANDING_EPOCHS = 3  # after which that is told


def cost_line(networks: Networks, macs: RunMacs, num_images: int) -> str:
    """Parameters, multiply-adds and steps of a training, in one line.

    Args:
        networks: that are trained.
        macs: of each.
        num_images: of an epoch.
    """
    recipe = networks.recipe
    total = sum(p.numel() for p in networks.parameters())
    forward = macs.delegator + sum(macs.experts) + sum(macs.controls.values())
    forward += sum(macs.cascade or ())
    forward += sum(macs.ensembles[name] * e.s for name, e in recipe.ensembles.items())
    steps = num_images // recipe.train.images_per_step
    return (
        f"to train: {total / 1e6:.3g} million parameters in all networks, {forward / 1e6:.4g} million "
        f"multiply-adds an image forwards; {_epochs(recipe.train.epochs)} of {steps} steps of "
        f"{recipe.train.images_per_step} images"
    )


def average_warning(recipe: Recipe, num_steps: int) -> str | None:
    """What to say of a moving average that looks back further than the training is long.

    Example:
        >>> from vision.recipe import load_recipe
        >>> recipe = load_recipe("digits", ["train.ema_decay=0.9999"])
        >>> average_warning(recipe, 200)
        'train.ema_decay=0.9999 is not reached in 200 steps, at whose end the average weighs the past by \
0.957 (its warm-up): lower it, or train longer'
        >>> average_warning(recipe, 200_000)
    """
    decay, reached = recipe.train.ema_decay, (1 + num_steps) / (10 + num_steps)
    if reached >= decay:
        return None
    return (
        f"train.ema_decay={decay:g} is not reached in {num_steps} steps, at whose end the average weighs the "
        f"past by {reached:.3f} (its warm-up): lower it, or train longer"
    )


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


class Expectation(Callback):
    """After the first steps: how long the training will take, and the memory that it has taken."""

    def __init__(self) -> None:
        self._start, self._first = 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        if self._start == 0.0:  # the first step also pays what is only done once
            self._start, self._first = time.monotonic(), trainer.global_step
        elif trainer.global_step == self._first + FIRST_STEPS and trainer.is_global_zero:
            per_step = (time.monotonic() - self._start) / FIRST_STEPS
            left = per_step * (cast("CoETraining", pl_module).num_steps - trainer.global_step)
            if left < WORTH_TELLING:
                return
            shared = cast("CoETraining", pl_module).split_step > trainer.global_step
            more = "; more once the experts are no longer one network" if shared else ""
            print(
                f"expected: {datetime.timedelta(seconds=round(left))} more (from {FIRST_STEPS} steps{more}); "
                f"{_memory()}",
                flush=True,
            )


def _memory() -> str:
    if torch.cuda.is_available():
        return f"{size_text(torch.cuda.max_memory_allocated())} of the GPU's memory so far"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    return f"{size_text(peak)} of memory so far"


class Standing(Callback):
    """Tells once of a loss that has not moved since the first epoch."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.lowest = float("inf")
        self.told = False

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "lowest": self.lowest, "told": self.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.lowest = state_dict["first"], state_dict["lowest"]
        self.told = state_dict["told"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        recipe = cast("CoETraining", pl_module).recipe
        name = "rough" if recipe.has_team else f"ensemble {next(iter(recipe.ensembles))}"
        value = trainer.callback_metrics.get(f"train/{name}_loss")
        if value is None:
            return
        loss = float(value)
        self.first = loss if self.first is None else self.first
        self.lowest = min(self.lowest, loss)
        stands = self.lowest > STANDING * self.first
        if trainer.current_epoch + 1 >= STANDING_EPOCHS and stands and not self.told:
            self.told = True
            if trainer.is_global_zero:
                print(
                    standing_line(self.first, loss, trainer.current_epoch, recipe), file=sys.stderr
                )


def standing_line(first: float, now: float, epoch: int, recipe: Recipe) -> str:
    """What happened, and what to try."""
    return (
        f"the loss stands still: {first:.3f} in epoch 1, {now:.3f} in epoch {epoch + 1}; most likely "
        f"train.lr={recipe.train.lr:g} is far too low or too high (`coe-vision train ... --find-lr`), or the "
        "labels do not go with the images (`coe-vision check`)"
    )


class Patience(EarlyStopping):
    """Ends the training when the accuracy that the best checkpoint is chosen by rises no more.

    Args:
        metric: higher is better.
        epochs: without a better one.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        super().__init__(metric, patience=epochs, mode="max", check_on_train_epoch_end=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True  # it had ended

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            print(
                f"ended after epoch {trainer.current_epoch + 1}: {_epochs(self.patience)} without a higher "
                f"{self.monitor} (train.patience)",
                flush=True,
            )
