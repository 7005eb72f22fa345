"""The forms of an export as functions of pixels: team.onnx, and the programs of torch.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from coe_core import Delegation, infer
from coe_core.support.routing_file import DamagedExportError, read_routing, verify_files
from vision.export.runner import TASK, Routed

Program: TypeAlias = Callable[..., Any]  # of torch.export


def team_session(folder: Path) -> Any:
    """onnxruntime's session of team.onnx, on as many threads as torch has.

    Raises:
        DamagedExportError: it, or routing.json, is missing or damaged.
    """
    routing = read_routing(folder, TASK)
    weights = [name for name in routing["files"] if name.endswith(".onnx.data")]
    verify_files(folder, routing, ["team.onnx", *weights])
    return cpu_session(folder / "team.onnx")


def cpu_session(file: Path) -> Any:
    """onnxruntime's session of a network on as many threads as torch has; those that wait do not spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = (
        3  # of team.onnx it warns that threshold and rough_weight may be given
    )
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def scalar(value: float) -> np.ndarray:
    """A number as team.onnx takes it."""
    return np.array(value, np.float32)


def run_one_by_one(session: Any, pixels: Tensor, threshold: float, rough_weight: float) -> Routed:
    """Route a batch through team.onnx, which takes single images."""
    numbers = {"threshold": scalar(threshold), "rough_weight": scalar(rough_weight)}
    rows = [session.run(None, {"images": image[None].numpy(), **numbers}) for image in pixels]
    return Routed(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def load_programs(folder: Path, num_experts: int | None = None) -> tuple[Program, list[Program]]:
    """Delegator and experts of a pt2 export.

    Args:
        folder: of the export.
        num_experts: to be loaded; None: those of routing.json.

    Raises:
        DamagedExportError: a file that is missing or damaged; names it.
    """
    routing = read_routing(folder, TASK)
    networks = [routing["delegator"], *routing["experts"][:num_experts]]
    names = [network["file"] for network in networks]
    verify_files(folder, routing, names)
    programs: list[Program] = []
    for name in names:
        try:
            programs.append(torch.export.load(folder / name).module())
        except Exception as error:  # an archive of another kind raises almost anything
            raise DamagedExportError(
                f"{folder / name} cannot be loaded as a torch.export program "
                f"({type(error).__name__}); was it written by another version of torch?"
            ) from error
    return programs[0], programs[1:]


def run_programs(
    delegator: Program,
    experts: Sequence[Program],
    pixels: Tensor,
    threshold: float,
    rough_weight: float,
) -> Routed:
    """Route a batch through the programs of a pt2 export."""
    rough, confidence, *more = delegator(pixels)
    if not more:  # a network alone
        none = torch.zeros(len(pixels), dtype=torch.long)
        columns = (rough.softmax(1), none.bool(), none, confidence)
        return Routed(*(column.numpy() for column in columns))
    selected, *features = more
    selection = torch.nn.functional.one_hot(selected, len(experts)).float()
    result = infer(
        lambda _: Delegation(rough, confidence, selection, features[0] if features else None),
        experts,
        pixels,
        threshold,
        combine=lambda rough, answer: answer + rough_weight * rough,
    )
    columns = (result.prediction.softmax(1), *result[1:])
    return Routed(*(column.numpy() for column in columns))
