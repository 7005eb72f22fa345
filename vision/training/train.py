"""Train a recipe into a run folder: Lightning's trainer, set up."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Subset

from coe_core.threads import Threads, choose_threads, restored_threads
from vision.checkpoints import LAST
from vision.data.load import ImageData, load_data
from vision.data.loaders import default_workers, eval_loader, train_loader
from vision.errors import RunError
from vision.precision import autocast, choose_precision
from vision.recipe import Recipe
from vision.recipe_networks import Networks, RunMacs, check_trainable, run_macs
from vision.training.batch_size import with_batch_size
from vision.training.callbacks import (
    AveragedWeights,
    Begun,
    Divergence,
    RandomState,
    StopAfter,
    StopAtSignal,
    ThreadCount,
    divergence_of_training,
)
from vision.training.class_weights import class_weights
from vision.training.finetuning import (
    FineTuning,
    recalibrate,
    weights_to_start_from,
    with_own_statistics,
)
from vision.training.folder import (
    check_data,
    check_folder,
    held_folder,
    save_diverged,
    save_provenance,
)
from vision.training.health import (
    Expectation,
    Patience,
    Standing,
    average_warning,
    cost_line,
)
from vision.training.loggers import further_logger
from vision.training.module import CoETraining
from vision.training.portions import known_groups
from vision.training.processes import Processes, processes
from vision.training.progress import ProgressBar, ProgressLines
from vision.training.records import AtomicCheckpoints, Checkpoints, MetricsFile, TensorBoardFile
from vision.training.starts import keep_best_start, seed_of_start

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights

KEEP = timedelta(minutes=10)  # so often the state is kept inside an epoch
BEST = Path("checkpoints/best.ckpt")


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
        folder: of the run; made if missing. One that holds a run is only touched with ``resume``. A
            local path, whatever its letters: ``::`` and ``s3:`` mean nothing in it.
        resume: continue from the last checkpoint; also if training is complete (nothing to do).
        stop_after: end after this many epochs of the whole schedule, to be resumed later.
        data: what `load_data` gave for the recipe, where it is loaded already; not changed.
        watch: further callbacks of the trainer.

    Raises:
        LockedError: another process trains into the folder.
        RunError: the folder holds a run, or another recipe's; or cannot be written; or every network
            has diverged.
        Interrupted: stopped by a signal; the state is kept.
    """
    team, recipe = processes(), with_own_statistics(recipe)
    with held_folder(folder, team.rank), restored_threads():
        if recipe.portions.starts > 1 or recipe.train.batch_size == "auto":
            data = load_data(recipe.data) if data is None else data
            recipe = with_batch_size(recipe, len(data.train), train, folder)
        if recipe.portions.starts > 1:
            assert data is not None
            resume = _from_best_start(recipe, folder, resume, data, watch, team)
        return _train(recipe, folder, resume, stop_after, data, watch, team)


def _from_best_start(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    data: ImageData,
    watch: Sequence[Callback],
    team: Processes,
) -> bool:
    """Try all starts and begin the run with the best; whether the run is to be resumed from here on."""

    def try_start(trial: Path, start: int) -> None:
        with held_folder(trial, team.rank):
            _train(recipe, trial, True, recipe.trial_epochs, data, watch, team, start)

    begun = (folder / LAST).exists()
    keep_best_start(recipe, folder, resume, team.rank, try_start)
    return resume if begun else True


