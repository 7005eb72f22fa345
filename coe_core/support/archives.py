"""Zip archives that are damaged are refused: torch reads them without a look at their checksums."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, NotImplementedError),
    *(UnicodeDecodeError, ValueError, OverflowError, MemoryError),
)


def check_archive(path: str | Path) -> None:
    """Compare every file of a zip archive with its checksum (CRC-32); another kind of file is left alone.

    ``torch.save`` writes zip archives with checksums, but ``torch.load`` does not compare them: a flipped bit
    becomes another weight without a word.

    Args:
        path: of a file that exists.

    Raises:
        ValueError: damaged; names the file, and the part of it.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.zip"
        >>> with zipfile.ZipFile(path, "w") as archive:
        ...     archive.writestr("weights", b"abcd")
        >>> check_archive(path)
        >>> _ = path.write_bytes(path.read_bytes().replace(b"abcd", b"abcE"))
        >>> check_archive(path)
        Traceback (most recent call last):
        ...
        ValueError: ...x.zip is damaged: 'weights' in it does not match its checksum; ...
    """
    remedy = "copy or download it again"
    with open(path, "rb") as file:
        starts_as_zip = file.read(4) == b"PK\x03\x04"
    if not zipfile.is_zipfile(path):
        if starts_as_zip:
            raise ValueError(f"{path} is damaged: it is cut short, its end is missing; {remedy}")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged: {error or type(error).__name__}; {remedy}") from error
    if wrong is not None:
        raise ValueError(
            f"{path} is damaged: {wrong!r} in it does not match its checksum; {remedy}"
        )
