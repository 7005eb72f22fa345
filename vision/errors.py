"""Errors of the vision adapter."""

from __future__ import annotations

from coe_core.errors import CoEError
from coe_core.support.command import Interrupted, nearest

__all__ = ["CoEError", "Interrupted", "RunError", "nearest"]


class RunError(CoEError):
    """A run folder or checkpoint cannot be used as asked; nothing in it was changed."""
