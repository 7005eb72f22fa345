"""Errors of the vision adapter, and the nearest-name helper that they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from coe_core import CoEError


class RunError(CoEError):
    """A run folder or checkpoint cannot be used as asked; nothing in it was changed."""


class Interrupted(BaseException):
    """Training was stopped by a signal. Not a KeyboardInterrupt: Lightning would exit with status 1."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """ "; nearest: a, b" for a message about an unknown name; empty if nothing is near.

    Example:
        >>> nearest("resnet81", ["resnet18", "vgg11"])
        '; nearest: resnet18'
    """
    found = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else ""