def _train(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    stop_after: int | None,
    data: ImageData | None,
    watch: Sequence[Callback],
    team: Processes,
    start: int = 0,
) -> ImageData:
    trained = check_folder(folder, recipe, resume)
    data = load_data(recipe.data) if data is None else data
    if trained is not None:
        check_data(data, trained["hyper_parameters"], folder)
    weights = weights_to_start_from(recipe) if trained is None else None
    seed_everything(seed_of_start(recipe, start), workers=True, verbose=False)
    module = training_module(recipe, data, weights)
    # A network that cannot be run or counted is found now, not at the end.
    macs = run_macs(module.networks)
    check_trainable(module.networks, recipe.train.images_at_once // team.count)
    threads = _threads(module.networks, macs, trained, team)
    torch.set_num_threads(threads.count)
    if threads.reason and team.rank == 0:
        print(f"computing with {threads}", flush=True)
    if recipe.train.compile:
        module.compile_networks()
    begun, stop = Begun(), StopAtSignal(folder / LAST)
    parts = [begun, ThreadCount(threads.count), Divergence(), Expectation(), Standing(), *watch]
    if module.networks.started.parts:
        parts.insert(0, FineTuning(recipe.train))
    first_step = trained["global_step"] if trained else 0
    trainer = _trainer(
        recipe, module.main_metric, folder, stop, stop_after, first_step, team, parts
    )
    if team.rank == 0:
        save_provenance(recipe, data, folder, resumed=trained is not None, weights=weights)
        _announce(module, macs, len(data.train), weights)
    if weights is not None and recipe.train.batch_norm == "recalibrated":
        count = recalibrate(module.networks, _loaders(recipe, data, team)[0])
        if team.rank == 0:
            print(
                f"statistics of pretrained networks are those of {count} training images",
                flush=True,
            )
    loaders = _loaders(recipe, data, team)
    # Absolute: Lightning gives a meaning to some words.
    state = None if trained is None else os.path.abspath(folder / LAST)
    try:
        with stop.listening():
            trainer.fit(module, *loaders, ckpt_path=state, weights_only=True)
    except Exception as error:
        _explain(
            error, recipe, folder, trainer, team, unresumed=bool(state) and not begun.has_begun
        )
    if team.rank == 0:
        save_diverged(folder, module.networks.diverged())
    return data


def training_module(recipe: Recipe, data: ImageData, weights: Weights | None) -> CoETraining:
    """The networks of a recipe, to be trained on its data.

    Args:
        recipe: whose networks they are.
        data: what `load_data` gave for it.
        weights: loads what pretrained networks start from; None: nothing is loaded.
    """
    return CoETraining(
        recipe.to_dict(),
        data.classes,
        data.preprocess.to_dict(),
        len(data.train),
        known_groups(recipe, data),
        class_weights(data.train.targets, len(data.classes), recipe.train.class_weights),
        weights,
    )


def _announce(module: CoETraining, macs: RunMacs, num_images: int, weights: Weights | None) -> None:
    """What the networks start from, what their training costs, and what of it cannot work."""
    for loaded in weights.loaded if weights is not None else ():
        print(loaded.line(), flush=True)
    print(cost_line(module.networks, macs, num_images), flush=True)
    warning = average_warning(module.recipe, module.num_steps)
    if warning is not None:
        print(warning, file=sys.stderr)


def _loaders(recipe: Recipe, data: ImageData, team: Processes) -> tuple[DataLoader, DataLoader]:
    """Of the training images, and of this process's part of the validation images."""
    images = data.train.with_views(recipe.num_views)
    batch_size, seed = recipe.train.images_per_step, recipe.seed
    loader = train_loader(
        recipe.data,
        images,
        batch_size,
        seed,
        team.rank,
        team.count,
        team.per_node,
        recipe.train.accumulate,
    )
    mine = Subset(data.validation, range(team.rank, len(data.validation), team.count))
    workers = recipe.data.workers
    if workers is None:
        workers = default_workers(data.validation, team.per_node)
    return loader, eval_loader(mine, _validation_batch(len(data.validation), team.count), workers)


def _threads(
    networks: Networks, macs: RunMacs, trained: dict[str, Any] | None, team: Processes
) -> Threads:
    """Those of the run's first part; else what is measured on copies, so that no step depends on it."""
    recipe = networks.recipe
    kept = (trained or {}).get("callbacks", {}).get("ThreadCount")
    if isinstance(kept, dict) and type(kept.get("count")) is int and 1 <= kept["count"] <= 1024:
        users = choose_threads(lambda: None, 0.0)
        return Threads(kept["count"], "as before") if users.reason else users
    images = recipe.train.images_at_once // team.count
    step = 3 * images * (macs.delegator + sum(macs.experts) + sum(macs.controls.values()))
    step += 3 * images * sum(macs.ensembles[n] * e.s for n, e in recipe.ensembles.items())
    work = _trial(networks, images)
    return choose_threads(work, step, "a training step", team.per_node)


def _trial(networks: Networks, images: int) -> Callable[[], object]:
    """A forward and backward pass of one expert, or of another part: what most of a step's time goes to."""
    team, ensembles = networks.team, list(networks.ensembles.values())
    network: nn.Module = team.experts[0] if team is not None else ensembles[0].members[0]
    preprocess, precision = networks.preprocess, choose_precision(networks.recipe.train.precision)
    replica: list[nn.Module] = []

    def work() -> None:
        if not replica:
            replica.append(copy.deepcopy(network).train())
        with torch.random.fork_rng(devices=[]):  # dropout draws, but not from the training's state
            shape = (min(images, 32), *preprocess.shape)
            batch = torch.randn(shape).contiguous(memory_format=torch.channels_last)
            with autocast("cpu", precision):
                loss = replica[0](batch).float().square().mean()
            loss.backward()
        replica[0].zero_grad(set_to_none=True)

    return work


def _explain(
    error: Exception,
    recipe: Recipe,
    folder: Path,
    trainer: Trainer,
    team: Processes,
    unresumed: bool,
) -> NoReturn:
    """Raise what stopped a training, in one line with its likely cause, or as it is."""
    checkpoint = folder / LAST
    text = " ".join(str(error).split())
    if unresumed and not isinstance(error, RunError | OSError):
        raise RunError(
            f"{checkpoint} cannot be continued ({type(error).__name__}: {text[:200]}); it is damaged, or "
            "was written by another version; train into another --out"
        ) from error
    if isinstance(error, OSError):
        raise RunError(f"training into {folder} stopped: {error}; {_kept(checkpoint)}") from error
    if "not finite" in text and isinstance(error, ValueError):
        line = divergence_of_training("the team diverged", recipe.train.lr, trainer.current_epoch)
        raise RunError(f"{line} ({text[:200]}); {_kept(checkpoint)}") from error
    if "converted to type float without overflow" in text:
        line = divergence_of_training(
            "all networks diverged", recipe.train.lr, trainer.current_epoch
        )
        raise RunError(f"{line}; {_kept(checkpoint)}") from error
    if "Expected more than 1 value per channel" in text:
        raise RunError(
            f"train.batch_size={recipe.train.images_per_step} over {team.count} process(es), in "
            f"{recipe.train.accumulate} part(s), leaves batch normalisation one value for each channel: "
            "raise train.batch_size"
        ) from error
    if team.count > 1 and isinstance(error, RuntimeError) and _lost_process(error):
        raise RunError(
            f"training into {folder} stopped: rank {team.rank} of {team.count} processes lost another one; "
            f"{_kept(checkpoint)}; continue with --resume, on any number of processes"
        ) from error
    raise error


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
    phrases = ("Connection closed by peer", "Connection reset by peer", "gloo", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or any(
        phrase in str(error) for phrase in phrases
    )


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
    metrics = MetricsFile(folder, first_step)
    parts: list[Callback] = [
        Checkpoints(folder / LAST, folder / BEST, metrics, metric, KEEP),
        RandomState(),
        ProgressBar() if interactive else ProgressLines(),
        *watch,
    ]
    if recipe.train.ema_decay:
        parts.append(AveragedWeights(recipe.train.ema_decay))
    if recipe.train.patience:
        parts.append(Patience(metric, recipe.train.patience))
    if stop_after is not None:
        parts.append(StopAfter(stop_after))
    parts.append(stop)
    # Experts that are still copies of the first take no part in the backward pass.
    unused = recipe.shared_start > 0 or recipe.train.head_epochs > 0
    strategy = "ddp_find_unused_parameters_true" if unused else "ddp"
    return Trainer(
        max_epochs=recipe.train.epochs,
        accelerator="auto",
        devices=team.per_node,
        num_nodes=team.nodes,
        strategy=strategy if team.count > 1 else "auto",
        precision=choose_precision(recipe.train.precision),  # type: ignore[arg-type]  # a text of those
        callbacks=parts,
        logger=[metrics, TensorBoardFile(folder), *further_logger(recipe.train.logger, folder)],
        plugins=[AtomicCheckpoints(), *team.plugins],
        accumulate_grad_batches=recipe.train.accumulate,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_progress_bar=interactive,
        enable_model_summary=False,
    )
