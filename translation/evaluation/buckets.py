"""Scores by length and by rarity: where a system is good, and where another is better. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from translation.evaluation.scoring import Scoring, score

LENGTHS = (10, 20, 30, 40)  # words; where the next bucket begins
RARITIES = (1, 2, 10, 100, 1000)  # occurrences


class Bucket(NamedTuple):
    """Sentences that are alike, and how well each system translates them."""

    title: str
    sentences: list[int]
    scores: dict[str, dict[str, float]]  # system -> metric -> score


def by_length(references: Sequence[str]) -> dict[str, list[int]]:
    """Sentences by the words of their reference.

    Example:
        >>> by_length(["a b", "a " * 15])
        {'under 10 words': [0], '10 to 19 words': [1]}
    """
    return _grouped([len(line.split()) for line in references], LENGTHS, "words")


def by_rarity(references: Sequence[str], known: Iterable[str]) -> dict[str, list[int]]:
    """Sentences by how often the rarest word of their reference occurs in a text, case aside.

    Args:
        references: one for each sentence.
        known: lines of that text, usually the training text of the target language.

    Example:
        >>> by_rarity(["a cat", "a dog"], ["A cat", "a cat"])
        {'rarest word under 1 times': [1], 'rarest word 2 to 9 times': [0]}
    """
    counts = Counter(word for line in known for word in line.casefold().split())
    rarest = [
        min((counts[word] for word in line.casefold().split()), default=0) for line in references
    ]
    grouped = _grouped(rarest, RARITIES, "times")
    return {f"rarest word {title}": rows for title, rows in grouped.items()}


def _grouped(values: Sequence[int], begins: Sequence[int], unit: str) -> dict[str, list[int]]:
    edges = [0, *begins]
    groups: dict[str, list[int]] = {}
    for low, high in zip(edges, [*begins, None], strict=True):
        rows = [i for i, v in enumerate(values) if v >= low and (high is None or v < high)]
        title = f"{low} or more {unit}"
        if high is not None:
            title = f"{low} to {high - 1} {unit}" if low else f"under {high} {unit}"
        if high == low + 1 and low:
            title = f"{low} {unit}"
        if rows:
            groups[title] = rows
    return groups


def scored(
    groups: Mapping[str, Sequence[int]],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    scoring: Scoring | None = None,
) -> list[Bucket]:
    """Corpus scores of every system on the sentences of every group.

    Args:
        groups: title -> sentences, see `by_length`.
        systems: translations by name.
        references: one or several reference texts.
        metrics: as in `translation.evaluation.scoring.score`.
        scoring: default: sacreBLEU's.
    """
    buckets = []
    for title, rows in groups.items():
        of_rows = [[text[i] for i in rows] for text in references]
        scores = {
            name: {
                of_metric.metric: of_metric.value
                for of_metric in score([text[i] for i in rows], of_rows, metrics, scoring)
            }
            for name, text in systems.items()
        }
        buckets.append(Bucket(title, list(rows), scores))
    return buckets


class Change(NamedTuple):
    """One sentence, and how much better the second system translates it."""

    sentence: int  # from 0
    difference: float  # second minus first
    first: float
    second: float


def largest_changes(first: Sequence[float], second: Sequence[float], count: int) -> list[Change]:
    """Sentences whose scores differ most, the largest differences first; equal ones are left out.

    Args:
        first: score of each sentence by one system.
        second: by another.
        count: at most so many.

    Example:
        >>> largest_changes([10, 50, 90], [12, 20, 90], count=2)
        [Change(sentence=1, difference=-30, first=50, second=20), Change(sentence=0, difference=2, ...)]
    """
    changes = [Change(i, b - a, a, b) for i, (a, b) in enumerate(zip(first, second, strict=True))]
    changed = [change for change in changes if change.difference]
    return sorted(changed, key=lambda change: -abs(change.difference))[:count]
