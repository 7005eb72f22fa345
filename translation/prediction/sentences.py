"""A text in sentences, by its lines and by the marks that end a sentence; plain rules, no language's own."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?…])([\"'»”“’‘)\]]*)\s+|(?<=[。！？])")
_LAST_WORD = re.compile(r"([^\W\d_]+)\.[\"'»”“’‘)\]]*$|(\d+)\.$")
_WINDOW = 40  # letters before an end, more than any abbreviation has
_SHORT = frozenset(
    "bzw ca dh dr etc evtl fig ggf inkl mlle mme mr mrs ms no nr prof sog st str usw vgl vs".split()  # noqa: SIM905
)


def split_sentences(line: str) -> list[str]:
    """Sentences of a line.

    A dot ends none after a number, one letter or a common abbreviation, nor before a small letter.

    Example:
        >>> split_sentences("Am 3. Mai kam Dr. Weiß. Er ging! „Warum?“ fragte sie.")
        ['Am 3. Mai kam Dr. Weiß.', 'Er ging!', '„Warum?“ fragte sie.']
    """
    sentences, start = [], 0
    for mark in _END.finditer(line):
        end = mark.end()
        if end == len(line) or (mark.start() <= start and not line[start:end].strip()):
            continue
        # The end alone is looked at: the time for a text of anyone grows as its length, no faster.
        if line[end].islower() or _goes_on(line[max(start, end - _WINDOW) : end].strip()):
            continue
        sentences.append(line[start:end].strip())
        start = end
    rest = line[start:].strip()
    return [*sentences, rest] if rest or not sentences else sentences


def _goes_on(before: str) -> bool:
    match = _LAST_WORD.search(before)
    if match is None:
        return False
    word = match[1]
    return word is None or len(word) == 1 or word.lower() in _SHORT
