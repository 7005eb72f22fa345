"""The one reader of texts: UTF-8, plain or packed, one sentence a line, separated by line feeds only.

Python's ``str.splitlines`` ends a line also at U+0085, U+2028, a vertical tab and others that occur within
sentences; fairseq and sacreBLEU do not, and neither does this module. fairseq, which opens texts in Python's
text mode, ends a line at a carriage return of its own: see `refuse_breaks`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

STANDARD_INPUT = "-"
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
_PACKED = {  # first bytes -> what it is, and what unpacks it
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"BZh": ("packed by bzip2", "bunzip2"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unzstd"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x"),
}
_MOST_UNPACKED = 2**32  # bytes: a few kilobytes of gzip can stand for more than memory holds
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_UTF32_MARKS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text: of a file, of one packed by gzip or xz, or of standard input (``-``).

    A byte order mark at its beginning and a carriage return at the end of a line are left out.

    Raises:
        ValueError: no such file, no line in it, or bytes that are not UTF-8 (names file and line).
    """
    return split_lines(unpacked(read_bytes(path), str(path)), str(path))


def read_plain_lines(path: str | Path) -> list[str]:
    """As `read_lines`, of a text that fairseq-preprocess reads as it is.

    Raises:
        ValueError: as `read_lines`; a packed text, a byte order mark, or a carriage return within a line.
    """
    content = read_bytes(path)
    for first, (name, program) in {_GZIP: ("gzip", "gunzip"), _XZ: ("xz", "unxz")}.items():
        if content.startswith(first):
            raise ValueError(
                f"{path}: packed by {name}, which fairseq does not read; unpack it ({program})"
            )
    if content.startswith(_UTF8_MARK):
        raise ValueError(
            f"{path}:1: begins with a byte order mark, which would become a part of the first word; leave it "
            "out, as with sed '1s/^\\xEF\\xBB\\xBF//'"
        )
    lines = split_lines(content, str(path))
    refuse_breaks(lines, str(path))
    return lines


def refuse_breaks(lines: Sequence[str], name: str) -> None:
    """Refuse carriage returns within lines, which fairseq would take for ends, and NULs, see `refuse_nul`.

    Raises:
        ValueError: there is one (names file and line).

    Example:
        >>> refuse_breaks(["one\\u2028line"], "text")
        >>> refuse_breaks(["one", "two\\rthree"], "text")
        Traceback (most recent call last):
        ...
        ValueError: text:2: a carriage return within the line, which fairseq would take for its end; ...
    """
    for number, line in enumerate(lines, start=1):
        if "\r" in line:
            raise ValueError(
                f"{name}:{number}: a carriage return within the line, which fairseq would take for its end; "
                "leave it out, as with tr -d '\\r'"
            )
    refuse_nul(lines, name)


def refuse_nul(lines: Sequence[str], name: str) -> None:
    """Refuse NUL characters: SentencePiece and fairseq give them no piece, without a word.

    Raises:
        ValueError: there is one (names file and line).
    """
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ValueError(
                f"{name}:{number}: a NUL character, which no vocabulary holds; leave it out, as with "
                "tr -d '\\0'"
            )


def read_bytes(path: str | Path) -> bytes:
    """Content of a file, or of standard input (``-``).

    Raises:
        ValueError: no such file, or what is no file, such as a folder or a pipe.
    """
    if str(path) == STANDARD_INPUT:
        return sys.stdin.buffer.read()
    path = Path(path)
    if not path.is_file():
        what = "a folder, not a text" if path.is_dir() else "not a regular file"
        hint = "; a pipe is read as standard input, with - for its name"
        raise ValueError(f"{path}: {what + hint if path.exists() else 'no such file'}")
    return path.read_bytes()


def unpacked(content: bytes, name: str) -> bytes:
    """Content of a file, unpacked where it is packed by gzip or xz.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ValueError: damaged, or more than memory should hold.
    """
    kind = "gzip" if content.startswith(_GZIP) else "xz" if content.startswith(_XZ) else None
    if kind is None:
        return content
    packed = io.BytesIO(content)
    try:
        with gzip.GzipFile(fileobj=packed) if kind == "gzip" else lzma.LZMAFile(packed) as file:
            unpacked = file.read(_MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{name}: a damaged {kind} file: {error}") from error
    if len(unpacked) > _MOST_UNPACKED:
        raise ValueError(f"{name}: more than {_MOST_UNPACKED:,} bytes when it is unpacked")
    return unpacked


def split_lines(content: bytes, name: str) -> list[str]:
    """Lines of a text.

    Args:
        content: of the text.
        name: of the text, for messages.

    Raises:
        ValueError: no line, or bytes that are not UTF-8.

    Example:
        >>> split_lines("one\\u2028still\\r\\ntwo".encode(), "text")
        ['one\\u2028still', 'two']
    """
    if content.startswith(_UTF32_MARKS):
        raise ValueError(f"{name}: UTF-32, not UTF-8; convert it, as with iconv -f utf-32 -t utf-8")
    if content.startswith(_UTF16_MARKS) or b"\x00" in content[:2]:
        raise ValueError(f"{name}: UTF-16, not UTF-8; convert it, as with iconv -f utf-16 -t utf-8")
    for first, (what, program) in _PACKED.items():
        if content.startswith(first):
            raise ValueError(f"{name}: {what}, not a text; unpack it ({program})")
    lines = content.removeprefix(_UTF8_MARK).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise ValueError(f"{name}: the file is empty; it needs one sentence a line")
    return [decode_line(line, name, number) for number, line in enumerate(lines, start=1)]


def decode_line(line: bytes, name: str, number: int) -> str:
    """A line without its end, and without a carriage return there.

    Args:
        line: as it was read.
        name: of the text, for messages.
        number: of the line, from 1.

    Raises:
        ValueError: bytes that are not UTF-8.

    Example:
        >>> decode_line(b"one\\r\\n", "text", 1)
        'one'
    """
    try:
        return line.removesuffix(b"\n").decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
            f"{error.start + 1} of the line); convert the file, as with iconv -f latin1 -t utf-8"
        ) from error


def open_lines(path: str | Path) -> BinaryIO:
    """A text to be read line by line, unpacked where it is packed by gzip or xz; ``-`` is standard input.

    Raises:
        ValueError: no such file.
    """
    if str(path) == STANDARD_INPUT:
        file: Any = sys.stdin.buffer
    elif not Path(path).is_file():
        read_bytes(path)  # says what it is
        raise ValueError(f"{path}: not a regular file")
    else:
        file = open(path, "rb")  # noqa: SIM115  # the caller closes it
    first = file.peek(len(_XZ)) if hasattr(file, "peek") else b""
    if first.startswith(_GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if first.startswith(_XZ):
        return cast(BinaryIO, lzma.LZMAFile(file))
    return file
