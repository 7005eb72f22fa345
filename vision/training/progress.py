"""What is shown of a training: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from vision.training.module import CoETraining


def accuracies(trainer: Trainer) -> dict[str, str]:
    """Accuracies of the last validation, for the eye; empty before the first."""
    recipe = cast("CoETraining", trainer.lightning_module).recipe
    names = ("rough", "selected", "expert", "oracle") if recipe.has_team else ()
    return {
        name: f"{100 * float(trainer.callback_metrics[key]):.1f}%"
        for name in (*names, *(f"ensemble {name}" for name in recipe.ensembles))
        if (key := f"val/{name}_accuracy") in trainer.callback_metrics
    }


class ProgressBar(RichProgressBar):
    """The progress bar of terminals, with the accuracies of the last validation."""

    _accuracies: dict[str, str] = {}  # noqa: RUF012  replaced, never changed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # On every rank: what is read later, on rank 0 alone, must not wait for the others.
        self._accuracies = accuracies(trainer)
        super().on_validation_end(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {n: value for n, value in self._accuracies.items() if n != "expert"}


class ProgressLines(Callback):
    """A line per epoch, and per minute within it, with rate and remaining time: for logs and pipes."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._start = self._last = 0.0
        self._first_step = 0
        self._accuracies: dict[str, str] = {}
        self._follow: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._accuracies = accuracies(trainer)  # on every rank, as in `ProgressBar`
        self._follow = {
            name.removeprefix("portions/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("portions/")
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = trainer.global_step

    def _speed(self, trainer: Trainer, pl_module: LightningModule) -> str:
        self._last = time.monotonic()
        per_step = (self._last - self._start) / max(1, trainer.global_step - self._first_step)
        training = cast("CoETraining", pl_module)
        rate = training.recipe.train.images_per_step / max(per_step, 1e-9)
        left = per_step * (training.num_steps - trainer.global_step)
        return f"{rate:,.0f} images/s  {datetime.timedelta(seconds=round(left))} left"

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.is_last_batch or time.monotonic() - self._last < self._seconds:
            return
        steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"step {trainer.global_step % steps}/{steps}  {self._speed(trainer, pl_module)}",
            flush=True,
        )

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validation = "  ".join(f"{name} {value}" for name, value in self._accuracies.items())
        follow = "  ".join(f"{name} {value:.2f}" for name, value in self._follow.items())
        validation += f"  portions follow: {follow}" if follow else ""
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"{self._speed(trainer, pl_module)}  validation: {validation}",
            flush=True,
        )
