"""Languages that are written without spaces between words, of which BLEU's usual tokenizer knows nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

# Script -> code points, and the tokenizer of sacreBLEU that cuts it into words.
_UNSPACED = {
    "kana": (((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)), "ja-mecab"),
    "Chinese": (
        ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
        "zh",
    ),
    "Thai": (((0x0E01, 0x0E7F),), "flores200"),
    "Lao": (((0x0E81, 0x0EFF),), "flores200"),
    "Tibetan": (((0x0F00, 0x0FFF),), "flores200"),
    "Burmese": (((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)), "flores200"),
    "Khmer": (((0x1780, 0x17FF), (0x19E0, 0x19FF)), "flores200"),
    "Javanese": (((0xA980, 0xA9DF),), "flores200"),
}
_BY_SPACES = (None, "13a", "none", "intl")  # tokenizers that cut at spaces and punctuation
_LINES = 2000  # looked at
_PART = 0.3  # of the letters


def spaces_warning(lines: Sequence[str], tokenize: str | None) -> str | None:
    """A line about BLEU where a text has no spaces between words and the tokenizer goes by them; else None.

    Args:
        lines: of a reference.
        tokenize: by sacreBLEU's names; None is 13a.

    Example:
        >>> spaces_warning(["一个人在公园里骑自行车。"], None)
        "the reference is written without spaces between words (Chinese), ... give --tokenize zh (...)"
        >>> spaces_warning(["一个人在公园里骑自行车。"], "zh"), spaces_warning(["a man"], None)
        (None, None)
    """
    if tokenize not in _BY_SPACES:
        return None
    counts = Counter(
        _script(letter)
        for line in itertools.islice(lines, _LINES)
        for letter in line
        if not letter.isspace()
    )
    letters = sum(counts.values())
    unspaced = {name: count for name, count in counts.items() if name is not None}
    if not letters or sum(unspaced.values()) <= _PART * letters:
        return None
    name = max(unspaced, key=lambda script: unspaced[script])
    if unspaced.get("kana", 0) > 0.05 * letters:  # Japanese has Chinese letters too
        name = "kana"
    advice = _UNSPACED[name][1]
    shown = "Japanese" if name == "kana" else name
    return (
        f"the reference is written without spaces between words ({shown}), and BLEU's tokenizer "
        f"{tokenize or '13a'} makes one word of a whole clause: give --tokenize {advice} (or char; chrF does "
        "without)"
    )


def _script(letter: str) -> str | None:
    code = ord(letter)
    if code < 0x0E00:
        return None
    for name, (ranges, _) in _UNSPACED.items():
        if any(low <= code <= high for low, high in ranges):
            return name
    return None
