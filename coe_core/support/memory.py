"""What a process does with memory that it has freed."""

from __future__ import annotations

import os

# What mallopt sets, of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD = 64 * 2**20
_SET_BY_USER = ("MALLOC_", "GLIBC_TUNABLES")


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
