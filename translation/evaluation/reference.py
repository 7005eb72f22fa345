"""Whether a reference is the text that the target of a data set was made of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

_PIECE, _BPE_PIECE = "\u2581", "@@ "
_UNKNOWN = re.compile(r"<?<unk>>?")
_ALIKE = 0.5  # of the letters of two spellings of one sentence, at least so many are the same
_OFTEN = 0.1  # part of the lines; so many lines of which only the spelling differs are another text
_SHOWN = 60


def check_reference(
    reference: Sequence[str], target: Sequence[str], source: Sequence[str], subset: str
) -> str | None:
    """Compare a reference with the target of the data set, after its pieces were put together.

    Letters and digits count, not case, spaces and punctuation: the data may have been normalised, tokenised
    or written in lower case. Unknown words of the target match anything.

    Args:
        reference: one line for each sentence.
        target: what the data set has for them.
        source: of the same sentences, to tell a likely mistake.
        subset: name of the data set.

    Returns:
        A line about lines that differ a little, if there are some.

    Raises:
        ValueError: the reference is of other sentences, or in other pieces (says the first line, and why).

    Example:
        >>> check_reference(["A house."], ["a house ."], ["Ein Haus."], "test")
        >>> check_reference(["Two houses"], ["▁a ▁tree"], ["▁ein ▁Baum"], "test")
        Traceback (most recent call last):
        ...
        ValueError: the reference does not match the target of test in 1 of 1 lines: the data are pieces, ...
    """
    differing, other = [], []
    for place, (line, given) in enumerate(zip(target, reference, strict=True)):
        if _letters(line) == _letters(given):
            continue
        unknown = _UNKNOWN.search(line) is not None
        if not _alike(line, given):
            other.append(place)
        elif not unknown:
            differing.append(place)
    pieces = in_pieces(target) != in_pieces(reference)
    if not (other or pieces or len(differing) > max(1, _OFTEN * len(target))):
        if not differing:
            return None
        first = differing[0]
        return (
            f"{len(differing)} of {len(target)} lines of the reference differ a little from the target, the "
            f"first is {first + 1}: {_short(reference[first])} for {_short(target[first])}"
        )
    places = list(range(len(target))) if pieces else sorted({*differing, *other})
    first = places[0]
    raise ValueError(
        f"the reference does not match the target of {subset} in {len(places)} of {len(target)} lines: "
        f"{_cause(reference, target, source, first, subset)}; the first is line {first + 1}, "
        f"{_short(reference[first])}, where the data have {_short(target[first])}"
    )


def _cause(
    reference: Sequence[str], target: Sequence[str], source: Sequence[str], first: int, subset: str
) -> str:
    """What the user has most likely forgotten."""
    if in_pieces(target) and not in_pieces(reference):
        how = "sentencepiece" if any(_PIECE in line for line in target) else "subword_nmt"
        return f"the data are pieces, and they are not put together; give --remove-bpe {how}"
    if in_pieces(reference) and not in_pieces(target):
        return "the reference is cut into pieces; give the text as it was before"
    if _letters(reference[first]) == _letters(source[first]):
        return "it is the source's text; give the target's"
    if sorted(map(_letters, reference)) == sorted(map(_letters, target)):
        return "it has the same lines in another order"
    return (
        f"it is of another set, or of other sentences; give the text that {subset} was made of "
        "(--gen-subset)"
    )


def _letters(text: str) -> str:
    """Letters and digits of a line, without case."""
    text = unicodedata.normalize("NFKC", _UNKNOWN.sub("", text)).casefold()
    return "".join(letter for letter in text if letter.isalnum())


def _alike(target: str, reference: str) -> bool:
    target, reference = _letters(target), _letters(reference)
    if not target or not reference:
        return target == reference
    matcher = SequenceMatcher(None, target, reference, autojunk=False)
    return matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE


def in_pieces(lines: Sequence[str]) -> bool:
    """Whether most lines that are not empty hold marks of pieces."""
    written = [line for line in lines if line.strip()]
    marked = sum(_PIECE in line or _BPE_PIECE in line for line in written)
    return 2 * marked > len(written)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
