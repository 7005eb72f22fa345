"""A joint SentencePiece vocabulary of both languages, as fairseq's --bpe sentencepiece reads it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from translation.corpora.text import read_lines

_ENOUGH = 2_000_000  # lines to learn a vocabulary from
_AT_ONCE = 10_000  # lines in memory as pieces


def train_vocabulary(
    texts: Sequence[str | Path], size: int, out: str | Path, kind: str = "unigram"
) -> None:
    """Learn one vocabulary from all texts; the same texts give the same vocabulary.

    Of more than two million lines it takes every second, third, ..., as many as are below that.

    Args:
        texts: files of one sentence a line, of either language.
        size: number of pieces.
        out: file of the model, usually with the ending .model.
        kind: "unigram" or "bpe".

    Raises:
        ValueError: as `read_lines`, or a size that the texts do not allow (says which they do).
    """
    import sentencepiece

    lines = [line for path in texts for line in read_lines(path) if line.strip()]
    lines = lines[:: 1 + (len(lines) - 1) // _ENOUGH]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{out}.part", "wb") as file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=file,
                vocab_size=size,
                model_type=kind,
                character_coverage=1.0,
                num_threads=1,  # more would make the result depend on how many there are
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            Path(file.name).unlink()
            raise ValueError(
                f"no vocabulary of {size} pieces from {len(lines)} lines: {error}"
            ) from error
    os.replace(file.name, out)


def encode_file(model: str | Path, text: str | Path, out: str | Path) -> int:
    """Write a text as pieces separated by spaces, line by line; returns the number of pieces.

    Raises:
        ValueError: as `read_lines`, or a model that is not SentencePiece's.
    """
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{model}: not a SentencePiece model: {error}") from error
    lines, part, count = read_lines(text), Path(f"{out}.part"), 0
    with open(part, "w", encoding="utf-8") as file:
        for start in range(0, len(lines), _AT_ONCE):
            encoded = pieces.encode(lines[start : start + _AT_ONCE], out_type=str)
            file.writelines(" ".join(line) + "\n" for line in encoded)
            count += sum(map(len, encoded))
    os.replace(part, out)
    return count


def fingerprint(words: Sequence[str]) -> str:
    """Number of words and a checksum of them in their order.

    Example:
        >>> fingerprint(["a", "b"]) == fingerprint(["b", "a"]), fingerprint(["a", "b"])
        (False, '2 ...')
    """
    return f"{len(words)} {zlib.crc32(chr(10).join(words).encode()):08x}"
