"""Parallel text, checked before anything is made of it: one sentence a line, UTF-8, as many on both sides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from translation.corpora.lines import read_lines, read_plain_lines

_PRINTED = re.compile(r"([STHDPAR])-([0-9]+)\t")
_LONGEST_NUMBER = 12  # digits of a sentence's number


class ParallelText(NamedTuple):
    """What a check of parallel text found."""

    num_lines: int
    num_empty: dict[str, int]  # by file
    longest: dict[str, int]  # words, by file


def read_parallel(
    paths: Sequence[str | Path], read: Callable[[str | Path], list[str]] = read_plain_lines
) -> list[list[str]]:
    """Texts that belong together line by line.

    Args:
        paths: of the texts.
        read: how one is read.

    Raises:
        ValueError: as ``read``, and texts of different lengths.
    """
    texts = [read(path) for path in paths]
    for path, text in zip(paths[1:], texts[1:], strict=True):
        if len(text) != len(texts[0]):
            raise ValueError(
                f"line counts differ: {paths[0]} has {len(texts[0])} lines, {path} has {len(text)}; "
                "line i of one must translate line i of the other"
            )
    return texts


def check_parallel(paths: Sequence[str | Path]) -> ParallelText:
    """Check texts before fairseq-preprocess, which does not; and count what may surprise.

    Raises:
        ValueError: as `read_parallel`, and texts without a word.
    """
    texts = read_parallel(paths)
    words = {
        str(path): [len(line.split()) for line in text]
        for path, text in zip(paths, texts, strict=True)
    }
    for path, counts in words.items():
        if not any(counts):
            raise ValueError(f"{path}: all {len(counts)} lines are empty")
    return ParallelText(
        len(texts[0]),
        {path: counts.count(0) for path, counts in words.items()},
        {path: max(counts) for path, counts in words.items()},
    )


def hypotheses_of(path: str | Path) -> list[str]:
    """Best translation of every sentence, in order, from what fairseq-generate or -interactive printed.

    The D- lines (detokenised); of several for a sentence (--nbest) the first. A file without any line of
    fairseq's is taken as plain text, one translation a line.

    Args:
        path: of the file; also packed by gzip, or ``-`` for standard input.

    Raises:
        ValueError: as `read_lines`, and sentences that are missing from the output.
    """
    return hypotheses_in(read_lines(path), str(path))


def hypotheses_in(lines: Sequence[str], name: str) -> list[str]:
    """As `hypotheses_of`, of lines that were read already.

    Example:
        >>> hypotheses_in(["S-1\\tb", "D-1\\t-0.5\\tB", "D-0\\t-0.1\\tA"], "output")
        ['A', 'B']
    """
    by_sentence: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        kind = _PRINTED.match(line)
        if kind is None or kind[1] != "D":
            continue
        fields = line.split("\t", 2)
        if len(fields) < 3 or len(kind[2]) > _LONGEST_NUMBER:
            raise ValueError(f"{name}:{number}: not a D- line of fairseq's: {line[:60]!r}")
        by_sentence.setdefault(int(kind[2]), fields[2])
    if not by_sentence:
        if any(map(_PRINTED.match, lines)):
            raise ValueError(
                f"{name}: lines of fairseq-generate, but none with D-, which has the translation; "
                "was it cut, or filtered?"
            )
        return list(lines)
    last = max(by_sentence)
    missing = last + 1 - len(by_sentence)
    if missing:
        first = next(number for number in itertools.count() if number not in by_sentence)
        raise ValueError(
            f"{name}: {missing} of {last + 1} sentences have no D- line, the first is {first}; was the "
            "generation cut short, or were long sentences skipped?"
        )
    return [by_sentence[number] for number in range(last + 1)]
