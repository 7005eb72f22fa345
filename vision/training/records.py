"""What a training writes: checkpoints, metrics.csv, TensorBoard's events. Paths are plain local paths.

Lightning's own writers take a path such as "a::b" for a chain of file systems.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from coe_core.support.files import write_bytes, write_text
from vision.checkpoints import load_checkpoint
from vision.training.callbacks import ends_step

TRAIN_METRICS = "train/"  # prefix of what is averaged over an epoch's batches


class AtomicCheckpoints(TorchCheckpointIO):
    """Replaces a checkpoint in one step: Lightning writes elsewhere first, and copies from there."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))


class Checkpoints(Checkpoint):
    """After every epoch the best state so far and then the last; the last also now and then in between.

    In this order: a process that is killed between the two trains the epoch again from the state before
    it, which knows nothing of this epoch's best, and so writes it again.

    Args:
        last: path of the last state.
        best: path of the best.
        metrics: whose rows must be on disk before the state that does not train them again.
        metric: higher is better.
        interval: between states inside an epoch.
    """

    def __init__(
        self, last: Path, best: Path, metrics: MetricsFile, metric: str, interval: timedelta
    ) -> None:
        self.last, self.best = last, best
        self._metrics, self._metric = metrics, metric
        self._interval = interval.total_seconds()
        self._saved_at = 0.0
        self._best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.best.is_file():
            self._best = state_dict["best"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the best score of a run that was begun with Lightning's own callbacks."""
        scores = [
            state.get("best_model_score")
            for key, state in checkpoint["callbacks"].items()
            if key.startswith("ModelCheckpoint")
        ]
        known = [float(score) for score in scores if score is not None]
        if known and self.best.is_file():
            self._best = max(known)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        due = time.monotonic() - self._saved_at >= self._interval
        # Every process must save, or none; the end of an epoch saves in any case.
        if not trainer.is_last_batch and trainer.strategy.broadcast(due):
            trainer.save_checkpoint(self.last, weights_only=False)
            self._saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        averages = {
            name: value
            for name, value in trainer.logged_metrics.items()  # on every rank: it may synchronise
            if name.startswith(TRAIN_METRICS)
        }
        if trainer.is_global_zero:
            scalars = {name: float(value) for name, value in averages.items()}
            scalars["epoch"] = trainer.current_epoch
            self._metrics.log_metrics(scalars, trainer.global_step - 1)
        score = float(trainer.callback_metrics[self._metric])
        if self._best is None or score > self._best:
            self._best = score
            trainer.save_checkpoint(self.best, weights_only=False)
        trainer.save_checkpoint(self.last, weights_only=False)
        self._saved_at = time.monotonic()


class MetricsFile(Logger):
    """metrics/metrics.csv: a row after each validation and one after each epoch, each once.

    Replaced whole with every row, so that a kill leaves no half row. Columns are sorted by name.

    Args:
        folder: of the run.
        first_step: steps already trained; rows from there on, which will be trained again, go.
    """

    def __init__(self, folder: Path, first_step: int):
        super().__init__()
        self.path = folder / "metrics/metrics.csv"
        self._first_step = first_step
        self._rows: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in recipe.yaml; nothing of an earlier training that is trained again stays."""
        if self._rows is None:
            self._rows = self._kept()
            if self._rows or self.path.is_file():
                self._write()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.log_hyperparams()
        assert self._rows is not None, "read above"
        row = {name: _plain(value) for name, value in metrics.items()} | {"step": step}
        if self._rows and self._rows[-1].keys() == row.keys() and self._rows[-1]["step"] == step:
            return  # written before the epoch's checkpoint
        self._rows.append(row)
        self._write()

    def _write(self) -> None:
        text = io.StringIO()
        rows = self._rows or []
        writer = csv.DictWriter(text, sorted(set().union(*rows)))
        writer.writeheader()
        writer.writerows(rows)
        self.path.parent.mkdir(exist_ok=True)
        write_text(self.path, text.getvalue())

    def _kept(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file.read().replace("\0", "").splitlines()))
        return [
            {name: value for name, value in row.items() if name and value not in (None, "")}
            for row in rows
            if _number(row.get("step")) < self._first_step
        ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _number(text: str | None) -> float:
    """Infinite for what is no number: a row that an earlier version was killed in goes."""
    try:
        return float(text or "inf")
    except ValueError:
        return float("inf")


class TensorBoardFile(Logger):
    """tensorboard/events.*: the same numbers, for the eye; TensorBoard is imported when there is one.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder / "tensorboard"
        self._writer: Any = None
        self._takes_folder = True

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in recipe.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self._writer is None and self._takes_folder:
            self._writer = self._open()
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, _plain(value), step)

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        try:
            return SummaryWriter(str(self._folder))
        except UnicodeEncodeError:  # its files have names in UTF-8 only
            self._takes_folder = False
            print(
                "no TensorBoard events: the folder's name is not UTF-8; metrics.csv has the numbers",
                file=sys.stderr,
            )
            return None

    @rank_zero_only
    def save(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
