"""Export a team to CTranslate2: every network a model of its own, routing, and a runner that routes."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sacrebleu.metrics import BLEU

from coe_core import CoEError
from translation.export import runner as ctranslate2_runner
from translation.generation.routers import certainty
from translation.plugin.checkpoints import load_state, network_names, take_network
from translation.plugin.model import CoETransformerModel

FORMAT = 1  # of routing.json


class ExportError(CoEError):
    """A team cannot be exported; says which network, and why."""


class Search(NamedTuple):
    """Defaults of the runner's search, as fairseq-generate has them."""

    beam: int = 5
    lenpen: float = 1.0
    max_length: int = 200  # --max-len-b


class Team(NamedTuple):
    """A loaded team with what belongs to it."""

    model: CoETransformerModel
    task: Any
    state: dict[str, Any]  # of its checkpoint


def load_team(path: str, data: str) -> Team:
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
    return Team(models[0].eval(), task, state)


def export_team(
    team: Team,
    data: str,
    folder: Path,
    *,
    int8: bool = False,
    search: Search = Search(),  # noqa: B008
    thresholds: dict[str, float] | None = None,
    default: float = float("inf"),
    sentencepiece: Path | None = None,
    checkpoint: str = "",
) -> dict[str, int]:
    """Write a team to a folder that needs neither fairseq, nor torch, nor this package.

    ``delegator``, ``expert_0``, ... are plain CTranslate2 models, each of use alone; ``selection`` is the
    delegator's encoder and the selection head; ``routing.json`` and ``runner.py`` put them together.

    Args:
        team: of `load_team`.
        data: folder of the dictionaries.
        folder: new or empty.
        int8: weights in 8 bits; the selection stays in float32, so experts are selected as before.
        search: defaults of the runner.
        thresholds: stored ones, by name.
        default: threshold if none is named.
        sentencepiece: model that cuts the text; None: the runner takes text that is cut already.
        checkpoint: where the team came from, for the provenance.

    Returns:
        Bytes of each network.

    Raises:
        ExportError: a network that CTranslate2 does not take (says why), or a folder in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} exists and is not empty; choose another folder with --out")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    names = network_names(team.model.num_experts)
    sizes = {}
    for name in names:
        out = part / name.replace("-", "_")
        _convert(team, name, data, out, "int8" if int8 else None)
        sizes[name] = sum(file.stat().st_size for file in out.iterdir())
    _write_selection(team, part / "selection")
    sizes["selection"] = sum(file.stat().st_size for file in (part / "selection").iterdir())
    if sentencepiece is not None:
        shutil.copy(sentencepiece, part / "sentencepiece.model")
    routing = {
        "format": FORMAT,
        "num_experts": team.model.num_experts,
        "confidence": team.task.confidence,
        "thresholds": thresholds or {},
        "default": default,
        "search": search._asdict(),
        "end": team.task.source_dictionary.eos_word,
        "max_source_tokens": team.model.max_positions()[0],
        "sentencepiece": None if sentencepiece is None else "sentencepiece.model",
        "weights": "int8" if int8 else "float32",
        "provenance": {
            "checkpoint": checkpoint,
            "updates": team.state["optimizer_history"][-1]["num_updates"],
            "date": date.today().isoformat(),
        },
    }
    (part / "routing.json").write_text(
        json.dumps(_plain(routing), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    shutil.copy(ctranslate2_runner.__file__, part / "runner.py")
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return sizes


def _plain(value: Any) -> Any:
    """Infinite thresholds as words: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return str(value) if value in (float("inf"), float("-inf")) else value


def _convert(team: Team, name: str, data: str, out: Path, quantization: str | None) -> None:
    """One network by CTranslate2's own converter, which reads checkpoints of the older kind."""
    from ctranslate2.converters import FairseqConverter

    state = take_network(team.state, name)
    config = team.task.cfg
    arguments = argparse.Namespace(**state["cfg"]["model"])
    arguments.arch, arguments.task = "transformer", "translation"
    arguments.source_lang, arguments.target_lang = config.source_lang, config.target_lang
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plain.pt"
        torch.save({"args": arguments, "model": state["model"]}, path)
        try:
            FairseqConverter(
                str(path), data, source_lang=config.source_lang, target_lang=config.target_lang
            ).convert(str(out), quantization=quantization)
        except ValueError as error:
            raise ExportError(f"CTranslate2 does not take {name}: {error}") from error


def _write_selection(team: Team, out: Path) -> None:
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


class Engine(NamedTuple):
    """What one engine made of the sentences that both translated."""

    name: str
    bleu: float
    milliseconds: float  # of processor time a sentence, all threads together


class Parity(NamedTuple):
    """How an export agrees with fairseq on the same sentences."""

    sentences: int
    same_text: float  # part of the sentences
    same_route: float
    confidence: float  # median difference
    engines: tuple[Engine, Engine]  # fairseq, export


def compare(team: Team, folder: Path, subset: str, limit: int, threshold: float) -> Parity:
    """Translate some sentences by fairseq and by the export, and say how often they agree.

    Args:
        team: that was exported.
        folder: of the export.
        subset: of the data, such as "valid".
        limit: sentences, the first of the set.
        threshold: of both.
    """
    runner = ctranslate2_runner.Runner(folder)
    search = Search(**runner.routing["search"])
    task, dictionary = team.task, team.task.target_dictionary
    # Where none may exit the delegator would not translate, and could not be compared.
    threshold = min(threshold, certainty(task.confidence))
    task.threshold, task.cfg.router = threshold, "learned"
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    options = argparse.Namespace(
        beam=search.beam, lenpen=search.lenpen, max_len_b=search.max_length
    )
    generator = task.build_generator([team.model], options)
    rows = list(range(min(limit, len(dataset))))
    by_length = sorted(rows, key=dataset.src.sizes.__getitem__)  # as CTranslate2 cuts its batches
    started, theirs = time.process_time(), {}
    for start in range(0, len(rows), runner.batch_size):
        batch = dataset.collater(
            [dataset[row] for row in by_length[start : start + runner.batch_size]]
        )
        with torch.no_grad():
            found = generator.generate([team.model], batch)
        for row, best, route in zip(batch["id"].tolist(), found, generator.routes, strict=True):
            theirs[row] = (dictionary.string(best[0]["tokens"]), *route)
    middle = time.process_time()
    sources = [task.source_dictionary.string(dataset[row]["source"]).split() for row in rows]
    started_export = time.process_time()
    exported = runner.decode(sources, threshold=threshold)
    ended = time.process_time()

    def text(pieces: str) -> str:
        return runner.pieces.decode(pieces.split()) if runner.pieces else pieces

    reference = [text(dictionary.string(dataset[row]["target"])) for row in rows]
    texts = [text(theirs[row][0]) for row in rows], [one.text for one in exported]
    pairs = [(theirs[row], one) for row, one in zip(rows, exported, strict=True)]
    spent = middle - started, ended - started_export
    engines = (
        Engine(
            name,
            BLEU().corpus_score(of_engine, [reference]).score,
            1000 * seconds / len(rows),
        )
        for name, of_engine, seconds in zip(("fairseq", "export"), texts, spent, strict=True)
    )
    return Parity(
        len(rows),
        sum(one == other for one, other in zip(*texts, strict=True)) / len(rows),
        sum(route == one.network for (_, route, _), one in pairs) / len(rows),
        sorted(abs(sure - one.confidence) for (_, _, sure), one in pairs)[len(rows) // 2],
        tuple(engines),
    )
