"""fairseq's checkpoints: loading them on torch >= 2.6, and taking one network out, averaging.

fairseq calls ``torch.load`` without saying how, and torch >= 2.6 then loads ``weights_only=True``. A
checkpoint of ours holds plain values only. Those of models with arguments of the older kind
(``--arch transformer...``) hold an ``argparse.Namespace``, and those trained with --eval-bleu hold
numpy counts: these classes are registered here as safe; ``weights_only`` stays on.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def register_safe_classes() -> None:
    """Let ``weights_only=True`` build what occurs in fairseq's own checkpoints. No code runs in them."""
    kinds = {type(np.dtype(kind)) for kind in (np.int64, np.int32, np.float64, np.float32)}
    rebuild = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.ndarray, np.dtype, *rebuild, *kinds]
    )


def load_state(path: str | Path) -> dict[str, Any]:
    """A checkpoint as it was saved, on the CPU.

    Raises:
        ValueError: no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    register_safe_classes()
    return torch.load(path, map_location="cpu", weights_only=True)


def network_names(num_experts: int) -> list[str]:
    """Names of the networks of a team, as lines R-<id> have them."""
    return ["delegator", *(f"expert-{j}" for j in range(num_experts))]


def take_network(state: dict[str, Any], name: str) -> dict[str, Any]:
    """A plain fairseq checkpoint of one network of a team: it loads without the plugin.

    The selection head is left out, as are the optimiser and the state of training.

    Args:
        state: of a checkpoint of ``coe_transformer``, as `torch.load` returns it.
        name: "delegator" or "expert-J".

    Raises:
        ValueError: not a checkpoint of a team, or no such network in it.
    """
    from translation.plugin.model import complete, delegator_arguments, expert_arguments

    config = state.get("cfg") or {}
    model = config.get("model") or state.get("args") or {}
    model = model if isinstance(model, dict) else vars(model)
    if not str(model.get("_name", "")).startswith("coe_transformer"):
        raise ValueError(
            "not the checkpoint of a collaboration: its architecture is "
            f"{model.get('_name', model.get('arch'))!r}; "
            "give a checkpoint of coe_transformer..."
        )
    cfg = complete(argparse.Namespace(**model))
    if name not in network_names(cfg.num_experts):
        raise ValueError(
            f"no network {name!r} in this checkpoint; known: {', '.join(network_names(cfg.num_experts))}"
        )
    if name == "delegator":
        arguments, prefix = delegator_arguments(cfg), "delegator."
    else:
        number = int(re.findall(r"\d+", name)[0])
        arguments, prefix = expert_arguments(cfg)[number], f"experts.{number}."
    plain = {key: getattr(value, "value", value) for key, value in vars(arguments).items()}
    own = ("router", "threshold", "confidence", "routes")
    task = {key: value for key, value in config["task"].items() if key not in own}
    return {
        "args": None,
        "cfg": {
            **config,
            "model": {**plain, "_name": "transformer"},
            "task": {**task, "_name": "translation"},
            "criterion": None,
            "common": {**config["common"], "user_dir": None},
        },
        "model": {
            key.removeprefix(prefix): value.clone()
            for key, value in state["model"].items()
            if key.startswith(prefix)
        },
        "optimizer_history": state["optimizer_history"][-1:],
        "extra_state": {"train_iterator": state["extra_state"]["train_iterator"]},
        "task_state": {},
    }


def average(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint whose parameters are the mean of several of one training; the rest is the last's.

    Its optimiser is left out: it is for translating, not for training on.

    Args:
        states: as `torch.load` returns them, in the order of training.

    Raises:
        ValueError: none given, or checkpoints of other networks.
    """
    if not states:
        raise ValueError("no checkpoints to average")
    for place, state in enumerate(states):
        if {key: value.shape for key, value in state["model"].items()} != {
            key: value.shape for key, value in states[0]["model"].items()
        }:
            raise ValueError(
                f"checkpoint {place + 1} of {len(states)} is of another network than the first; "
                "average checkpoints of one training"
            )
    last = states[-1]["model"]
    mean: dict[int, torch.Tensor] = {}  # by storage: tied embeddings stay tied
    averaged = {}
    for key, value in last.items():
        if key.startswith("partition"):  # the state of training's portions
            continue
        if value.data_ptr() not in mean or value.numel() == 0:
            summed = torch.stack([state["model"][key].double() for state in states]).mean(0)
            mean[value.data_ptr()] = summed.to(value.dtype) if value.is_floating_point() else value
        averaged[key] = mean[value.data_ptr()]
    kept = {key: value for key, value in states[-1].items() if key != "last_optimizer_state"}
    return {**kept, "model": averaged}
