"""fairseq's checkpoints: loading them on torch >= 2.6, and taking one network out, averaging.

fairseq calls ``torch.load`` without saying how, and torch >= 2.6 then loads ``weights_only=True``. A
checkpoint of ours holds plain values only. Those of models with arguments of the older kind
(``--arch transformer...``) hold an ``argparse.Namespace``, and those trained with --eval-bleu hold
numpy counts: these classes are registered here as safe; ``weights_only`` stays on. What fairseq may build of
these values is the matter of `translation.plugin.trust`.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from coe_core.support.archives import check_saved
from translation.plugin.trust import check_sizes, options_of, sections

_OLD_KIND = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch < 1.6 begins files so, a number of its own
)


def register_safe_classes() -> None:
    """Let ``weights_only=True`` build what occurs in fairseq's own checkpoints: plain values, no code."""
    kinds = {type(np.dtype(kind)) for kind in (np.int64, np.int32, np.float64, np.float32)}
    rebuild = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    safe: list[Any] = [argparse.Namespace, np.ndarray, np.dtype, *rebuild, *kinds]
    torch.serialization.add_safe_globals(safe)


def load_state(path: str | Path, only_look: bool = False) -> dict[str, Any]:
    """A checkpoint as it was saved, on the CPU, after a check that it is whole.

    Args:
        path: of the checkpoint.
        only_look: leave the parameters in the file, where the file's kind allows that, and the sizes to
            whoever looks.

    Raises:
        ValueError: no such file, a damaged one, or one that is not fairseq's; in one line that names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        is_old = file.read(len(_OLD_KIND)) == _OLD_KIND
    if not is_old:
        check_saved(path)
    register_safe_classes()
    try:
        # Older checkpoints are no zip archives, and are read whole.
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=only_look and not is_old
        )
    except Exception as error:  # torch's reader fails in many ways, all of which mean the same
        reason = f"torch cannot read it ({type(error).__name__})"  # what it says more is of pickles
        if unsafe := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"it holds {unsafe[1]}, which is no plain value and may run code"
        raise ValueError(
            f"{path}: not a checkpoint that can be loaded, or damaged: {reason[:200]}"
        ) from error
    _check_state(state, path)
    if not only_look:
        check_sizes(state, str(path))
    return state


def _check_state(state: Any, path: Path) -> None:
    """Raise ValueError unless a checkpoint has the parts that fairseq's have, of their kinds."""
    what = f"{path}: not a checkpoint of fairseq"
    if not isinstance(state, dict):
        raise ValueError(f"{what}: it holds a {type(state).__name__}")
    model = state.get("model")
    if not isinstance(model, dict) or not model:
        raise ValueError(f"{what}: there are no parameters under 'model'")
    for key, value in model.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{what}: {key!r} under 'model' is a {type(value).__name__}, not a named tensor"
            )
    if state.get("cfg") is None and state.get("args") is None:
        raise ValueError(f"{what}: there is no configuration under 'cfg' or 'args'")
    for name, kinds in (
        ("cfg", (dict,)),
        ("args", (argparse.Namespace,)),
        ("optimizer_history", (list,)),
        ("extra_state", (dict,)),
        ("task_state", (dict,)),
    ):
        if state.get(name) is not None and not isinstance(state[name], kinds):
            raise ValueError(f"{what}: {name!r} is a {type(state[name]).__name__}")
    if not all(isinstance(entry, dict) for entry in state.get("optimizer_history") or []):
        raise ValueError(f"{what}: 'optimizer_history' holds what is no dict")


def num_updates(state: dict[str, Any]) -> int:
    """Updates that a checkpoint was trained for; 0 where it does not say.

    Example:
        >>> num_updates({"optimizer_history": [{"num_updates": 50}]}), num_updates({})
        (50, 0)
    """
    history = state.get("optimizer_history") or [{}]
    stored = history[-1].get("num_updates", 0)
    return stored if isinstance(stored, int) else 0


def network_names(num_experts: int) -> list[str]:
    """Names of the networks of a team, as lines R-<id> have them."""
    return ["delegator", *(f"expert-{j}" for j in range(num_experts))]


def num_experts_of(state: dict[str, Any]) -> int:
    """Number of experts of a team's checkpoint.

    Raises:
        ValueError: not a checkpoint of a team.
    """
    model = sections(state).get("model", {})
    if not str(model.get("_name", "")).startswith("coe_transformer"):
        raise ValueError(
            "not the checkpoint of a collaboration: its architecture is "
            f"{str(model.get('_name', model.get('arch')))[:60]!r}; "
            "give a checkpoint of coe_transformer..."
        )
    num_experts = model.get("num_experts", 4)
    if not isinstance(num_experts, int) or num_experts < 1:
        raise ValueError(f"a collaboration of {num_experts!r} experts: the checkpoint is damaged")
    return num_experts


