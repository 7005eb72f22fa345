"""One writer at a time: a lock on a folder or a file that names its owner and ends with its process.

The kernel's lock (flock) decides where there is one: it ends with the process that holds it, however that
ends, and works on the shared file systems of clusters. Elsewhere the record that the lock's file holds
decides: process, host and time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # not on Windows: the record decides
    fcntl = None  # type: ignore[assignment]

_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_LONGEST_NAME = 255  # bytes
_held: dict[int, str] = {}  # open descriptors of this process -> the lock's path
_guard = threading.Lock()


class Owner(NamedTuple):
    """Who holds a lock, or held it.

    Attributes:
        pid: of the process.
        host: it runs on.
        since: local time, as text.
        command: what it runs, by the name of its program.
    """

    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"{self.command}, process {self.pid} on {self.host}, since {self.since}"


class LockedError(ValueError):
    """Another process writes to this folder or file; nothing was changed.

    Attributes:
        owner: of the lock; None: its record cannot be read.
    """

    def __init__(self, message: str, owner: Owner | None):
        super().__init__(message)
        self.owner = owner


@contextmanager
def locked(
    target: str | Path,
    remedy: str = "wait for it or stop it",
    say: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock of a folder or of a file that is going to be written.

    Args:
        target: a folder that exists, or a file in one, which need not exist. What is neither, such as a
            pipe, needs no lock and gets none.
        remedy: what the refused one can do instead, for the message.
        say: is told in one line of a lock that a process left which is gone; None: on stderr.

    Raises:
        LockedError: another process, or another part of this one, holds it.
        ValueError: what is no file is in the place of the lock's.
        OSError: the lock's file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with locked(folder.name):
        ...     with locked(folder.name, "choose another folder"):
        ...         pass
        Traceback (most recent call last):
        coe_core.support.locks.LockedError: ... is being written by ...; choose another folder
    """
    target = Path(target)
    if target.exists() and not (target.is_dir() or target.is_file()):
        yield
        return
    path = lock_path(target)
    descriptor = _acquire(path, target, remedy, say or _say)
    try:
        yield
    finally:
        _release(descriptor, path)


def lock_path(target: Path) -> Path:
    """Where the lock of a folder or file lies: a hidden file in the folder, or beside the file.

    Example:
        >>> lock_path(Path("results/x.csv")).as_posix()
        'results/.x.csv.lock'
    """
    if target.is_dir():
        return target / ".lock"
    name = f".{target.name}.lock"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}.lock"
    return target.with_name(name)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _acquire(path: Path, target: Path, remedy: str, say: Callable[[str], None]) -> int:
    """An open descriptor of the lock's file, which is ours."""
    while True:
        descriptor = _open(path)
        try:
            before = _owner(descriptor)
            by_kernel = _kernel_lock(descriptor)
            if by_kernel is False or (by_kernel is None and before and not _is_gone(before)):
                raise LockedError(_refusal(target, path, before, remedy, by_kernel), before)
            if not _is_still(path, descriptor):  # its owner has just removed it: a new one is made
                os.close(descriptor)
                continue
            if before is not None:
                say(f"{target}: the lock of {before} was left behind; taken over")
            _write(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with _guard:
            _held[descriptor] = os.fspath(path)
        return descriptor


def _open(path: Path) -> int:
    """The lock's file, made where there is none; a link is not followed: its target would be written to."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o644)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise type(error)(f"the lock {path} cannot be made: {error.strerror}") from error
    raise ValueError(f"{path} is a link, a folder or a pipe, where a lock should be: remove it")


def _release(descriptor: int, path: Path) -> None:
    with _guard:
        mine = _held.pop(descriptor, None) is not None
    if not mine:  # in a child of the owner, which must not take the lock away
        return
    if _is_still(path, descriptor):
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(descriptor)


def _leave_to_parent() -> None:
    """A child, such as a worker that loads data, must not keep its parent's lock alive."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _kernel_lock(descriptor: int) -> bool | None:
    """Whether the kernel gave us the lock; None: this file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD_ELSEWHERE else None
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(descriptor: int) -> None:
    name = Path(sys.argv[0]).name or "python"
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": name}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(record).encode(), 0)


def _owner(descriptor: int) -> Owner | None:
    """Whom the file names; None for an empty file and for one that holds something else."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        owner = Owner(**record)
    except (ValueError, TypeError, RecursionError):
        return None
    known = type(owner.pid) is int and all(isinstance(text, str) for text in owner[1:])
    return Owner(owner.pid, *(" ".join(text.split()) for text in owner[1:])) if known else None


def _is_gone(owner: Owner) -> bool:
    """Whether the owner's process has certainly ended: it ran on this host, and no longer does."""
    if owner.host != socket.gethostname() or owner.pid <= 0:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _refusal(
    target: Path, path: Path, owner: Owner | None, remedy: str, by_kernel: bool | None
) -> str:
    line = f"{target} is being written by {owner or 'another process'}; {remedy}"
    if by_kernel is None:  # nothing but the record says so
        line += f", or remove {path} if that process is gone"
    return line
