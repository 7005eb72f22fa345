"""Which script a text is written in."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable

_LINES = 2000  # looked at
_PART = 0.5  # of the letters
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "BOPOMOFO": "CJK"}  # Japanese mixes them


def main_script(lines: Iterable[str]) -> str | None:
    """Script of most of the letters, by Unicode's names; None where there is none of most.

    Args:
        lines: of one language; the first two thousand are looked at.

    Example:
        >>> main_script(["ein Haus"]), main_script(["\u0434\u043e\u043c"]), main_script(["14:05"])
        ('LATIN', 'CYRILLIC', None)
    """
    counts = Counter(
        script
        for line in itertools.islice(lines, _LINES)
        for letter in line
        if (script := _script(letter))
    )
    if not counts:
        return None
    (script, count), *_ = counts.most_common(1)
    return script if count > _PART * counts.total() else None


@functools.lru_cache(maxsize=65536)
def _script(letter: str) -> str | None:
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "").partition(" ")[0]
    return _TOGETHER.get(name, name) or None
