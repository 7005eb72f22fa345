"""Read a run's checkpoints: whole, unchanged, and of this toolkit; nothing in them runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from coe_core.support.archives import check_saved
from vision.errors import RunError

LAST = Path("checkpoints/last.ckpt")
PARAMETERS = ("recipe", "classes", "preprocess")  # what `Networks` is built from
_MOST_VALUES = 1_000_000  # plain values in a checkpoint: ImageNet-21k has 21,841 classes
_DEEPEST = 50


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Content of a checkpoint of ours, loaded with ``weights_only=True`` after its checksums were compared.

    Args:
        path: of the file.
        mapped: tensors stay in the file and are read where they are used; processes on one machine share
            them. Changing a tensor leaves the file as it is, but nobody may write into the file.

    Raises:
        RunError: missing, unreadable, damaged, or not a checkpoint of this toolkit; in one line.
    """
    try:
        check_saved(path)
        with warnings.catch_warnings(action="ignore"):  # of sparse tensors, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise RunError(
            f"there is no checkpoint {path}; give a run folder or a .ckpt file"
        ) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read as a checkpoint: {error.strerror}") from error
    except ValueError as error:
        raise RunError(str(error)) from error
    except Exception as error:  # unpickling raises almost anything on what is no checkpoint
        raise RunError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it is damaged or "
            "something else"
        ) from error
    _check_content(path, content)
    return content


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint of a run folder (its last), or the file itself."""
    path = Path(path)
    if path.is_dir():
        if not (path / LAST).is_file():
            raise RunError(f"{path} is not a run folder: it has no {LAST}")
        return path / LAST
    return path


def _check_content(path: Path, content: Any) -> None:
    parameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict):
        parameters = {}
    missing = [name for name in PARAMETERS if name not in parameters]
    if missing:
        raise RunError(f"{path} is not a checkpoint of coe-vision: it holds no {missing[0]}")
    if _count_plain(parameters) > _MOST_VALUES:
        raise RunError(
            f"{path} is not a checkpoint of coe-vision: its recipe, classes and preprocess are not "
            "plain values, or too many"
        )
    classes = parameters["classes"]
    rules = {
        "recipe": isinstance(parameters["recipe"], dict),
        "preprocess": isinstance(parameters["preprocess"], dict),
        "classes": isinstance(classes, list)
        and len(classes) > 0
        and all(isinstance(name, str) for name in classes),
        "state_dict": _is_state(content.get("state_dict")),
    }
    wrong = [name for name, holds in rules.items() if not holds]
    if wrong:
        raise RunError(
            f"{path} is not a checkpoint of coe-vision, or a damaged one: its {wrong[0]} is not of the "
            "expected kind"
        )


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_complex() or tensor.is_quantized)
        for name, tensor in value.items()
    )


def _count_plain(value: Any) -> int:
    """Plain values in nested lists and dicts, each counted as often as it is named; too many for others.

    A few hundred bytes that name each other can stand for more values than memory holds.
    """
    count, stack = 0, [(value, 0)]
    while stack and count <= _MOST_VALUES:
        value, depth = stack.pop()
        count += 1
        if isinstance(value, dict) and all(type(key) is str for key in value):
            inner = list(value.values())
        elif isinstance(value, list | tuple):
            inner = list(value)
        elif value is None or type(value) in (bool, int, float, str):
            continue
        else:
            return _MOST_VALUES + 1
        if depth == _DEEPEST or len(inner) > _MOST_VALUES:
            return _MOST_VALUES + 1
        stack += [(each, depth + 1) for each in inner]
    return count
