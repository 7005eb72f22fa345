"""Translation memories (TMX): pairs of two languages, by lxml, without entities, networks or large trees."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from translation.corpora.lines import read_bytes, unpacked
from translation.corpora.published import Pair

_CODES = {"bpt", "ept", "it", "ph", "ut"}  # what they hold is markup of the original, not text
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def read_tmx(path: str | Path, source: str, target: str) -> list[Pair]:
    """Pairs of a translation memory; units that lack one of the languages are passed over.

    Args:
        path: of the file, also packed by gzip or xz.
        source: language; ``de`` is also found as ``de-DE`` and ``DE_at``.
        target: language.

    Raises:
        ValueError: no such file, not XML, or no unit in both languages (says which languages there are).
    """
    from lxml import etree

    content = unpacked(read_bytes(path), str(path))
    pairs: list[Pair] = []
    languages: set[str] = set()
    try:
        units = etree.iterparse(
            io.BytesIO(content),
            tag="{*}tu",
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
        )
        for _, unit in units:
            by_language = dict(_segments(unit))
            languages |= by_language.keys()
            segments = [_of(by_language, language) for language in (source, target)]
            if segments[0] is not None and segments[1] is not None:
                pairs.append((segments[0], segments[1]))
            unit.clear()
    except (etree.XMLSyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a translation memory (TMX): {error}") from error
    if not pairs:
        known = ", ".join(sorted(languages)) or "none"
        raise ValueError(f"{path}: no unit in {source} and {target}; languages in it: {known}")
    return pairs


def _segments(unit: Any) -> Iterator[tuple[str, str]]:
    for variant in unit.iterfind("{*}tuv"):
        language = variant.get(_LANGUAGE) or variant.get("lang") or ""
        segment = variant.find("{*}seg")
        if segment is not None:
            yield language.lower().replace("_", "-"), " ".join(_text(segment).split())


def _text(element: Any) -> str:
    """What a reader sees: without the codes of markup, with what stands between them."""
    parts = [element.text or ""]
    for child in element:
        name = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else "ph"
        parts += ["" if name in _CODES else _text(child), child.tail or ""]
    return "".join(parts)


def _of(by_language: dict[str, str], language: str) -> str | None:
    wanted = language.lower().replace("_", "-")
    if wanted in by_language:
        return by_language[wanted]
    return next((text for name, text in by_language.items() if name.split("-")[0] == wanted), None)
