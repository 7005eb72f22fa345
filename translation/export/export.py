"""Export a team to CTranslate2: every network a model of its own, routing, and a runner that routes."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from coe_core import CoEError, OperatingPoint, check_fitted_with
from coe_core.support.exports import provenance_of, write_routing
from coe_core.support.files import sha256_of, whole_folder
from translation.export import runner as ctranslate2_runner
from translation.generation.macs import transformer_macs
from translation.plugin.checkpoints import load_state, network_names, num_updates, take_network
from translation.plugin.model import CoETransformerModel
from translation.plugin.subwords import targets_of


class ExportError(CoEError):
    """A team cannot be exported; says which network, and why."""


class Search(NamedTuple):
    """Defaults of the runner's search, as fairseq-generate has them."""

    beam: int = 5
    lenpen: float = 1.0
    max_length: int = 200  # --max-len-b


class LoadedTeam(NamedTuple):
    """A loaded team with what belongs to it."""

    model: CoETransformerModel
    task: Any
    state: dict[str, Any]  # of its checkpoint


def load_team(path: str, data: str) -> LoadedTeam:
    """A team's checkpoint with the dictionaries of a folder that fairseq-preprocess made.

    Raises:
        ValueError: not a team's checkpoint, or dictionaries that do not match it.
    """
    from fairseq import checkpoint_utils

    state = load_state(path)
    take_network(state, "delegator")  # says what is wrong with another checkpoint
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [path], arg_overrides={"data": data}
    )
    return LoadedTeam(models[0].eval(), task, state)


def export_team(
    team: LoadedTeam,
    data: str,
    folder: Path,
    *,
    int8: bool = False,
    search: Search = Search(),  # noqa: B008
    points: Mapping[str, OperatingPoint] | None = None,
    at: str | None = None,
    sentencepiece: Path | None = None,
    checkpoint: str = "",
    check: Callable[[Path], Any] | None = None,
) -> dict[str, int]:
    """Write a team to a folder that needs neither fairseq, nor torch, nor this package.

    ``delegator``, ``expert_0``, ... are plain CTranslate2 models, each of use alone; ``selection`` is the
    delegator's encoder and the selection head; ``routing.json`` and ``runner.py`` put them together. The
    folder is there once all of it is written and checked, or not at all.

    Args:
        team: of `load_team`.
        data: folder of the dictionaries.
        folder: new or empty.
        int8: weights in 8 bits; the selection stays in float32, so experts are selected as before.
        search: defaults of the runner; translations are as long as the networks allow, at most.
        points: stored thresholds, by name. What they were fitted with must be this team and search; the
            confidence is theirs.
        at: name of the one that holds if none is named; None: no sentence ends early.
        sentencepiece: model that cuts the text; None: the runner takes text that is cut already.
        checkpoint: file that the team came from.
        check: called with the folder before it takes its place; where it raises, nothing stays.

    Returns:
        Bytes of each network.

    Raises:
        ExportError: a network that CTranslate2 does not take (says why), or a folder in use.
        ValueError: a threshold that is not stored, or that was fitted with something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not empty; choose another folder with --out")
    weights = "int8" if int8 else "float32"
    routing = _routing(team, points or {}, at, search, weights, checkpoint)
    sizes = {}
    with whole_folder(folder) as part:
        for name in network_names(team.model.num_experts):
            out = part / name.replace("-", "_")
            _convert(team, name, data, out, "int8" if int8 else None)
            sizes[name] = _bytes(out)
        _write_selection(team, part / "selection")
        sizes["selection"] = _bytes(part / "selection")
        if sentencepiece is not None:
            shutil.copyfile(sentencepiece, part / "sentencepiece.model")
            routing["sentencepiece"] = "sentencepiece.model"
        write_routing(part, routing, ctranslate2_runner)
        if check is not None:
            check(part)
    return sizes


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _routing(
    team: LoadedTeam,
    points: Mapping[str, OperatingPoint],
    at: str | None,
    search: Search,
    weights: str,
    checkpoint: str,
) -> dict[str, Any]:
    """What a runner must know beside the networks, see `coe_core.support.routing_file`."""
    if at is not None and at not in points:
        known = ", ".join(points) or "none: give --points"
        raise ValueError(f"no threshold named {at!r}; known: {known}")
    config = team.task.cfg
    digest = {"checkpoint": sha256_of(checkpoint)} if Path(checkpoint).is_file() else {}
    used = {
        **{"beam": search.beam, "lenpen": search.lenpen, "router": "learned", **digest},
        "direction": f"{config.source_lang}-{config.target_lang}",
        "confidence": confidence_of(points, team.task.confidence),
    }
    for name, point in points.items():
        remedy = "decode and calibrate again, or give these settings to the export"
        check_fitted_with(f"threshold {name!r}", point.fitted_with, used, remedy)
    default: dict[str, Any] = {"name": None, "threshold": math.inf, "rough_weight": 0.0}
    if at is not None:
        kept = ("name", "threshold", "rough_weight", "fitted_with")
        default = {name: getattr(points[at], name) for name in kept}
    longest = team.model.max_decoder_positions()
    return {
        "task": ctranslate2_runner.TASK,
        "confidence": used["confidence"],
        "delegator": {"file": "delegator", "macs": None, "weights": weights},
        "experts": [
            {"file": f"expert_{j}", "macs": None, "weights": weights}
            for j in range(team.model.num_experts)
        ],
        "default": default,
        "operating_points": {name: point.to_dict() for name, point in points.items()},
        "search": search._replace(max_length=min(search.max_length, longest - 1))._asdict(),
        "end": team.task.source_dictionary.eos_word,
        "max_source_tokens": team.model.max_positions()[0],
        "max_target_tokens": longest,
        "selection": "selection",
        "sentencepiece": None,
        "targets": targets_of(team.task.source_dictionary.symbols),
        "spends": {
            "delegator": transformer_macs(team.model.delegator)._asdict(),
            "experts": [transformer_macs(expert)._asdict() for expert in team.model.experts],
            "selection": team.model.selection.linear.weight.numel(),
        },
        "provenance": provenance_of(
            Path(checkpoint).name,
            ("torch", "fairseq-fixed", "ctranslate2"),
            updates=num_updates(team.state),
        ),
    }


def confidence_of(points: Mapping[str, OperatingPoint], otherwise: str) -> str:
    """The kind of confidence that thresholds are of: as they say, or by their range.

    Raises:
        ValueError: thresholds of both kinds.
    """
    kinds = {}
    for name, point in points.items():
        if kind := point.fitted_with.get("confidence"):
            if not isinstance(kind, str):
                raise ValueError(
                    f"threshold {name!r} is of the confidence {kind!r}, which is no name"
                )
            kinds[kind] = name
        elif -math.inf < point.threshold < 0:  # a probability has none below 0
            kinds["log_probability"] = name
    if len(kinds) > 1:
        said = ", ".join(f"{name!r} of {kind}" for kind, name in sorted(kinds.items()))
        raise ValueError(f"thresholds of one export are of one kind of confidence, got {said}")
    return next(iter(kinds), otherwise)


def _convert(team: LoadedTeam, name: str, data: str, out: Path, quantization: str | None) -> None:
    """One network by CTranslate2's own converter, from what `coe-translation take` writes."""
    from ctranslate2.converters import FairseqConverter

    config = team.task.cfg
    plain = io.BytesIO()
    torch.save(take_network(team.state, name), plain)
    plain.seek(0)
    try:
        FairseqConverter(
            plain, data, source_lang=config.source_lang, target_lang=config.target_lang
        ).convert(str(out), quantization=quantization)
    except ValueError as error:
        raise ExportError(f"CTranslate2 does not take {name}: {error}") from error


