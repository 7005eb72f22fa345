"""Train a recipe into a run folder: Lightning's trainer, set up."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer, callbacks, loggers, seed_everything
from torch.utils.data import Subset

from vision.checkpoints import LAST, load_checkpoint
from vision.data.load import ImageData, load_data
from vision.data.loaders import default_workers, eval_loader, train_loader
from vision.errors import RunError
from vision.precision import choose_precision
from vision.recipe import Recipe, recipe_from_dict
from vision.recipe_networks import run_macs
from vision.run import provenance, write_text
from vision.training.callbacks import (
    AtomicCheckpoints,
    MetricsFile,
    ProgressBar,
    ProgressLines,
    RandomState,
    StopAfter,
    StopAtSignal,
)
from vision.training.module import CoETraining
from vision.training.processes import Processes, processes


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    data: ImageData | None = None,
    watch: Sequence[Callback] = (),
) -> ImageData:
    """Train the recipe into a run folder; returns the data it was trained on.

    Args:
        recipe: what to train.
        folder: of the run; made if missing. One that holds a run is only touched with ``resume``.
        resume: continue from the last checkpoint; also if training is complete (nothing to do).
        stop_after: end after this many epochs of the whole schedule, to be resumed later.
        data: what `load_data` gave for the recipe, where it is loaded already.
        watch: further callbacks of the trainer.

    Raises:
        RunError: the folder holds a run, or another recipe's; or cannot be written.
        Interrupted: stopped by a signal; the state is kept.
    """
    trained = _check_folder(folder, recipe, resume)
    data = load_data(recipe.data) if data is None else data
    if trained is not None:
        _check_data(data, trained["hyper_parameters"], folder)
    seed_everything(recipe.seed, workers=True, verbose=False)
    module = CoETraining(recipe.to_dict(), data.classes, data.preprocess.to_dict(), len(data.train))
    run_macs(
        module.networks
    )  # a network that cannot be run or counted is found now, not at the end
    if recipe.train.compile:
        module.compile_networks()
    stop = StopAtSignal(folder / LAST)
    team = processes()
    trainer = _trainer(
        recipe,
        module.main_metric,
        folder,
        stop,
        stop_after,
        trained["global_step"] if trained else 0,
        team,
        watch,
    )
    if team.rank == 0:
        _save_provenance(recipe, data, folder, resumed=trained is not None)
    batch_size, seed = recipe.train.batch_size, recipe.seed
    images = data.train.with_views(recipe.num_views)
    loader = train_loader(
        recipe.data, images, batch_size, seed, team.rank, team.count, team.per_node
    )
    mine = Subset(data.validation, range(team.rank, len(data.validation), team.count))
    workers = recipe.data.workers
    if workers is None:
        workers = default_workers(data.validation, team.per_node)
    held_out = eval_loader(mine, _validation_batch(len(data.validation), team.count), workers)
    checkpoint = folder / LAST
    try:
        with stop.listening():
            trainer.fit(
                module,
                loader,
                held_out,
                ckpt_path=None if trained is None else checkpoint,
                weights_only=True,
            )
    except OSError as error:
        raise RunError(f"training into {folder} stopped: {error}; {_kept(checkpoint)}") from error
    except RuntimeError as error:
        if team.count == 1 or not _lost_process(error):
            raise
        raise RunError(
            f"training into {folder} stopped: rank {team.rank} of {team.count} processes lost another one; "
            f"{_kept(checkpoint)}; continue with --resume, on any number of processes"
        ) from error
    return data


def _validation_batch(num_images: int, count: int) -> int:
    """Up to 256 images, so that every process has equally many batches: they wait for each other."""
    if num_images < count:
        raise ValueError(
            f"{num_images} validation images for {count} processes: each needs one at least; "
            "raise data.validation, or start fewer"
        )
    most = math.ceil(num_images / count)
    return math.ceil(most / math.ceil(most / 256))


def _kept(checkpoint: Path) -> str:
    return (
        f"the last whole state is in {checkpoint}" if checkpoint.is_file() else "nothing was kept"
    )


def _lost_process(error: RuntimeError) -> bool:
    """Whether it comes from the communication between processes: gloo has no error class of its own."""
    told = ("Connection closed by peer", "Connection reset by peer", "gloo", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or any(t in str(error) for t in told)


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to continue from, if there is one; and that the folder can be written."""
    content = None
    checkpoint = folder / LAST
    if checkpoint.is_file():
        if not resume:
            raise RunError(
                f"{folder} already holds a run; continue it with --resume, or choose another --out"
            )
        content = load_checkpoint(checkpoint)
        trained = recipe_from_dict(content["hyper_parameters"]["recipe"], str(checkpoint))
        changed = _differences(trained.to_dict(), recipe.to_dict())
        if changed:
            raise RunError(
                f"{checkpoint} was trained with another recipe: {'; '.join(changed)}. "
                "Resume with the same recipe, or choose another --out"
            )
    try:
        (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / ".writable", "")
        (folder / ".writable").unlink(missing_ok=True)  # other ranks do the same
    except OSError as error:
        raise RunError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error
    return content


