"""Export a run: ONNX for anywhere onnxruntime runs, or torch.export programs; checked against the run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from coe_core import CalibratedCurve, ExitRule, OperatingPoint
from coe_core.stored_points import has_exits
from coe_core.support.exports import provenance_of, write_routing
from coe_core.support.files import whole_folder
from vision.budgets import ResolvedBudget, resolve_budget
from vision.errors import RunError
from vision.export.convert import (
    MAX_BYTES,
    OPSET,
    ExportError,
    check_opset,
    converted,
    weight_bytes,
)
from vision.export.graphs import (
    Graph,
    Kind,
    example_pixels,
    exported_weight,
    own_run,
    seen_by,
    system_graphs,
    undisturbed,
)
from vision.recipe_networks import run_macs
from vision.run import Run
from vision.systems import build_system

__all__ = ["ExportError", "Kind", "example_pixels", "export_run", "require", "routing_of"]


def export_run(
    run: Run,
    folder: Path,
    kind: Kind,
    *,
    opset: int = OPSET,
    budget: str | float | None = None,
    threshold: float | None = None,
    system: str | None = None,
    int8_pixels: UInt8[Tensor, "n ch h w"] | None = None,
    check: Callable[[Path], Any] | None = None,
) -> list[Path]:
    """Write a system of a run to a folder that needs neither this package nor the run.

    "onnx" writes delegator.onnx, expert_0.onnx, ... for batches, team.onnx for single images (an `If`
    chooses whether and which expert runs), routing.json and runner.py, which needs numpy, Pillow
    and onnxruntime alone. Of a system that is a network alone, or an ensemble, there is network.onnx in
    place of the first three. "pt2" writes the networks as torch.export programs, and routing.json.
    The folder is there once all of it is written and checked, or not at all. The run stays as it is,
    as do the caller's random numbers.

    Args:
        run: trained.
        folder: new or empty.
        kind: "onnx" or "pt2".
        opset: of ONNX, at least 18.
        budget: default of the export, see `resolve_budget`.
        threshold: default of the export, instead of a budget.
        system: to be exported; None: the one that is used for the budget. The export holds no other.
        int8_pixels: images to quantise the experts (or the network) by, see `quantise`; None leaves
            them in fp32.
        check: called with the folder before it takes its place; where it raises, nothing stays.

    Returns:
        The files written, those of the networks first.

    Raises:
        ExportError: a network with an operator that cannot be exported (it is named), or networks that
            are too large to quantise.
        RunError: a folder in use, a package that is missing, or a budget the run cannot resolve.
        ValueError: an opset that cannot be written, or int8 of another kind than "onnx".
    """
    default = resolve_budget(run, budget, threshold, system)
    _check_arguments(folder, kind, opset, int8_pixels is not None)
    with undisturbed():
        run = own_run(run)
        _refuse_int8(run, default.system, int8_pixels is not None)
        graphs = system_graphs(run, default.system, default.rule)
        if int8_pixels is not None:
            _refuse_large(graphs)
        routing = routing_of(run, kind, default, opset, int8_pixels is not None)
        with whole_folder(folder) as part:  # first, as it says where nothing can be written
            saves = converted(kind, opset, graphs, seen_by(graphs, example_pixels(run, 2)))
            for name, save in saves.items():
                save(part / f"{name}.{kind}")
            if kind == "onnx":
                _finish_onnx(part, routing, int8_pixels)
            else:
                write_routing(part, routing, None)
            if check is not None:
                check(part)
    return _files(folder, [f"{name}.{kind}" for name in saves])


def _refuse_int8(run: Run, system: str, int8: bool) -> None:
    if int8 and has_exits(system) and run.recipe.hand_over.trunk is not None:
        raise ExportError(
            "int8 is of experts that are whole networks: those of this run go on from a shared trunk "
            "(hand_over.trunk in its recipe); export without --int8"
        )


def _check_arguments(folder: Path, kind: Kind, opset: int, int8: bool) -> None:
    """What can be known before the networks are converted, which takes a while."""
    if int8 and kind != "onnx":
        raise ValueError("int8 is for onnx")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty; choose another folder with --out")
    if kind == "onnx":
        require("onnx", "onnxscript", "onnxruntime", extra="export")
        check_opset(opset)


def _refuse_large(graphs: Mapping[str, Graph]) -> None:
    for name, graph in graphs.items():
        if (size := weight_bytes(graph)) > MAX_BYTES:
            raise ExportError(
                f"{name} has {size:,} bytes of weights, int8 can be made of {MAX_BYTES:,}; export "
                "without --int8"
            )


def _finish_onnx(part: Path, routing: dict[str, Any], int8_pixels: Tensor | None) -> None:
    """8 bits if asked for, the single file of the team, the runner and routing.json."""
    from vision.export import runner
    from vision.export.quantise import quantise
    from vision.export.sessions import team_session
    from vision.export.team_graph import join_team

    if int8_pixels is not None:
        for network in routing["experts"] or [routing["delegator"]]:
            quantise(part / network["file"], int8_pixels)
    if routing["experts"]:
        join_team(part, routing)
    write_routing(part, routing, runner)
    runner.Runner(part, threads=1)  # loads every network: onnxruntime checks them
    if routing["experts"]:
        team_session(part)


def _files(folder: Path, networks: list[str]) -> list[Path]:
    """All files of the export: networks, routing.json, the rest."""
    first = [folder / name for name in (*networks, "routing.json")]
    return first + sorted(path for path in folder.iterdir() if path not in first)


def require(*packages: str, extra: str) -> None:
    """Raise a RunError that says what to install if a package of an optional extra is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(
            f"needs {', '.join(missing)}: pip install 'collaboration-of-experts[{extra}]'"
        )


