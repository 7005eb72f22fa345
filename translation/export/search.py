"""CTranslate2's beam search as an export's runner uses it; a part of every runner.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ctranslate2


class Found(NamedTuple):
    """What a search found of a sentence."""

    hypotheses: list[list[str]]  # pieces, best first
    mean: float  # log-probability of the best one's pieces and end; NaN: to be scored


def search(
    network: ctranslate2.Translator,
    sentences: Sequence[list[str]],
    batch_size: int,
    *,
    beam: int,
    lenpen: float,
    max_length: int,
    nbest: int,
    scored: bool,
) -> list[Found]:
    """Hypotheses of each sentence, and how likely the best one is.

    CTranslate2 scores by the probabilities of what a search may write. One that must not end in first place
    writes by others than the network's, and would have to be scored in a pass of its own. So where scores
    are wanted it may end there, and the few sentences of which an answer is empty are searched again.

    Args:
        network: that translates.
        sentences: pieces of each.
        batch_size: sentences at a time.
        beam: hypotheses kept.
        lenpen: exponent of the length by which log-probabilities are divided.
        max_length: pieces of a translation, at most.
        nbest: hypotheses to return.
        scored: whether to say how likely.
    """
    found: dict[int, Found] = {}
    for least in (0, 1) if scored else (1,):  # pieces
        rows = [row for row in range(len(sentences)) if row not in found]
        if not rows:
            break
        answers = network.translate_batch(
            [sentences[row] for row in rows],
            max_batch_size=batch_size,
            beam_size=beam,
            length_penalty=lenpen,
            min_decoding_length=least,
            max_decoding_length=max_length,
            max_input_length=0,
            num_hypotheses=nbest,
            return_scores=scored,
        )
        for row, answer in zip(rows, answers, strict=True):
            ranked, tokens = answer.hypotheses, len(answer.hypotheses[0]) + 1
            if least or all(ranked):
                is_known = not least and tokens <= max_length  # one that is cut has no end
                mean = answer.scores[0] * tokens ** (lenpen - 1) if is_known else math.nan
                found[row] = Found(ranked, mean)
    return [found[row] for row in range(len(sentences))]


def names_of(system: str, num_experts: int) -> list[str]:
    """Names of an export's networks, in the order in which they run.

    Example:
        >>> names_of("CoE", 2), names_of("cascade", 1), names_of("single:large", 0)
        (['delegator', 'expert-0', 'expert-1'], ['delegator', 'cascade'], ['large'])
    """
    if num_experts == 0:
        return [system.partition(":")[2]]
    if system == "cascade":
        return ["delegator", "cascade"]
    return ["delegator", *(f"expert-{j}" for j in range(num_experts))]


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless a number is in [low, high]."""
    if not low <= value <= high:
        bound = f"at least {low}" if value < low else f"at most {high}"
        raise ValueError(f"{name} must be {bound}, got {value}")
