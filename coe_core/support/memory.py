"""How much memory a process can still take, and what it does with memory that it has freed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# What mallopt sets, of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD = 64 * 2**20
_SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES")
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process can still take: of the machine, and of each of its control groups. OURS.

    Files that the system keeps in memory and would give back count as left. Where the system does not
    tell what is available (macOS), all of the machine's memory counts.

    Returns:
        None where the system tells nothing.

    Example:
        >>> available_memory() is None or available_memory() > 0
        True
    """
    return min(_left(), default=None)


def _left() -> Iterator[int]:
    """What the machine has left, and each control group of this process: version 2, else 1."""
    machine = _numbers(_PROC / "meminfo").get("MemAvailable:")
    if machine is not None:
        yield 1024 * machine
    else:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = _CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUP / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = Path(group.lstrip("/"))
        for folder in (root / part for part in (own, *own.parents)):
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                most, used = (int((folder / name).read_text()) for name in names[:2])
                kept = _numbers(folder / "memory.stat").get(names[2], 0)
                yield max(0, most - max(0, used - kept))


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it; nothing where there is no such file."""
    with contextlib.suppress(OSError):
        rows = (line.split() for line in path.read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    return {}


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, rather than ask the kernel anew for every large tensor. OURS.

    glibc gives blocks above 32 MiB back to the kernel as soon as they are freed; the next one is filled
    with zeros again, page by page. Networks free and take the same blocks batch after batch. The peak of
    memory stays what it was; between batches the process holds on to it. What the user set in the
    environment (MALLOC_..., GLIBC_TUNABLES) is left as it is.

    Returns:
        Whether the C library took the settings; False where it is another than glibc.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if any(name.startswith(_SET_BY_USER) for name in os.environ):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD))
    return all([mallopt(name, value) == 1 for name, value in settings])
