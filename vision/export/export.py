"""Export a run: ONNX for anywhere onnxruntime runs, or torch.export programs; checked against the run."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from coe_core import confidence
from vision.data.preprocess import Preprocess
from vision.errors import RunError
from vision.export import runner as onnx_runner
from vision.prediction.budgets import Budget, resolve_budget
from vision.recipe_networks import run_macs
from vision.run import Run, write_text

Kind = Literal["onnx", "pt2"]
OPSET = 18
FORMAT = 1  # of routing.json
MAX_BATCH = 65536


class ExportError(RunError):
    """A network cannot be exported; names it and the operator."""


class DelegatorGraph(nn.Module):
    """Pixels -> rough logits, confidence, selected expert; normalisation included."""

    def __init__(self, delegator: nn.Module, preprocess: Preprocess, num_classes: int):
        super().__init__()
        self.delegator, self.preprocess, self.num_classes = delegator, preprocess, num_classes

    def forward(
        self, images: UInt8[Tensor, "n ch size size"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Int[Tensor, " n"]]:
        outputs = self.delegator(self.preprocess.normalise(images))
        rough = outputs[:, : self.num_classes]
        return rough, confidence(rough), outputs[:, self.num_classes :].argmax(1)


class ExpertGraph(nn.Module):
    """Pixels -> logits; normalisation included."""

    def __init__(self, expert: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.expert, self.preprocess = expert, preprocess

    def forward(self, images: UInt8[Tensor, "n ch size size"]) -> Float[Tensor, "n c"]:
        return self.expert(self.preprocess.normalise(images))


OUTPUTS = {"delegator": ["rough_logits", "confidence", "selected_expert"], "expert": ["logits"]}


def export_run(
    run: Run,
    folder: Path,
    kind: Kind,
    *,
    opset: int = OPSET,
    budget: str | float | None = None,
    threshold: float | None = None,
    int8_pixels: UInt8[Tensor, "n ch size size"] | None = None,
) -> list[Path]:
    """Write a run to a folder that needs neither this package nor the run.

    "onnx" writes delegator.onnx, expert_0.onnx, ... for batches, team.onnx for single images (an `If`
    chooses whether and which expert runs), routing.json and runner.py, which needs numpy, Pillow
    and onnxruntime alone. "pt2" writes the networks as torch.export programs, and routing.json.

    Args:
        run: trained.
        folder: new or empty.
        kind: "onnx" or "pt2".
        opset: of ONNX, at least 18.
        budget: default of the export, see `resolve_budget`.
        threshold: default of the export, instead of a budget.
        int8_pixels: images to quantise the experts by, see `quantise`; None leaves them in fp32.

    Returns:
        The files written.

    Raises:
        ExportError: a network with an operator that cannot be exported; it is named.
        RunError: a folder in use, a package that is missing, or a budget the run cannot resolve.
        ValueError: an opset that is too old.
    """
    if opset < OPSET:
        raise ValueError(f"opset must be at least {OPSET}, got {opset}")
    default = resolve_budget(run, budget, threshold)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty; choose another folder with --out")
    if kind == "onnx":
        require("onnx", "onnxscript", "onnxruntime", extra="export")
    graphs = team_graphs(run)
    example = example_pixels(run, 2)
    write = _onnx_writer(opset) if kind == "onnx" else _write_program
    # Made in memory first: a network that cannot be exported leaves no half of a folder.
    saves = {name: _converted(write, name, graph, example) for name, graph in graphs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.{kind}" for name in saves]
    for path, save in zip(files, saves.values(), strict=True):
        with _quiet():
            save(path)
    routing = routing_of(run, kind, default, opset if kind == "onnx" else None)
    write_text(folder / "routing.json", json.dumps(routing, indent=2) + "\n")
    files.append(folder / "routing.json")
    if kind == "onnx":
        from vision.export.quantise import quantise
        from vision.export.team_graph import join_team

        if int8_pixels is not None:
            for path in files[1 : len(saves)]:
                quantise(path, int8_pixels)
        join_team(folder, routing)
        shutil.copyfile(onnx_runner.__file__, folder / "runner.py")
        files += [folder / "team.onnx", folder / "runner.py"]
    return files


def team_graphs(run: Run) -> dict[str, nn.Module]:
    """What is exported, by file name: on the CPU, in fp32, in evaluation mode."""
    networks, preprocess = run.networks, run.networks.preprocess
    team = networks.team.float().cpu().eval()
    graphs = {"delegator": DelegatorGraph(team.delegator, preprocess, team.num_classes)}
    graphs |= {f"expert_{j}": ExpertGraph(net, preprocess) for j, net in enumerate(team.experts)}
    return {name: graph.eval() for name, graph in graphs.items()}


def example_pixels(run: Run, count: int) -> UInt8[Tensor, "n ch size size"]:
    """Random pixels of the run's shape."""
    preprocess = run.networks.preprocess
    shape = (count, preprocess.channels, preprocess.size, preprocess.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))


