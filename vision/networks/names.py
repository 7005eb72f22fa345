"""Parts of a network by a regular expression of anyone on their dotted names."""

from __future__ import annotations

from collections.abc import Iterable

_SECONDS = 1.0  # of a regular expression on one name; usual ones take microseconds


def found_by(where: str, paths: Iterable[str]) -> list[str]:
    """Paths in which a regular expression finds something; one that does not end is given up.

    Args:
        where: of a recipe, or of a checkpoint.
        paths: dotted names of modules.

    Raises:
        ValueError: no text, no regular expression, or one that takes more than a second on one name.

    Example:
        >>> found_by("^blocks.[4-6]", ["stem.act", "blocks.4.act"])
        ['blocks.4.act']
    """
    import regex

    if not isinstance(where, str):
        raise ValueError(f"where must be a regular expression, got {where!r:.80}")
    try:
        pattern = regex.compile(where)
        return [path for path in paths if pattern.search(path, timeout=_SECONDS)]
    except regex.error as error:
        raise ValueError(f"{where[:80]!r} is no regular expression: {error}") from error
    except (TimeoutError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"the regular expression {where[:80]!r} takes more than {_SECONDS:g} s on one name: write it "
            "without repetitions of repetitions"
        ) from error
