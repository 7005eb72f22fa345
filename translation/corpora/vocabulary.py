"""A joint SentencePiece vocabulary of both languages, as fairseq's --bpe sentencepiece reads it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from coe_core.support.files import ready_to_write, whole_file, write_text
from translation.corpora.lines import read_lines, refuse_breaks, refuse_nul

KINDS = ("unigram", "bpe")
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")
LONGEST_LINE = 4192  # bytes; SentencePiece learns from no longer line by default
_RESERVED = "\u2585"  # SentencePiece's mark of an unknown piece; it leaves out lines with it
_SPACE = "\u2581"
_MOST_PIECES = 4_000_000  # SentencePiece takes memory for all that are asked for
_LINE_BYTES = (10, 2**30)  # SentencePiece's own bounds of the longest line
_ENOUGH = 2_000_000  # lines to learn a vocabulary from
_AT_ONCE = 10_000  # lines in memory as pieces


class Segmentation(NamedTuple):
    """How SentencePiece cuts a text; its own terms."""

    kind: str = "unigram"
    normalization: str = "nmt_nfkc"  # rule for the text before it is cut; "identity" keeps it
    character_coverage: float = 1.0  # part of all characters that get a piece; 0.9995 for Chinese
    byte_fallback: bool = False  # an unknown character becomes its bytes, not <unk>
    user_symbols: tuple[str, ...] = ()  # pieces that are never cut
    soft_limit: bool = False  # fewer pieces than asked for are no error
    longest_line: int = LONGEST_LINE  # bytes; longer lines are not learned from


class VocabularyReport(NamedTuple):
    """What a vocabulary was learned from."""

    num_pieces: int
    num_lines: int  # that are not empty
    too_long: tuple[str, ...]  # FILE:LINE of lines that were left out, the first few
    num_too_long: int
    num_reserved: int  # lines left out for a character that SentencePiece reserves
    num_changed: int  # lines that normalization changes, more than spaces
    example: tuple[str, str] | None  # of these the first: before and after


def train_vocabulary(
    texts: Sequence[str | Path],
    size: int,
    out: str | Path,
    kind: str = "unigram",
    *,
    segmentation: Segmentation | None = None,
) -> VocabularyReport:
    """Learn one vocabulary from all texts; the same texts give the same vocabulary.

    Of more than two million lines it takes every second, third, ..., as many as are below that.

    Args:
        texts: files of one sentence a line, of either language.
        size: number of pieces.
        out: file of the model, usually with the ending .model.
        kind: "unigram" or "bpe", unless ``segmentation`` is given.
        segmentation: default: SentencePiece's, with all characters.

    Raises:
        ValueError: as `read_lines`; an option out of range, or a size that the texts do not allow (says which
            they do).
    """
    import sentencepiece

    how = segmentation or Segmentation(kind)
    _check(how, size)
    ready_to_write(out, texts)
    lines, too_long = _lines_of(texts, how.longest_line)
    used = lines[:: 1 + (len(lines) - 1) // _ENOUGH]
    out = Path(out)
    try:
        with whole_file(out) as part, part.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(used), model_writer=file, **_trainer_options(how, size)
            )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"no vocabulary of {size} pieces from {len(used)} lines: {_reason(error)}"
        ) from error
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out))
    changed = list(_changed(lines, how.normalization))
    return VocabularyReport(
        pieces.get_piece_size(),
        len(lines),
        tuple(too_long[:3]),
        len(too_long),
        sum(_RESERVED in line for line in lines),
        len(changed),
        changed[0] if changed else None,
    )


def _lines_of(texts: Sequence[str | Path], longest: int) -> tuple[list[str], list[str]]:
    """Lines that are not empty, and FILE:LINE of those that are too long."""
    lines: list[str] = []
    too_long: list[str] = []
    for path in texts:
        text = read_lines(path)
        refuse_nul(text, str(path))
        too_long += (
            f"{path}:{number}"
            for number, line in enumerate(text, start=1)
            if len(line) * 4 > longest and len(line.encode()) > longest
        )
        lines += (line for line in text if line.strip())
    if not lines:
        raise ValueError(f"no vocabulary: all lines of {', '.join(map(str, texts))} are empty")
    if len(too_long) == len(lines):
        raise ValueError(
            f"no vocabulary: all {len(lines)} lines of {', '.join(map(str, texts))} are over {longest} "
            "bytes; --longest-line takes them"
        )
    return lines, too_long


def _check(how: Segmentation, size: int) -> None:
    for name, value, known in (
        ("kind", how.kind, KINDS),
        ("normalization", how.normalization, NORMALIZATIONS),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if not 1 <= size <= _MOST_PIECES:
        raise ValueError(f"the number of pieces must be in [1, {_MOST_PIECES}], got {size}")
    least = 4 + len(how.user_symbols) + 256 * how.byte_fallback
    if size < least:  # SentencePiece's message names a line of its sources
        raise ValueError(
            f"the number of pieces must be at least {least}: three are SentencePiece's own, each user symbol "
            f"and with byte fallback each byte is one; got {size}"
        )
    for symbol in how.user_symbols:
        if not symbol.strip() or how.user_symbols.count(symbol) > 1:
            raise ValueError(
                f"the user symbol {symbol!r} is {'given twice' if symbol.strip() else 'empty'}"
            )
    if not 0.98 <= how.character_coverage <= 1:  # SentencePiece's own bounds
        raise ValueError(f"character coverage must be in [0.98, 1], got {how.character_coverage}")
    low, high = _LINE_BYTES
    if not low <= how.longest_line <= high:
        raise ValueError(
            f"the longest line must be {low} to {high:,} bytes, got {how.longest_line}"
        )


def _trainer_options(how: Segmentation, size: int) -> dict[str, Any]:
    """SentencePiece's; those at its defaults are left out, so that they leave no trace in the model."""
    options: dict[str, Any] = {
        "vocab_size": size,
        "model_type": how.kind,
        "character_coverage": how.character_coverage,
        "num_threads": 1,  # more would make the result depend on how many there are
        "minloglevel": 2,
    }
    if how.normalization != "nmt_nfkc":
        options["normalization_rule_name"] = how.normalization
    if how.byte_fallback:
        options["byte_fallback"] = True
    if how.user_symbols:
        options["user_defined_symbols"] = list(how.user_symbols)
    if how.soft_limit:
        options["hard_vocab_limit"] = False
    if how.longest_line != LONGEST_LINE:
        options["max_sentence_length"] = how.longest_line
    return options


