"""Imports of large libraries, at a lower price."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for garbage: what imports make stays until the end of the process.

    torch's compiler, which every training loads, makes a million objects. Python's collector would look
    through all of them again and again while they are made, and in each full collection afterwards: it
    waits, and what was imported is set aside from it (`gc.freeze`). Where nothing new was imported nothing
    is set aside.

    Example:
        >>> with uncollected():
        ...     import decimal
        >>> gc.isenabled()
        True
    """
    collects, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            atexit.register(gc.unfreeze)  # else libraries report at the end what was not collected
        if collects:
            gc.enable()
