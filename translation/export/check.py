"""An export beside fairseq: the same sentences, translated by both engines."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sacrebleu.metrics import BLEU

from coe_core.support.exports import Parity
from translation.export.runner import Runner

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


class Translated(NamedTuple):
    """A sentence's text, route and confidence."""

    text: str
    network: str
    confidence: float


def compare(
    by_fairseq: Callable[[Sequence[list[str]]], list[Translated]],
    folder: Path,
    sources: Sequence[list[str]],
    reference: Sequence[str],
    threshold: float | None,
) -> Comparison:
    """Translate sentences by fairseq and by the export, and say how often they agree.

    Args:
        by_fairseq: translates some sentences in pieces, as one batch.
        folder: of the export.
        sources: pieces of each sentence.
        reference: its translation.
        threshold: of both; None: nothing can end early.
    """
    runner = Runner(folder)
    theirs: list[Translated] = [Translated("", "empty", float("nan"))] * len(sources)
    started = time.process_time()
    spoken = [row for row, source in enumerate(sources) if source]
    by_length = sorted(spoken, key=lambda row: len(sources[row]))  # as CTranslate2 cuts batches
    for start in range(0, len(by_length), runner.batch_size):
        rows = by_length[start : start + runner.batch_size]
        answers = by_fairseq([sources[row] for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            theirs[row] = answer
    middle = time.process_time()
    ours = [
        Translated(answer.text, answer.network, answer.confidence)
        for answer in runner.decode(sources, threshold=threshold)
    ]
    spent = middle - started, time.process_time() - middle
    engines = [
        Engine(
            name,
            BLEU().corpus_score([entry.text for entry in entries], [reference]).score,
            1000 * seconds / max(1, len(sources)),
        )
        for name, entries, seconds in zip(("fairseq", "export"), (theirs, ours), spent, strict=True)
    ]
    differences = [abs(a.confidence - b.confidence) for a, b in zip(theirs, ours, strict=True)]
    known = [difference for difference in differences if not math.isnan(difference)]
    return Comparison(
        _parity(theirs, ours, threshold, max(known, default=0.0)),
        statistics.median(known) if known else 0.0,
        engines,
    )


def _parity(
    theirs: Sequence[Translated],
    ours: Sequence[Translated],
    threshold: float | None,
    difference: float,
) -> Parity:
    pairs = list(zip(theirs, ours, strict=True))
    same = [their.network == our.network for their, our in pairs]
    ties = [abs(entry.confidence - threshold) <= TIE for entry in theirs if threshold is not None]
    return Parity(
        "export",
        len(theirs),
        sum(same),
        sum(ties),
        sum(their.text == our.text and their.network == our.network for their, our in pairs),
        difference,
        float("inf"),
    )
