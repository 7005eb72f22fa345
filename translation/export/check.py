"""An export beside fairseq: the same sentences, translated by both engines."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sacrebleu.metrics import BLEU

from coe_core.support.exports import Parity
from translation.export import runner as ctranslate2_runner
from translation.export.export import LoadedTeam, Search
from translation.generation.routers import certainty

TIE = 1e-4  # confidences this near to the threshold may fall on either side of it


class Engine(NamedTuple):
    """What one engine made of the sentences that both translated."""

    name: str
    bleu: float
    milliseconds: float  # of processor time a sentence, all threads together


class Comparison(NamedTuple):
    """How an export agrees with fairseq. A beam may find another translation that is as likely."""

    parity: Parity  # of routes, texts and confidences
    median_difference: float  # of confidences
    engines: list[Engine]  # fairseq, export


class _Translated(NamedTuple):
    """A sentence's pieces, route and confidence."""

    pieces: str
    network: str
    confidence: float


def check_against_fairseq(
    team: LoadedTeam, folder: Path, subset: str, count: int, threshold: float
) -> Comparison:
    """Translate some sentences by fairseq and by the export, and say how often they agree.

    Args:
        team: that was exported.
        folder: of the export.
        subset: of the data, such as "valid".
        count: sentences, the first of the set.
        threshold: of both.
    """
    runner = ctranslate2_runner.Runner(folder)
    task, confidence = team.task, runner.routing["confidence"]
    # Where none may exit the delegator would not translate, and could not be compared.
    threshold = min(threshold, certainty(confidence))
    task.load_dataset(subset)
    dataset, dictionary = task.dataset(subset), task.target_dictionary
    rows = list(range(min(count, len(dataset))))
    started = time.process_time()
    theirs = _by_fairseq(team, runner, dataset, rows, threshold)
    middle = time.process_time()
    sources = [task.source_dictionary.string(dataset[row]["source"]).split() for row in rows]
    started_export = time.process_time()
    ours = runner.decode(sources, threshold=threshold)
    spent = middle - started, time.process_time() - started_export

    def text(pieces: str) -> str:
        return runner.pieces.decode(pieces.split()) if runner.pieces else pieces

    reference = [text(dictionary.string(dataset[row]["target"])) for row in rows]
    texts = [text(entry.pieces) for entry in theirs], [entry.text for entry in ours]
    return Comparison(
        _parity(theirs, ours, texts, threshold),
        float(np.median(_differences(theirs, ours))),
        [
            Engine(
                name, BLEU().corpus_score(of_engine, [reference]).score, 1000 * seconds / len(rows)
            )
            for name, of_engine, seconds in zip(("fairseq", "export"), texts, spent, strict=True)
        ],
    )


def _by_fairseq(
    team: LoadedTeam, runner, dataset, rows: Sequence[int], threshold: float
) -> list[_Translated]:
    """fairseq's translations in the order of the rows; the task's settings are put back afterwards."""
    task, search = team.task, Search(**runner.routing["search"])
    kept = task.threshold, task.confidence, task.cfg.router
    task.threshold, task.confidence = threshold, runner.routing["confidence"]
    task.cfg.router = "learned"
    options = argparse.Namespace(
        beam=search.beam, lenpen=search.lenpen, max_len_b=search.max_length
    )
    translated: dict[int, _Translated] = {}
    try:
        generator = task.build_generator([team.model], options)
        by_length = sorted(rows, key=dataset.src.sizes.__getitem__)  # as CTranslate2 cuts batches
        for start in range(0, len(rows), runner.batch_size):
            batch = dataset.collater(
                [dataset[row] for row in by_length[start : start + runner.batch_size]]
            )
            with torch.no_grad():
                answers = generator.generate([team.model], batch)
            routed = zip(batch["id"].tolist(), answers, generator.routes, strict=True)
            for row, best, route in routed:
                pieces = task.target_dictionary.string(best[0]["tokens"])
                translated[row] = _Translated(pieces, *route)
    finally:
        task.threshold, task.confidence, task.cfg.router = kept
    return [translated[row] for row in rows]


def _differences(theirs: Sequence[_Translated], ours: Sequence) -> np.ndarray:
    pairs = zip(theirs, ours, strict=True)
    return np.array([abs(their.confidence - our.confidence) for their, our in pairs])


def _parity(
    theirs: Sequence[_Translated], ours: Sequence, texts: tuple, threshold: float
) -> Parity:
    same = [their.network == our.network for their, our in zip(theirs, ours, strict=True)]
    alike = [first == second for first, second in zip(*texts, strict=True)]
    return Parity(
        "export",
        len(theirs),
        sum(same),
        sum(abs(entry.confidence - threshold) <= TIE for entry in theirs),
        sum(both and route for both, route in zip(alike, same, strict=True)),
        float(_differences(theirs, ours).max()),
        float("inf"),
    )
