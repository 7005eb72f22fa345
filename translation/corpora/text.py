"""Parallel text, checked before anything is made of it: one sentence a line, UTF-8, as many on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class ParallelText(NamedTuple):
    """What a check of parallel text found."""

    num_lines: int
    num_empty: dict[str, int]  # by file
    longest: dict[str, int]  # words, by file


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text, separated by line feeds only, as fairseq and sacreBLEU read them.

    Raises:
        ValueError: no such file, no line in it, or bytes that are not UTF-8 (names file and line).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: the file is empty; it needs one sentence a line")
    text = []
    for number, line in enumerate(lines, start=1):
        try:
            text.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1} of the line); convert the file, as with iconv -f latin1 -t utf-8"
            ) from error
    return text


def read_parallel(paths: Sequence[str | Path]) -> list[list[str]]:
    """Texts that belong together line by line.

    Raises:
        ValueError: as `read_lines`, and texts of different lengths.
    """
    texts = [read_lines(path) for path in paths]
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

    The D- lines (detokenised); of several for a sentence (--nbest) the first. A file without any such
    line is taken as plain text, one translation a line.

    Raises:
        ValueError: as `read_lines`, and sentences that are missing from the output.
    """
    lines = read_lines(path)
    found: dict[int, str] = {}
    for line in lines:
        parts = line.split("\t", 2)
        if len(parts) == 3 and parts[0].startswith("D-") and parts[0][2:].isdecimal():
            found.setdefault(int(parts[0][2:]), parts[2])
    if not found:
        return lines
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {max(found) + 1} sentences have no D- line, the first is "
            f"{missing[0]}; was the generation cut short, or were long sentences skipped?"
        )
    return [found[number] for number in range(len(found))]
