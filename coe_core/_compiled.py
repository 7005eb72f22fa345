"""Loops that numba compiles when they are first called."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numba
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]  # numba compiles for whatever numbers it is called with


def compiled(kernel: Callable[..., Any]) -> Any:
    """Compiled on its first call; callees come first, for a kernel finds those it calls as globals."""
    try:
        return numba.njit(cache=True, nogil=True)(kernel)
    except RuntimeError:  # no folder to cache in can be written
        return numba.njit(nogil=True)(kernel)
