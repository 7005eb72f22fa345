"""Train a recipe into a run folder: Lightning's trainer, set up."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer, callbacks, loggers, seed_everything
from torch.utils.data import Subset

from vision.data import ImageData, eval_loader, load_data, train_loader
from vision.errors import RunError
from vision.loops import ProgressLines, RandomState, StopAtSignal
from vision.precision import choose_precision
from vision.recipe import Recipe, recipe_from_dict
from vision.run import LAST, load_checkpoint, provenance, write_text
from vision.training import CoETraining


def train(
    recipe: Recipe, folder: Path, *, resume: bool = False, stop_after: int | None = None
) -> ImageData:
    """Train the recipe into a run folder; returns the data it was trained on.

    Args:
        recipe: what to train.
        folder: of the run; made if missing. One that holds a run is only touched with ``resume``.
        resume: continue from the last checkpoint; also if training is complete (nothing to do).
        stop_after: end after this many epochs of the whole schedule, to be resumed later.

    Raises:
        RunError: the folder holds a run, or another recipe's; or cannot be written.
        Interrupted: stopped by a signal; the state is kept.
    """
    _check_folder(folder, recipe, resume)
    data = load_data(recipe.data)
    seed_everything(recipe.seed, workers=True, verbose=False)
    module = CoETraining(recipe.to_dict(), data.classes, data.preprocess.to_dict(), len(data.train))
    trainer = _trainer(recipe, folder, stop_after)
    rank, world_size = trainer.global_rank, trainer.world_size
    if rank == 0:
        _save_provenance(recipe, data, folder)
    loader = train_loader(
        recipe.data, data.train, recipe.train.batch_size, recipe.seed, rank, world_size
    )
    mine = Subset(data.validation, range(rank, len(data.validation), world_size))
    checkpoint = folder / LAST
    try:
        trainer.fit(
            module,
            loader,
            eval_loader(mine, 256),
            ckpt_path=checkpoint if resume and checkpoint.is_file() else None,
            weights_only=True,
        )
    except OSError as error:
        kept = (
            f"the last whole state is in {checkpoint}"
            if checkpoint.is_file()
            else "nothing was kept"
        )
        raise RunError(f"cannot write to {folder}: {error.strerror or error}; {kept}") from error
    return data


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    checkpoint = folder / LAST
    if checkpoint.is_file():
        if not resume:
            raise RunError(
                f"{folder} already holds a run; continue it with --resume, or choose another --out"
            )
        trained = recipe_from_dict(load_checkpoint(checkpoint)["hyper_parameters"]["recipe"])
        changed = _differences(trained.to_dict(), recipe.to_dict())
        if changed:
            raise RunError(
                f"{checkpoint} was trained with another recipe: {'; '.join(changed)}. "
                "Resume with the same recipe, or choose another --out"
            )
    try:
        (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error


# Where the data lie and how they are read does not change what is learned.
_MAY_DIFFER = {"data.path", "data.workers", "data.cache"}


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        nested = [_differences(old.get(n), new.get(n), f"{key}.{n}".lstrip(".")) for n in names]
        return [line for lines in nested for line in lines]
    if old == new or key in _MAY_DIFFER:
        return []
    return [f"{key} was {old!r}, now {new!r}"]


class _StopAfter(Callback):
    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: CoETraining) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def _trainer(recipe: Recipe, folder: Path, stop_after: int | None) -> Trainer:
    interactive = sys.stdout.isatty()
    parts: list[Callback] = [
        callbacks.ModelCheckpoint(
            str(folder / LAST.parent),
            filename="best",
            monitor="val/selected_accuracy",
            mode="max",
            save_last=True,
            enable_version_counter=False,
        ),
        RandomState(),
        StopAtSignal(folder / LAST),
        callbacks.RichProgressBar() if interactive else ProgressLines(),
    ]
    if recipe.train.ema_decay:
        parts.append(callbacks.EMAWeightAveraging(decay=recipe.train.ema_decay))
    if stop_after is not None:
        parts.append(_StopAfter(stop_after))
    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return Trainer(
        max_epochs=recipe.train.epochs,
        accelerator="auto",
        devices=local if processes > 1 else 1,
        num_nodes=max(1, processes // local),
        strategy="ddp" if processes > 1 else "auto",
        precision=choose_precision(recipe.train.precision),
        callbacks=parts,
        logger=[
            loggers.CSVLogger(folder, name="", version="metrics"),
            loggers.TensorBoardLogger(folder, name="", version="tensorboard"),
        ],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_progress_bar=interactive,
        enable_model_summary=False,
    )


def _save_provenance(recipe: Recipe, data: ImageData, folder: Path) -> None:
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    write_text(folder / "provenance.json", json.dumps(provenance(data), indent=2) + "\n")
