"""One network to a file: an ONNX graph or a torch.export program."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coe_core.support.files import write_bytes
from vision.errors import RunError
from vision.export.graphs import Graph, Kind

OPSET = 18  # the oldest that the exporter writes
MAX_BATCH = 65536
# Of weights in one ONNX file: protobuf ends at 2 GB, and torch puts them beside the graph from here on.
MAX_BYTES = 1536 * 2**20

_SOURCES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")

Save = Callable[[Path], Any]


class ExportError(RunError):
    """A network cannot be exported; names it and the operator."""


def check_opset(opset: int) -> None:
    """Raise ValueError for an opset that cannot be written."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        bound = f"at least {OPSET}" if opset < OPSET else f"at most {newest} (of the onnx package)"
        raise ValueError(f"opset must be {bound}, got {opset}")


def converted(
    kind: Kind, opset: int, graphs: Mapping[str, Graph], examples: Mapping[str, Tensor]
) -> dict[str, Save]:
    """Every network's save function, by its file name: made in memory, nothing is written yet.

    Args:
        kind: "onnx" or "pt2".
        opset: of ONNX.
        graphs: the networks, from pixels or features to answers.
        examples: what each sees of at least two images.

    Raises:
        ExportError: an operator that cannot be exported (named), or another opset than asked for.
    """
    saves = {}
    for name, graph in graphs.items():
        if kind == "onnx":
            _refuse_mixed_kernels(name, graph)
        try:
            with _quiet():
                saves[name] = (
                    _to_onnx(graph, examples[name], opset)
                    if kind == "onnx"
                    else _to_program(graph, examples[name])
                )
        except ExportError as error:
            raise ExportError(f"{name}: {error}") from error
        except Exception as error:  # the exporters raise almost anything
            raise ExportError(f"{name} cannot be exported: {_reason(error)}") from error
    return saves


def weight_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers in fp32, as an ONNX file holds them."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _reason(error: BaseException) -> str:
    """The operator that the exporter stumbled over, or the first line of the innermost reason."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause))
        cause = cause.__cause__
    operators = re.findall(r"OpOverload\(op='([\w.]+)'", reasons[-1] + "".join(reasons))
    what = f"the operator {operators[0]}" if operators else (reasons[-1].strip() or "?")
    return f"{what.splitlines()[0]} is not supported"


def _refuse_mixed_kernels(name: str, graph: nn.Module) -> None:
    """ONNX fixes the number of groups of a convolution; a kernel for each image needs as many as images."""
    # By name: its import would load timm for a network that has nothing of it.
    mixed = [
        path for path, module in graph.named_modules() if type(module).__name__ == "CondConv2d"
    ]
    if mixed:
        raise ExportError(
            f"{name} cannot be exported to ONNX: its {len(mixed)} CondConv layers, such as "
            f"{mixed[0].partition('.')[2]}, mix a kernel for each image, for which ONNX has no operator; "
            "--to pt2 takes them"
        )


def _to_onnx(graph: Graph, example: Tensor, opset: int) -> Save:
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        dynamic_shapes={graph.seen: {0: torch.export.Dim("n", min=1, max=MAX_BATCH)}},
        input_names=[graph.seen],
        output_names=list(graph.outputs),
        opset_version=opset,
        external_data=False,
        verbose=False,
    )
    assert program is not None, "what dynamo=True returns"
    written = program.model.opset_imports[""]
    if written != opset:
        raise ExportError(
            f"opset {opset} was asked for, the exporter can write it in opset {written} only; "
            f"give --opset {written}"
        )
    for node in program.model.graph.all_nodes():
        for key in _SOURCES:  # where this machine keeps its programs; four fifths of a small file
            node.metadata_props.pop(key, None)
    size = weight_bytes(graph)
    return lambda path: program.save(path, external_data=size > MAX_BYTES)


def _to_program(graph: Graph, example: Tensor) -> Save:
    batch = torch.export.Dim("n", min=1, max=MAX_BATCH)
    program = torch.export.export(graph, (example,), dynamic_shapes={graph.seen: {0: batch}})

    def save(path: Path) -> None:
        # Through memory: torch's own writer ends the process where the disk is full.
        content = io.BytesIO()
        with _quiet():
            torch.export.save(program, content)
        write_bytes(path, content.getbuffer())

    return save


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
