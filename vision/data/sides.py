"""Sides of images: one number for a square, or height and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Sides(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"

    def scaled(self, factor: float) -> Sides:
        """Both by a factor, rounded down."""
        return Sides(int(self.height * factor), int(self.width * factor))


def sides_of(size: int | Sequence[int]) -> Sides:
    """The sides that a recipe's ``data.size`` means.

    Raises:
        ValueError: neither one number nor two.

    Example:
        >>> sides_of(32), str(sides_of([96, 128]))
        (Sides(height=32, width=32), '96 x 128')
    """
    if isinstance(size, int):
        return Sides(size, size)
    if len(size) != 2:
        raise ValueError(f"size is one side, or height and width; got {list(size)}")
    return Sides(*size)