def require(*packages: str, extra: str) -> None:
    """Raise a RunError that says what to install if a package of an optional extra is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"needs {', '.join(missing)}: pip install 'collaboration-of-experts[{extra}]'"
        )


def routing_of(run: Run, kind: Kind, default: Budget, opset: int | None) -> dict[str, Any]:
    """What a runner must know beside the networks: plain values, infinite thresholds as strings."""
    macs = run_macs(run.networks)
    names = [f"expert_{j}" for j in range(run.recipe.num_experts)]
    return {
        "format": FORMAT,
        "classes": run.networks.classes,
        "preprocess": run.networks.preprocess.to_dict(),
        "confidence": "max_probability",
        "delegator": {"file": f"delegator.{kind}", "macs": macs.delegator},
        "experts": [
            {"file": f"{name}.{kind}", "macs": cost}
            for name, cost in zip(names, macs.experts, strict=True)
        ],
        "default": {
            "name": default.name,
            "threshold": str(default.threshold)
            if math.isinf(default.threshold)
            else default.threshold,
            "rough_weight": default.rough_weight,
        },
        "operating_points": {n: point.to_dict() for n, point in run.operating_points.items()},
        "curve": run.curve.to_dict() if run.curve is not None else None,
        "opset": opset,
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("torch", *(("onnx", "onnxscript") if kind == "onnx" else ()))
        },
        "checkpoint": run.checkpoint.name,
    }


Save = Callable[[Path], Any]


def _converted(write: Callable, name: str, graph: nn.Module, example: Tensor) -> Save:
    """The converted network's save function."""
    try:
        with _quiet():
            return write(graph, example, OUTPUTS[name.split("_")[0]])
    except Exception as error:  # the exporters raise almost anything
        reasons, cause = [], error
        while cause is not None:
            reasons.append(str(cause))
            cause = cause.__cause__
        operators = re.findall(r"OpOverload\(op='([\w.]+)'", reasons[-1] + "".join(reasons))
        what = f"the operator {operators[0]}" if operators else (reasons[-1].strip() or "?")
        first = what.splitlines()[0]
        raise ExportError(f"{name} cannot be exported: {first} is not supported") from error


def _onnx_writer(opset: int) -> Callable[[nn.Module, Tensor, list[str]], Save]:
    def write(graph: nn.Module, example: Tensor, outputs: list[str]) -> Save:
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1, max=MAX_BATCH)}},
            input_names=["images"],
            output_names=outputs,
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
        return program.save

    return write


def _write_program(graph: nn.Module, example: Tensor, outputs: list[str]) -> Save:
    batch = torch.export.Dim("n", min=1, max=MAX_BATCH)
    program = torch.export.export(graph, (example,), dynamic_shapes={"images": {0: batch}})
    return lambda path: torch.export.save(program, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
