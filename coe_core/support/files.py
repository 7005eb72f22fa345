"""Write files whole or not at all; JSON with infinite numbers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # told of no file
_NAMES = {math.inf: "inf", -math.inf: "-inf"}
_LONGEST_SUFFIX = 20  # characters kept in a temporary name, for libraries that go by the ending


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside a file, for whatever writes by itself; it takes the file's place at the end.

    The new content is on the disk before it replaces the old, so that a crash or a full disk leaves the
    old file, never half of one. A link is followed; a device or a pipe is written to directly.

    Args:
        path: of the file, whose folder exists.

    Raises:
        OSError: no such folder, a folder in the place of the file, or no right to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with whole_file(path) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> path.read_text()
        '1 2 3'
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {target.parent}")
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode
    if mode is not None and not stat.S_ISREG(mode):
        yield target
        return
    suffix = target.suffix if len(target.suffix) <= _LONGEST_SUFFIX else ""
    temporary = target.with_name(f".{secrets.token_hex(6)}.part{suffix}")
    try:
        yield temporary
        _to_disk(temporary)
        if mode is not None:
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)
        _to_disk(target.parent)
    except OSError as error:
        if error.errno not in FULL and error.filename not in (os.fspath(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` at the end, or nothing of it where something fails.

    Raises:
        ValueError: the folder exists and is not empty, or a file is in its place.
        OSError: no right to write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "export"
        >>> with whole_folder(path) as temporary:
        ...     _ = (temporary / "model.txt").write_text("weights")
        >>> [file.name for file in path.iterdir()]
        ['model.txt']
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise ValueError(f"{path} is a file; name a folder, new or empty")
    is_there = target.is_dir()
    if is_there and any(target.iterdir()):
        raise ValueError(f"{path} is not empty; name a folder that is new or empty")
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{secrets.token_hex(6)}.part"
    # Inside an empty folder it is on the same disk even where that folder is a mount of its own.
    temporary = target / name if is_there else target.with_name(name)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if is_there:
            for child in temporary.iterdir():
                child.rename(target / child.name)
        else:
            temporary.rename(target)
        _to_disk(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Wait until the content is stored; where folders cannot be synchronised, they are left."""
    if path.is_dir():
        with contextlib.suppress(OSError):
            _synchronise(path, os.O_RDONLY)
    else:
        _synchronise(path, os.O_RDONLY)


def _synchronise(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ready_to_write(path: str | Path, read: Iterable[str | Path] = ()) -> None:
    """Make the folder of a file that is to be written after long work, and see that it can be written.

    Args:
        path: of the file, which may exist: it is left as it is.
        read: what the work reads, which it may not replace.

    Raises:
        ValueError: the file is one of those that are read.
        OSError: a folder is in its place, or it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "table.json"
        >>> ready_to_write(path)
        >>> path.parent.is_dir(), path.exists()
        (True, False)
    """
    target = Path(os.path.realpath(path))
    if any(target == Path(os.path.realpath(source)) for source in read):
        raise ValueError(
            f"{path} is read here, and would be overwritten; give another file to --out"
        )
    if target.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from error
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no right to write there")


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Replace a file in one step, see `whole_file`.

    Raises:
        OSError: see `whole_file`.
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def write_text(path: str | Path, text: str) -> None:
    """As `write_bytes`, in UTF-8, lines ended as they are in the text.

    Raises:
        OSError: see `whole_file`.
    """
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """As `write_text`: JSON in which infinite numbers are the strings "inf" and "-inf".

    Raises:
        ValueError: a number that is not one (NaN), or a value that JSON does not know.
        OSError: see `whole_file`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "point.json"
        >>> write_json(path, {"threshold": math.inf}, indent=None)
        >>> path.read_text(), read_json(path)
        ('{"threshold": "inf"}\\n', {'threshold': 'inf'})
    """
    write_text(path, json_text(value, indent))


def json_text(value: Any, indent: int | None = 2) -> str:
    """What `write_json` writes, such as for a page or a log.

    Raises:
        ValueError: as `write_json`.

    Example:
        >>> json_text([1, -math.inf], indent=None)
        '[1, "-inf"]\\n'
    """
    plain = _finite(value)
    try:
        text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"not a value that JSON knows: {error}") from error
    try:
        text.encode()
    except UnicodeEncodeError:  # names of files that are not UTF-8
        text = json.dumps(plain, indent=indent, allow_nan=False)
    return text + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return _NAMES[value]
    return value


def read_json(path: str | Path, kind: type = dict) -> Any:
    """The value in a JSON file of ours, checked to be a dict (or another ``kind``).

    Infinite numbers come as the strings that `write_json` made of them; `as_number` reads them.

    Raises:
        ValueError: no such file, damaged, or of another kind; one line that names the file.
    """
    name = " ".join(str(path).split())  # which may hold line ends
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ValueError(f"{name} cannot be read: it is no regular file")
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not JSON: it is not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError(f"{name} is not JSON of ours: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "keys and values", list: "a list", str: "a text"}
        raise ValueError(
            f"{name} holds {_shortly(value)} where {names.get(kind, kind.__name__)} should stand"
        )
    return value


def as_number(value: Any, name: str) -> float:
    """A number out of JSON, "inf" and "-inf" among them.

    Args:
        value: as it was read.
        name: for the message.

    Raises:
        ValueError: anything else, NaN too.

    Example:
        >>> as_number("inf", "threshold"), as_number(3, "cost")
        (inf, 3.0)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and value in _NAMES.values()):
        with contextlib.suppress(OverflowError):
            number = float(value)
            if not math.isnan(number):
                return number
    raise ValueError(f"{name} must be a number, got {_shortly(value)}")


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> sha256_of(path)[:8]
        'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
