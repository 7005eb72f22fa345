"""One ONNX graph of delegator and experts, in which an `If` runs at most one expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from coe_core.support.files import json_text
from vision.errors import RunError
from vision.export.convert import MAX_BYTES

TEAM = "team.onnx"


def join_team(folder: Path, routing: dict[str, Any]) -> None:
    """Write team.onnx from the files of an export.

    Inputs: images (uint8, one image), threshold and rough_weight (both have the export's defaults).
    Outputs: probabilities [1, c], exited [1], selected_expert [1], confidence [1].
    routing.json without its digests is stored in the file's metadata under "routing". Where one file
    cannot hold all weights, those of each network lie beside it in NAME.onnx.data, for both.

    Raises:
        RunError: a network with control flow of its own.
    """
    names = ["delegator", *(f"expert_{j}" for j in range(len(routing["experts"])))]
    paths = [folder / f"{name}.onnx" for name in names]
    files = [file for path in paths for file in folder.glob(f"{path.name}*")]
    beside = sum(file.stat().st_size for file in files) > MAX_BYTES
    if beside:
        for path in paths:
            _put_beside(path)
    models = [onnx.load(path, load_external_data=False) for path in paths]
    team, experts = models[0], [model.graph for model in models[1:]]
    for name, expert in zip(names[1:], experts, strict=True):
        _rename(expert, name)
    _route(team.graph, experts, routing)
    helper.set_model_props(team, {"routing": json_text(routing, indent=None).rstrip()})
    if beside:  # what is checked must find the weights
        onnx.save(team, folder / TEAM)
        onnx.checker.check_model(str(folder / TEAM), full_check=True)
    else:
        onnx.checker.check_model(team, full_check=True)
        onnx.save(team, folder / TEAM)


def _put_beside(path: Path) -> None:
    """Move a network's weights to a file of their own, unless they are there already."""
    data = f"{path.name}.data"
    if not path.with_name(data).exists():
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=data)


def _route(graph: GraphProto, experts: list[GraphProto], routing: dict[str, Any]) -> None:
    """Turn the delegator's graph into that of the team."""
    # A shared trunk's features, a fourth, are seen by the experts' branches from within.
    rough, confidence, selected = (output.name for output in list(graph.output)[:3])
    nodes = [
        helper.make_node("GreaterOrEqual", [confidence, "threshold"], ["exited"], name="exit"),
        helper.make_node(
            "If",
            ["exited"],
            ["final_logits"],
            name="exit_or_expert",
            then_branch=_branch("exit", [helper.make_node("Identity", [rough], ["exit_logits"])]),
            else_branch=_pooled(_choice(experts, 0, len(experts), selected), rough),
        ),
        helper.make_node("Softmax", ["final_logits"], ["probabilities"], name="softmax", axis=-1),
    ]
    graph.node.extend(nodes)
    graph.name = "team"
    defaults = routing["default"]
    for name in ("threshold", "rough_weight"):
        graph.initializer.append(
            helper.make_tensor(name, TensorProto.FLOAT, [], [float(defaults[name])])
        )
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    del graph.output[:]
    num_classes = len(routing["classes"])
    graph.output.extend(
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, num_classes]),
            helper.make_tensor_value_info("exited", TensorProto.BOOL, [1]),
            helper.make_tensor_value_info(selected, TensorProto.INT64, [1]),
            helper.make_tensor_value_info(confidence, TensorProto.FLOAT, [1]),
        ]
    )
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del graph.value_info[:]  # shapes with the batch left open


def _branch(name: str, nodes: list[NodeProto]) -> GraphProto:
    """A branch of an `If`: no inputs, one output, that of its last node."""
    output = nodes[-1].output[0]
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    )


def _choice(experts: list[GraphProto], first: int, end: int, selected: str) -> GraphProto:
    """A tree of `If`s over experts[first:end]: at most log2 k comparisons on the way to one."""
    if end - first == 1:
        return experts[first]
    middle = (first + end) // 2
    name = f"below_{middle}_of_{first}_{end}"
    nodes = [
        helper.make_node(
            "Constant",
            [],
            [f"{name}/bound"],
            value=helper.make_tensor(f"{name}/bound", TensorProto.INT64, [], [middle]),
        ),
        helper.make_node("Less", [selected, f"{name}/bound"], [name]),
        helper.make_node(
            "If",
            [name],
            [f"{name}/logits"],
            name=name,
            then_branch=_choice(experts, first, middle, selected),
            else_branch=_choice(experts, middle, end, selected),
        ),
    ]
    return _branch(f"choose_{first}_{end}", nodes)


def _pooled(choice: GraphProto, rough: str) -> GraphProto:
    """The chosen expert's logits + rough_weight * the rough logits."""
    answer = choice.output[0].name
    nodes = [
        helper.make_node("Mul", [rough, "rough_weight"], ["weighted_rough"]),
        helper.make_node("Add", [answer, "weighted_rough"], ["pooled_logits"]),
    ]
    pooled = _branch("expert", nodes)
    pooled.initializer.extend(choice.initializer)
    whole = [*choice.node, *nodes]
    del pooled.node[:]
    pooled.node.extend(whole)
    return pooled


def _rename(graph: GraphProto, prefix: str) -> None:
    """Make a network's names its own; its input has the name that it has in the outer graph."""
    names = {graph.input[0].name: graph.input[0].name}

    def prefixed(name: str) -> str:
        return names.setdefault(name, f"{prefix}/{name}") if name else name

    for tensor in graph.initializer:
        tensor.name = prefixed(tensor.name)
    name_nodes(graph)
    for node in graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise RunError(f"{prefix} has control flow of its own ({node.op_type}); not supported")
        node.name = f"{prefix}/{node.name}"
        node.input[:] = [prefixed(name) for name in node.input]
        node.output[:] = [prefixed(name) for name in node.output]
    output = prefixed(graph.output[0].name)
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    graph.name = prefix


def name_nodes(graph: GraphProto) -> None:
    """Give nodes without a name one of their own: onnxruntime's fusions leave them without."""
    taken = {node.name for node in graph.node}
    for node in graph.node:
        if not node.name:
            name = f"{node.op_type}/{node.output[0]}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name