def _check_data(data: ImageData, trained: dict[str, Any], folder: Path) -> None:
    now = {
        "classes": data.classes,
        "preprocess": data.preprocess.to_dict(),
        "num_samples": len(data.train),
    }
    changed = _differences({name: trained.get(name) for name in now}, now)
    if changed:
        raise RunError(
            f"{folder} was trained on other data: {'; '.join(changed)}. Resume with the same data "
            "(data.path may differ, what lies there may not), or choose another --out"
        )


KEEP = timedelta(minutes=10)  # so often the state is kept inside an epoch

# Where the data lie and how they are read does not change what is learned.
_MAY_DIFFER = {
    "data.path",
    "data.workers",
    "data.cache",
    "data.in_memory",
    "data.max_pixels",
    "train.compile",
    "budget",
}


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        nested = [_differences(old.get(n), new.get(n), f"{key}.{n}".lstrip(".")) for n in names]
        return [line for lines in nested for line in lines]
    if old == new or key in _MAY_DIFFER or key.startswith("budget."):
        return []
    return [f"{key} was {old!r}, now {new!r}"]


def _trainer(
    recipe: Recipe,
    metric: str,
    folder: Path,
    stop: StopAtSignal,
    stop_after: int | None,
    first_step: int,
    team: Processes,
    watch: Sequence[Callback],
) -> Trainer:
    interactive = sys.stdout.isatty()
    checkpoints = folder / LAST.parent
    parts: list[Callback] = [
        # One that saves the best would save the last only where it is the best.
        callbacks.ModelCheckpoint(
            checkpoints, LAST.stem, enable_version_counter=False, save_on_train_epoch_end=True
        ),
        callbacks.ModelCheckpoint(
            checkpoints,
            "best",
            monitor=metric,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        callbacks.ModelCheckpoint(
            checkpoints, LAST.stem, enable_version_counter=False, train_time_interval=KEEP
        ),
        RandomState(),
        ProgressBar() if interactive else ProgressLines(),
        *watch,
    ]
    if recipe.train.ema_decay:
        parts.append(callbacks.EMAWeightAveraging(decay=recipe.train.ema_decay))
    if stop_after is not None:
        parts.append(StopAfter(stop_after))
    parts.append(stop)
    # Experts that are still copies of the first take no part in the backward pass.
    unused = recipe.shared_start > 0
    strategy = "ddp_find_unused_parameters_true" if unused else "ddp"
    return Trainer(
        max_epochs=recipe.train.epochs,
        accelerator="auto",
        devices=team.per_node,
        num_nodes=team.nodes,
        strategy=strategy if team.count > 1 else "auto",
        precision=choose_precision(recipe.train.precision),
        callbacks=parts,
        logger=[
            MetricsFile(folder, first_step),
            loggers.TensorBoardLogger(
                folder, name="", version="tensorboard", default_hp_metric=False
            ),
        ],
        plugins=[AtomicCheckpoints(), *team.plugins],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_progress_bar=interactive,
        enable_model_summary=False,
    )


def _save_provenance(recipe: Recipe, data: ImageData, folder: Path, resumed: bool) -> None:
    """The recipe, and what was run with what; each resumption is added to the first record."""
    path = folder / "provenance.json"
    record = provenance(data)
    if resumed and path.is_file():
        first = json.loads(path.read_text(encoding="utf-8"))
        record = {**first, "resumed": [*first.get("resumed", []), record]}
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    write_text(path, json.dumps(record, indent=2) + "\n")
