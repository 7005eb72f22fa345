"""Export a system to CTranslate2: every network a model of its own, and a runner that routes."""

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
from coe_core.stored_points import has_exits
from coe_core.support.exports import provenance_of, write_routing
from coe_core.support.files import whole_folder
from translation.export import runner as ctranslate2_runner
from translation.generation.macs import transformer_macs
from translation.plugin.checkpoints import num_updates
from translation.plugin.subwords import targets_of


class ExportError(CoEError):
    """A system cannot be exported; says which network, and why."""


class Search(NamedTuple):
    """Defaults of the runner's search, as fairseq-generate has them."""

    beam: int = 5
    lenpen: float = 1.0
    max_length: int = 200  # --max-len-b


class Network(NamedTuple):
    """One network: as fairseq built it, and its checkpoint as fairseq's own transformer."""

    model: Any
    state: dict[str, Any]


class System(NamedTuple):
    """What is exported.

    Attributes:
        name: "CoE", "cascade" or "single:NAME".
        networks: by the name of their folder; that which translates first comes first.
        selection: head on the first one's encoder; None: nothing is selected.
        task: fairseq's, with its dictionaries.
        data: folder that these came from.
        confidence: kind of it.
        checkpoint: name of the file.
    """

    name: str
    networks: dict[str, Network]
    selection: torch.nn.Linear | None
    task: Any
    data: str
    confidence: str
    checkpoint: str


def export_system(
    system: System,
    folder: Path,
    *,
    default: Mapping[str, Any],
    points: Mapping[str, OperatingPoint],
    used: Mapping[str, Any],
    int8: bool = False,
    search: Search = Search(),  # noqa: B008
    sentencepiece: Path | None = None,
    check: Callable[[Path], Any] | None = None,
) -> dict[str, int]:
    """Write a system to a folder that needs neither fairseq, nor torch, nor this package.

    ``delegator``, ``expert_0``, ... are plain CTranslate2 models, each of use alone; ``selection`` is the
    delegator's encoder and the selection head; ``routing.json`` and ``runner.py`` put them together. Of a
    cascade there is no selection, of a single network ``network`` in place of all. The folder is there once
    all of it is written and checked, or not at all.

    Args:
        system: to be exported.
        folder: new or empty.
        default: name and threshold that hold if none are asked for, and ``fitted_with`` if known.
        points: stored ones of this system, by name.
        used: what they must have been fitted with.
        int8: weights in 8 bits; the selection stays in float32, so experts are selected as before.
        search: defaults of the runner; translations are as long as the networks allow, at most.
        sentencepiece: model that cuts the text; None: the runner takes text that is cut already.
        check: called with the folder before it takes its place; where it raises, nothing stays.

    Returns:
        Bytes of each part.

    Raises:
        ExportError: a network that CTranslate2 does not take (says why), or a folder in use.
        ValueError: a stored point that was fitted with something else.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not empty; choose another folder with --out")
    what = "threshold" if has_exits(system.name) else "operating point"
    for name, point in points.items():
        remedy = "decode and calibrate again, or give these settings to the export"
        check_fitted_with(f"{what} {name!r}", point.fitted_with, used, remedy)
    routing = _routing(system, search, "int8" if int8 else "float32")
    routing["default"] = {"rough_weight": 0.0, **default}
    routing["operating_points"] = {name: point.to_dict() for name, point in points.items()}
    sizes = {}
    with whole_folder(folder) as part:
        for name, network in system.networks.items():
            _convert(system, name, network, part / name, "int8" if int8 else None)
            sizes[name] = _bytes(part / name)
        if system.selection is not None:
            _write_selection(system, system.selection, part / "selection")
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


def _routing(system: System, search: Search, weights: str) -> dict[str, Any]:
    """What a runner must know beside the networks, see `coe_core.support.routing_file`."""
    models = [network.model for network in system.networks.values()]
    longest = min(model.max_decoder_positions() for model in models)
    first, *rest = ({"file": n, "macs": None, "weights": weights} for n in system.networks)
    spends = [transformer_macs(model)._asdict() for model in models]
    head, dictionary = system.selection, system.task.source_dictionary
    return {
        "task": ctranslate2_runner.TASK,
        "system": system.name,
        "confidence": system.confidence,
        "delegator": first,
        "experts": rest,
        "search": search._replace(max_length=min(search.max_length, longest - 1))._asdict(),
        "end": dictionary.eos_word,
        "max_source_tokens": min(model.max_positions()[0] for model in models),
        "max_target_tokens": longest,
        "selection": None if head is None else "selection",
        "sentencepiece": None,
        "targets": targets_of(dictionary.symbols),
        "spends": {
            "delegator": spends[0],
            "experts": spends[1:],
            "selection": 0 if head is None else head.weight.numel(),
        },
        "provenance": provenance_of(
            system.checkpoint,
            ("torch", "fairseq-fixed", "ctranslate2"),
            updates=num_updates(next(iter(system.networks.values())).state),
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


def _convert(
    system: System, name: str, network: Network, out: Path, quantization: str | None
) -> None:
    """One network by CTranslate2's own converter, from a plain checkpoint."""
    from ctranslate2.converters import FairseqConverter

    config = system.task.cfg
    plain = io.BytesIO()
    torch.save(network.state, plain)
    plain.seek(0)
    try:
        FairseqConverter(
            plain, system.data, source_lang=config.source_lang, target_lang=config.target_lang
        ).convert(str(out), quantization=quantization)
    except ValueError as error:
        raise ExportError(f"CTranslate2 does not take {name}: {error}") from error


def _write_selection(system: System, head: torch.nn.Linear, out: Path) -> None:
    """The delegator's encoder as a model that gives its states, and the head's weights."""
    from ctranslate2.converters import Converter
    from ctranslate2.converters.fairseq import set_transformer_encoder
    from ctranslate2.specs import TransformerEncoderModelSpec, TransformerEncoderSpec

    encoder = next(iter(system.networks.values())).model.encoder
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
    words = system.task.source_dictionary.symbols
    spec.register_vocabulary(["<blank>" if word == "<pad>" else word for word in words])

    class Ready(Converter):
        def _load(self):
            return spec

    Ready().convert(str(out))
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
