"""A run: a folder with a recipe, checkpoints, metrics and operating points. Train it, load it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer, callbacks, loggers, seed_everything
from torch.utils.data import Subset

from coe_core import OperatingPoint
from vision.data import ImageData, eval_loader, load_data, train_loader
from vision.errors import RunError
from vision.loops import ProgressLines, RandomState, StopAtSignal
from vision.precision import choose_precision
from vision.recipe import Recipe, recipe_from_dict
from vision.training import CoETraining

LAST = Path("checkpoints/last.ckpt")
POINTS = Path("operating_points.json")


@dataclass
class Run:
    """A trained team, ready to evaluate, calibrate or predict.

    Attributes:
        folder: where results belong.
        checkpoint: the file the weights came from.
        module: the networks, in evaluation mode.
        operating_points: stored thresholds by name.
    """

    folder: Path
    checkpoint: Path
    module: CoETraining
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.module.recipe

    def operating_point(self, name: str) -> OperatingPoint:
        """A stored operating point.

        Raises:
            RunError: there is none of this name; lists those there are.
        """
        if name not in self.operating_points:
            known = ", ".join(self.operating_points) or "none; run `coe-vision calibrate` first"
            raise RunError(f"{self.folder} has no operating point {name!r}; stored: {known}")
        return self.operating_points[name]

    def store(self, point: OperatingPoint) -> None:
        """Keep an operating point with the run, replacing one of the same name."""
        self.operating_points[point.name] = point
        stored = {name: point.to_dict() for name, point in self.operating_points.items()}
        write_text(self.folder / POINTS, json.dumps(stored, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a crash or a full disk leaves the old content, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint of ours, loaded with ``weights_only=True``.

    Raises:
        RunError: missing, unreadable, or not a checkpoint of this toolkit.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(
            f"there is no checkpoint {path}; give a run folder or a .ckpt file"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise RunError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is damaged or "
            "something else"
        ) from error
    if not isinstance(content, dict) or "recipe" not in content.get("hyper_parameters", {}):
        raise RunError(f"{path} is not a checkpoint of coe-vision: it holds no recipe")
    return content


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint of a run folder (its last), or the file itself."""
    path = Path(path)
    if path.is_dir():
        if not (path / LAST).is_file():
            raise RunError(f"{path} is not a run folder: it has no {LAST}")
        return path / LAST
    return path


def load_run(path: str | Path) -> Run:
    """Load a run from its folder or from a checkpoint file; nothing else is needed.

    Raises:
        RunError: no such run, or a file that is not one of its checkpoints.
    """
    checkpoint = find_checkpoint(path)
    content = load_checkpoint(checkpoint)
    parameters = content["hyper_parameters"]
    parameters["recipe"] = _without_downloads(parameters["recipe"])
    names = ("recipe", "classes", "preprocess", "num_samples")
    module = CoETraining(**{name: parameters[name] for name in names})
    module.load_state_dict(content["state_dict"])
    module.eval().to(memory_format=torch.channels_last)
    in_run = checkpoint.parent.name == LAST.parent.name
    run = Run(checkpoint.parent.parent if in_run else checkpoint.parent, checkpoint, module)
    if (run.folder / POINTS).is_file():
        stored = json.loads((run.folder / POINTS).read_text(encoding="utf-8"))
        run.operating_points = {n: OperatingPoint.from_dict(p) for n, p in stored.items()}
    return run


def _without_downloads(recipe: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint holds the weights: published ones need not be fetched to build the networks."""
    networks = [recipe["delegator"], *recipe["experts"], *recipe["controls"].values()]
    for network in networks:
        network["pretrained"] = False
    return recipe


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
    module = CoETraining(
        recipe.to_dict(), data.classes, data.preprocess.to_dict(), len(data.train)
    ).to(memory_format=torch.channels_last)
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


def provenance(data: ImageData) -> dict[str, Any]:
    """Command, commit, versions and machine of a result."""
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    packages = ("torch", "torchvision", "timm", "lightning", "numpy")
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit,
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": choose_precision(),
        "data": data.provenance,
    }