def _reason(error: Exception) -> str:
    """What SentencePiece says, without the place in its sources."""
    place, _, reason = str(error).rpartition("] ")
    return (
        " ".join(reason.split()) or f"SentencePiece says no more than {place.rpartition('[')[2]!r}"
    )


def _changed(lines: Sequence[str], rule: str) -> Iterator[tuple[str, str]]:
    """Lines of which a rule of normalization changes more than spaces, before and after."""
    import sentencepiece

    if rule == "identity":
        return
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule)
    folds_case = rule.endswith("_cf")
    for line in lines:
        if line.isascii() and line.isprintable() and not folds_case:
            continue
        after = normalizer.normalize(line).replace(_SPACE, " ").split()
        if after != line.replace(_SPACE, " ").split():
            yield line, " ".join(after)


def encode_file(model: str | Path, text: str | Path, out: str | Path) -> int:
    """Write a text as pieces separated by spaces, line by line; returns the number of pieces.

    Raises:
        ValueError: as `read_lines`, a carriage return within a line, or a model that is not SentencePiece's.
    """
    pieces = load_pieces(model)
    lines, count = read_lines(text), 0
    refuse_breaks(lines, str(text))
    with whole_file(out) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(lines), _AT_ONCE):
            encoded = pieces.encode(lines[start : start + _AT_ONCE], out_type=str)
            file.writelines(" ".join(line) + "\n" for line in encoded)
            count += sum(map(len, encoded))
    return count


def load_pieces(model: str | Path) -> Any:
    """A SentencePiece model.

    Raises:
        ValueError: no such file, or not one of SentencePiece's.
    """
    import sentencepiece

    if not Path(model).is_file():
        what = "not a regular file" if Path(model).exists() else "no such file"
        raise ValueError(f"{model}: {what}")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{model}: not a SentencePiece model: {_reason(error)}") from error


def real_pieces(pieces: Any) -> list[str]:
    """The pieces that a text can be cut into; none that stand for control, for what is unknown or for a byte.

    Args:
        pieces: of `load_pieces`.
    """
    return [
        pieces.id_to_piece(number)
        for number in range(pieces.get_piece_size())
        if not (
            pieces.is_control(number)
            or pieces.is_unknown(number)
            or pieces.is_unused(number)
            or pieces.is_byte(number)
        )
    ]


def write_dictionary(model: str | Path, out: str | Path) -> None:
    """Write fairseq's dictionary of all pieces of a model, for fairseq-preprocess --srcdict.

    Its own has those pieces only that occur in the text as it is cut.
    """
    pieces = load_pieces(model)
    numbers = range(pieces.get_piece_size())
    of_bytes = [pieces.id_to_piece(number) for number in numbers if pieces.is_byte(number)]
    write_text(out, "".join(f"{piece} 1\n" for piece in (*real_pieces(pieces), *of_bytes)))


def encoded_names(texts: Sequence[str | Path], folder: str | Path) -> dict[str, Path]:
    """Where each text goes: NAME of any folder becomes FOLDER/NAME, without the ending .gz or .xz.

    Raises:
        ValueError: two texts would go to one file, or a text would be overwritten.

    Example:
        >>> encoded_names(["a/x.de", "b/x.en.gz"], "pieces")
        {'a/x.de': PosixPath('pieces/x.de'), 'b/x.en.gz': PosixPath('pieces/x.en')}
        >>> encoded_names(["a/x.de", "b/x.de"], "pieces")
        Traceback (most recent call last):
        ...
        ValueError: a/x.de and b/x.de would both become pieces/x.de; encode them into two folders
    """
    places: dict[Path, str] = {}
    names: dict[str, Path] = {}
    read = {Path(text).resolve(): str(text) for text in texts}
    for text in map(str, texts):
        out = Path(folder) / Path(text).name.removesuffix(".gz").removesuffix(".xz")
        if (place := out.resolve()) in read:
            raise ValueError(f"{read[place]} would be overwritten; give another folder to --out")
        other = places.setdefault(place, text)
        if other != text:
            raise ValueError(
                f"{other} and {text} would both become {out}; encode them into two folders"
            )
        names[text] = out
    return names


def fingerprint(words: Sequence[str]) -> str:
    """Number of words and a checksum of them in their order.

    Example:
        >>> fingerprint(["a", "b"]) == fingerprint(["b", "a"]), fingerprint(["a", "b"])
        (False, '2 ...')
    """
    return f"{len(words)} {zlib.crc32(chr(10).join(words).encode()):08x}"
