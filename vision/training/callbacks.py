"""What Lightning leaves to its user: stopping at a signal, exact state, averages, what diverged."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from vision.errors import Interrupted, RunError

if TYPE_CHECKING:
    from vision.training.module import CoETraining


class StopAtSignal(Callback):
    """SIGINT or SIGTERM: finish the step on all ranks, keep the whole state, stop.

    At the end of an epoch, validation and the epoch's own checkpoint come first. A second signal
    stops at once (the last checkpoint stays as it is). Must come after every callback that does
    something at the end of a step, or the state kept would lack it.

    Args:
        checkpoint: where the state is kept; also written by the epoch's own checkpoint.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.received = 0
        self._stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals from here on; outside of the main thread Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._take_signals()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.received:  # too late for a step: training was complete
            raise self._interrupted()

    def _take_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received:
            raise Interrupted(number, "stopped at once; the last whole state, if any, is kept")
        self.received = number

    def _asked(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(bool(self.received), all=False)

    def _interrupted(self) -> Interrupted:
        number = self.received or signal.SIGTERM  # which another rank received
        name = signal.Signals(number).name
        return Interrupted(
            number, f"stopped by {name}; state kept in {self.checkpoint}, continue with --resume"
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._take_signals()  # from Lightning, which would break off validation

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.is_last_batch or not ends_step(trainer, batch_idx):
            return
        if self._asked(trainer):
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            raise self._interrupted()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked(trainer):
            self._stopping = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stopping:
            raise self._interrupted()


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch was the last part of its step, so that the state may be kept: no gradients wait."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class StopAfter(Callback):
    """End after so many epochs of the whole schedule, counted from its start."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch >= self.epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


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


class Begun(Callback):
    """Whether the first step was reached: what fails before is the checkpoint's, or the set-up's."""

    def __init__(self) -> None:
        self.has_begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.has_begun = True


class ThreadCount(Callback):
    """Keeps the number of threads with the state: sums of floats depend on it, so a resumed run takes it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights, warmed up.

    After t steps the weight of the past is min(decay, (1 + t) / (10 + t)), as in timm and TensorFlow: a
    decay of 0.9999 looks back on 10,000 steps, and without a warm-up a training shorter than that would
    end with an average that is mostly its random start.

    Args:
        decay: in (0, 1), once the average is warm.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(avg_fn=warm_average(decay))

    @property
    def state_key(self) -> str:
        return "EMAWeightAveraging"  # of the class that earlier runs were trained with


def warm_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The next average of (average, current value, number of averaged steps).

    Example:
        >>> average = warm_average(0.9999)
        >>> [float(average(torch.zeros(()), torch.ones(()), t)) for t in (0, 8)]
        [0.8999..., 0.5]
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return kept * averaged + (1 - kept) * current

    return average


class Divergence(Callback):
    """Tells at the end of an epoch which networks hold values that are not finite; ends when all do."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training = cast("CoETraining", pl_module)
        networks, train = training.networks, training.recipe.train
        parts = networks.diverged()
        if len(parts) == networks.num_parts:
            raise RunError(
                divergence_of_training(
                    f"{', '.join(parts)} diverged", train.lr, trainer.current_epoch
                )
            )
        new = [part for part in parts if part not in self.parts]
        self.parts = parts
        if new and trainer.is_global_zero:
            line = divergence_of_training(
                f"{', '.join(new)} diverged", train.lr, trainer.current_epoch
            )
            print(f"{line}; the others train on", file=sys.stderr)


def divergence_of_training(what: str, lr: float, epoch: int) -> str:
    """What happened, and its likely cause.

    Example:
        >>> divergence_of_training("ensemble of 3 diverged", 10.0, 0)
        'ensemble of 3 diverged in epoch 1: values that are not finite; most likely train.lr=10 is too ...
    """
    return (
        f"{what} in epoch {epoch + 1}: values that are not finite; most likely train.lr={lr:g} is too "
        "high: lower it, or raise train.warmup"
    )