def _write_selection(team: LoadedTeam, out: Path) -> None:
    """The delegator's encoder as a model that gives its states, and the head's weights."""
    from ctranslate2.converters import Converter
    from ctranslate2.converters.fairseq import set_transformer_encoder
    from ctranslate2.specs import TransformerEncoderModelSpec, TransformerEncoderSpec

    encoder = team.model.delegator.encoder
    options = encoder.cfg
    spec = TransformerEncoderModelSpec(
        TransformerEncoderSpec(
            len(encoder.layers),
            options.encoder.attention_heads,
            pre_norm=options.encoder.normalize_before,
            activation=_activation(options.activation_fn),
            layernorm_embedding=options.layernorm_embedding,
        )
    )
    with torch.no_grad():
        set_transformer_encoder(spec.encoder, encoder)
    words = team.task.source_dictionary.symbols
    spec.register_vocabulary(["<blank>" if word == "<pad>" else word for word in words])

    class Ready(Converter):
        def _load(self):
            return spec

    Ready().convert(str(out))
    head = team.model.selection.linear
    np.savez(out / "head.npz", weight=_array(head.weight), bias=_array(head.bias))


def _activation(name: str) -> Any:
    from ctranslate2.specs.common_spec import Activation

    known = {
        "relu": Activation.RELU,
        "gelu": Activation.GELU,
        "gelu_accurate": Activation.GELUTanh,
        "gelu_fast": Activation.GELUTanh,
        "swish": Activation.SWISH,
    }
    return known[str(name)]  # others were refused when the delegator was converted


def _array(value: torch.Tensor) -> np.ndarray:
    return value.detach().float().numpy()
