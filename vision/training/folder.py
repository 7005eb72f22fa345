"""The folder that a run is trained into: that it may be, and what is kept beside the checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from coe_core.support.files import read_json, write_json, write_text
from coe_core.support.locks import locked
from coe_core.support.recipes import differences
from vision.checkpoints import LAST, load_checkpoint
from vision.data.load import ImageData
from vision.errors import RunError
from vision.recipe import Recipe, recipe_from_dict
from vision.run import provenance

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights

# Where the data lie and how they are read does not change what is learned.
MAY_DIFFER = ("data.path", "data.workers", "data.cache", "train.compile", "train.logger", "budget")
# What a training continues from, beside what `load_checkpoint` makes sure of.
_STATE = {"global_step": int, "epoch": int, "callbacks": dict, "loops": dict}
_STATE |= {"optimizer_states": list, "lr_schedulers": list}


@contextmanager
def held_folder(folder: Path, rank: int = 0) -> Iterator[None]:
    """Make the folder, and keep other trainings out of it.

    Args:
        folder: of the run.
        rank: of this process; the first holds the folder for all.

    Raises:
        LockedError: another training writes to it; names its process and host.
        RunError: it cannot be written.
    """
    with ExitStack() as stack:
        try:
            (folder / LAST).parent.mkdir(parents=True, exist_ok=True)
            if rank == 0:
                stack.enter_context(locked(folder, "wait for it, stop it, or choose another --out"))
        except OSError as error:
            raise RunError(
                f"cannot write to {folder}: {error.strerror}; choose another --out"
            ) from error
        yield


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to continue from, if there is one.

    Raises:
        RunError: there is a run that is not to be continued, or another recipe's, or a damaged one.
    """
    checkpoint = folder / LAST
    if not os.path.lexists(checkpoint):
        return None
    if not resume:
        raise RunError(
            f"{folder} already holds a run; continue it with --resume, or choose another --out"
        )
    content = load_checkpoint(checkpoint)
    wrong = [name for name, kind in _STATE.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise RunError(
            f"{checkpoint} cannot be continued: its {wrong[0]} is missing or damaged; choose another --out"
        )
    trained = recipe_from_dict(content["hyper_parameters"]["recipe"], str(checkpoint))
    changed = differences(trained.to_dict(), recipe.to_dict(), MAY_DIFFER)
    if changed:
        raise RunError(
            f"{checkpoint} was trained with another recipe: {'; '.join(changed)}. "
            "Resume with the same recipe, or choose another --out"
        )
    return content


def check_data(data: ImageData, trained: dict[str, Any], folder: Path) -> None:
    """Make sure that the data are those that the run was trained on.

    Raises:
        RunError: other classes, images or preprocessing; names what differs.
    """
    now = {
        "classes": data.classes,
        "preprocess": data.preprocess.to_dict(),
        "num_samples": len(data.train),
    }
    changed = differences({name: trained.get(name) for name in now}, now)
    if changed:
        raise RunError(
            f"{folder} was trained on other data: {'; '.join(changed)}. Resume with the same data "
            "(data.path may differ, what lies there may not), or choose another --out"
        )


def save_provenance(
    recipe: Recipe, data: ImageData, folder: Path, resumed: bool, weights: Weights | None = None
) -> None:
    """The recipe, and what was run with what; each resumption is added to the first record."""
    path = folder / "provenance.json"
    started = [] if weights is None else [loaded.to_dict() for loaded in weights.loaded]
    record = provenance(data, **({"pretrained": started} if started else {}))
    if resumed and path.is_file():
        first = _read_record(path)
        record = {**first, "resumed": [*first.get("resumed", []), record]}
    write_text(folder / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    write_json(path, record)


def save_diverged(folder: Path, parts: list[str]) -> None:
    """Add to the record which parts of the run are not finite, if any."""
    path = folder / "provenance.json"
    record = _read_record(path)
    if parts or "diverged" in record:
        write_json(path, {**record, "diverged": parts})


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except ValueError as error:
        raise RunError(f"{error}; remove it to continue") from error
    if not isinstance(record.get("resumed", []), list):
        raise RunError(f"{path} is damaged: its resumed is no list; remove it to continue")
    return record
