"""What Lightning leaves to its user: stopping at a signal, exact random state, plain progress lines."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after a step; its state is in the last checkpoint."""

    def __init__(self, number: int, checkpoint: Path):
        super().__init__(f"stopped by {signal.Signals(number).name}; state kept in {checkpoint}")
        self.number = number


class StopAtSignal(Callback):
    """SIGINT or SIGTERM: finish the step on all ranks, keep the whole state, stop.

    A second SIGINT stops at once (the checkpoint of the last epoch stays as it is).
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received = 0
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self.received), all=False):
            trainer.save_checkpoint(self.checkpoint)
            raise Interrupted(self.received or signal.SIGTERM, self.checkpoint)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class RandomState(Callback):
    """Save and restore torch's random state, so that dropout continues where it stopped."""

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._states is None:
            return
        torch.set_rng_state(self._states["cpu"].cpu())
        if len(self._states["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([state.cpu() for state in self._states["cuda"]])
        self._states = None


class ProgressLines(Callback):
    """One line per epoch with rate, remaining time and accuracies: for logs and pipes."""

    def __init__(self) -> None:
        self._start = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._first_epoch = time.monotonic(), trainer.current_epoch

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        elapsed = time.monotonic() - self._start
        per_epoch = elapsed / (done - self._first_epoch)
        batch = pl_module.recipe.train.batch_size
        rate = trainer.num_training_batches * batch / per_epoch
        shown = ("rough", "selected", "expert", "oracle")
        accuracies = "  ".join(
            f"{name} {100 * float(trainer.callback_metrics[key]):.1f}%"
            for name in shown
            if (key := f"val/{name}_accuracy") in trainer.callback_metrics
        )
        print(
            f"epoch {done}/{trainer.max_epochs}  {rate:,.0f} images/s  "
            f"{per_epoch * (trainer.max_epochs - done):.0f} s left  validation: {accuracies}",
            flush=True,
        )
