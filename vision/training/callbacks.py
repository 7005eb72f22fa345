"""What Lightning leaves to its user: stopping at a signal, exact state, safe files, plain progress."""

from __future__ import annotations

import csv
import datetime
import io
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vision.errors import Interrupted
from vision.run import write_bytes, write_text


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

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.is_last_batch and self._asked(trainer):
            trainer.save_checkpoint(self.checkpoint)
            raise self._interrupted()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked(trainer):
            self._stopping = trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stopping:
            raise self._interrupted()


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


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint in one step: Lightning writes elsewhere first, and copies from there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, **_: Any) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())


class MetricsFile(CSVLogger):
    """metrics/metrics.csv, continued on resume: Lightning's own would delete what it finds.

    Args:
        folder: of the run.
        first_step: steps already trained; rows from there on, which will be trained again, go.
    """

    def __init__(self, folder: Path, first_step: int):
        super().__init__(folder, name="", version="metrics", flush_logs_every_n_steps=1)
        self._first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Continued(self.log_dir, self._first_step)
        return self._experiment


class _Continued(ExperimentWriter):
    def __init__(self, folder: str, first_step: int):
        self._first_step = first_step
        super().__init__(folder)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) < self._first_step]
            self.metrics_keys = list(reader.fieldnames or [])
        text = io.StringIO()
        writer = csv.DictWriter(text, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())


def accuracies(trainer: Trainer) -> dict[str, str]:
    """Of the last validation, for the eye; empty before the first."""
    recipe = trainer.lightning_module.recipe
    names = ("rough", "selected", "expert", "oracle") if recipe.has_team else ()
    return {
        name: f"{100 * float(trainer.callback_metrics[key]):.1f}%"
        for name in (*names, *(f"ensemble {name}" for name in recipe.ensembles))
        if (key := f"val/{name}_accuracy") in trainer.callback_metrics
    }


class ProgressBar(RichProgressBar):
    """For terminals, with the accuracies of the last validation."""

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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._accuracies = accuracies(trainer)  # on every rank, as in `ProgressBar`

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = trainer.global_step

    def _speed(self, trainer: Trainer, pl_module: LightningModule) -> str:
        self._last = time.monotonic()
        per_step = (self._last - self._start) / max(1, trainer.global_step - self._first_step)
        rate = pl_module.recipe.train.batch_size / max(per_step, 1e-9)
        left = per_step * (pl_module.num_steps - trainer.global_step)
        return f"{rate:,.0f} images/s  {datetime.timedelta(seconds=round(left))} left"

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.is_last_batch or time.monotonic() - self._last < self._seconds:
            return
        step = trainer.global_step % trainer.num_training_batches
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"step {step}/{trainer.num_training_batches}  {self._speed(trainer, pl_module)}",
            flush=True,
        )

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validation = "  ".join(f"{name} {value}" for name, value in self._accuracies.items())
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"{self._speed(trainer, pl_module)}  validation: {validation}",
            flush=True,
        )