def parameters_of(state: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Parameters of one network of a team, by their names in it.

    Raises:
        ValueError: there are none.
    """
    prefix = "delegator." if name == "delegator" else f"experts.{name.removeprefix('expert-')}."
    parameters = {
        key.removeprefix(prefix): value
        for key, value in state["model"].items()
        if key.startswith(prefix)
    }
    if not parameters:
        raise ValueError(f"there are no parameters of {name} in this checkpoint: it is damaged")
    return parameters


class NetworkSizes(NamedTuple):
    """Sizes of one network, as its parameters have them."""

    encoder_layers: int
    decoder_layers: int
    width: int  # of the encoder's embeddings
    num_parameters: int  # shared ones once


def network_sizes(state: dict[str, Any], name: str) -> NetworkSizes:
    """Sizes of one network of a team. Needs no fairseq.

    Raises:
        ValueError: there is no such network in the checkpoint.
    """
    parameters = parameters_of(state, name)
    layers = {
        side: {key.split(".")[2] for key in parameters if key.startswith(f"{side}.layers.")}
        for side in ("encoder", "decoder")
    }
    embeddings = parameters.get("encoder.embed_tokens.weight")
    distinct = {
        value.data_ptr(): value.numel()
        for value in parameters.values()
        if value.dim() > 0 and value.numel() > 1
    }
    width = 0 if embeddings is None else embeddings.shape[-1]
    return NetworkSizes(
        len(layers["encoder"]), len(layers["decoder"]), width, sum(distinct.values())
    )


def take_network(state: dict[str, Any], name: str) -> dict[str, Any]:
    """A plain fairseq checkpoint of one network of a team: it loads without the plugin.

    The selection head is left out, as are the optimiser and the state of training.

    Args:
        state: of a checkpoint of ``coe_transformer``, as `torch.load` returns it.
        name: "delegator" or "expert-J".

    Raises:
        ValueError: not a checkpoint of a team, or no such network in it.
    """
    from translation.plugin.options import complete, delegator_arguments, expert_arguments

    known = network_names(num_experts_of(state))
    if name not in known:
        raise ValueError(f"no network {name!r} in this checkpoint; known: {', '.join(known)}")
    try:
        cfg: Any = complete(argparse.Namespace(**sections(state)["model"]))
        if name == "delegator":
            arguments = delegator_arguments(cfg)
        else:
            arguments = expert_arguments(cfg)[int(name.removeprefix("expert-"))]
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the checkpoint's configuration is damaged: {error!r}") from error
    parameters = {key: value.clone() for key, value in parameters_of(state, name).items()}
    return _plain(state, arguments, parameters)


def plain_network(state: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a plain transformer, such as a control, in the form of `take_network`.

    Args:
        state: as `torch.load` returns it.

    Raises:
        ValueError: another architecture.
    """
    options = sections(state).get("model", {})
    name = str(options.get("_name") or options.get("arch") or "")
    if not name.startswith("transformer"):
        raise ValueError(
            f"not the checkpoint of a plain transformer: its architecture is {name[:60]!r}"
        )
    return _plain(state, argparse.Namespace(**options), state["model"])


def _plain(
    state: dict[str, Any], arguments: argparse.Namespace, parameters: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """A checkpoint of fairseq's own transformer and task, with nothing of training in it."""
    parts = sections(state)
    task = parts.get("task", {})
    options_of_ours = ("router", "threshold", "confidence", "routes")
    config = options_of(state.get("cfg"))
    iterator = (state.get("extra_state") or {}).get("train_iterator", {"epoch": 1})
    return {
        "args": None,
        "cfg": {
            **config,
            "model": _for_every_reader(arguments, task),
            "task": {
                **{key: task[key] for key in task if key not in options_of_ours},
                "_name": "translation",
            },
            "criterion": None,
            "common": {**parts.get("common", {}), "user_dir": None},
        },
        "model": parameters,
        "optimizer_history": list(state.get("optimizer_history") or [])[-1:],
        "extra_state": {"train_iterator": iterator},
        "task_state": {},
    }


def _for_every_reader(arguments: argparse.Namespace, task: Mapping[str, Any]) -> OrderedDict:
    """Options of a network as a dict of which they are also the attributes.

    fairseq reads the entries; CTranslate2's own converter reads attributes, also those of the task. Of all
    classes that have both, this one needs no registration to be loaded with ``weights_only``.
    """
    plain = {key: getattr(value, "value", value) for key, value in vars(arguments).items()}
    options: OrderedDict = OrderedDict({**plain, "_name": "transformer"})
    vars(options).update(plain, arch="transformer", task="translation")
    vars(options).update({key: task.get(key) for key in ("source_lang", "target_lang")})
    return options


_OF_A_TRAINING = (("common", "seed"), ("task", "source_lang"), ("task", "target_lang"))
_PLACE = ("checkpoint", "save_dir")


def of_one_training(
    states: Mapping[str, dict[str, Any]],
) -> tuple[list[dict[str, Any]], str | None]:
    """Checkpoints of one training in its order, those after as many updates once; and what is doubtful.

    Args:
        states: by path, as `torch.load` returns them.

    Raises:
        ValueError: they say that they are of different trainings.
    """
    kept: dict[int, tuple[str, dict[str, Any]]] = {}
    (first, start), *_ = states.items()
    for path, state in states.items():
        for place in _OF_A_TRAINING:
            told = [sections(one).get(place[0], {}).get(place[1]) for one in (start, state)]
            if None not in told and told[0] != told[1]:
                raise ValueError(
                    f"{first} was trained with {place[1]} {told[0]}, {path} with {told[1]}: the mean of two "
                    "trainings is no network; average checkpoints of one"
                )
        other, before = kept.setdefault(num_updates(state), (path, state))
        if before is not state and not _equal(before["model"], state["model"]):
            raise ValueError(
                f"{other} and {path} are both after {num_updates(state)} updates and differ: they are of two "
                "trainings; average checkpoints of one"
            )
    places = {str(sections(one).get(_PLACE[0], {}).get(_PLACE[1])) for one in states.values()}
    doubt = f"the checkpoints were written to {len(places)} folders ({', '.join(sorted(places)[:3])}): the "
    doubt += "mean of two trainings is no network"
    return [kept[updates][1] for updates in sorted(kept)], doubt if len(places) > 1 else None


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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