def routing_of(
    run: Run, kind: Kind, default: ResolvedBudget, opset: int = OPSET, int8: bool = False
) -> dict[str, Any]:
    """What a runner must know beside the networks, see `coe_core.support.routing_file`.

    Of the system's operating points and its curve those that go by the same rule as the default: the
    exported delegator knows no other.
    """
    system = build_system(run.networks, run_macs(run.networks), default.system)
    weights = "int8" if int8 else "float32"
    alone, curve = system.team is None, run.curves.get(system.name)
    return {
        "task": "vision",
        "system": system.name,
        "classes": run.networks.classes,
        "preprocess": run.networks.preprocess.to_dict(),
        "confidence": default.rule.kind,
        "delegator": {
            "file": f"{'network' if alone else 'delegator'}.{kind}",
            "macs": int(system.first_macs),
            "weights": weights if alone else "float32",
        },
        "experts": [
            {"file": f"expert_{j}.{kind}", "macs": int(cost), "weights": weights}
            for j, cost in enumerate(system.expert_macs)
        ],
        "default": {
            "name": default.name,
            "threshold": default.threshold,
            "rough_weight": exported_weight(run, system.name, default.rough_weight),
        },
        "operating_points": {
            name: _fitted(run, system.name, point)
            for name, point in run.stored.named(system.name).items()
            if point.exit_rule == default.rule
        },
        "curve": _fitted(run, system.name, curve)
        if curve is not None and curve.exit_rule == default.rule
        else None,
        "opset": opset if kind == "onnx" else None,
        "provenance": provenance_of(
            run.checkpoint.name,
            ("torch", *(("onnx", "onnxscript") if kind == "onnx" else ())),
        ),
    }


def _fitted(run: Run, system: str, fitted: OperatingPoint | CalibratedCurve) -> dict[str, Any]:
    """What was fitted, as an export has it: its rule is in the delegator's graph."""
    weight = exported_weight(run, system, fitted.rough_weight)
    return replace(fitted, rough_weight=weight, exit_rule=ExitRule()).to_dict()
