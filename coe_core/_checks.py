"""Checks of arguments that several files share; each raises one clear ValueError."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor

LARGEST = 1e150  # sums and differences of larger scores might overflow
MOST = 2**63 - 1  # of a whole number that an array can hold


def whole(name: str, value: Any, least: int = 0, most: int = MOST) -> int:
    """The value as a whole number in [least, most].

    Raises:
        ValueError: it is none, or outside.

    Example:
        >>> whole("n", 3)
        3
        >>> whole("n", 2.5)
        Traceback (most recent call last):
        ValueError: n must be a whole number from 0 to 9223372036854775807, got 2.5
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r:.40}")
    return number


def real(name: str, value: Any) -> float:
    """The value as a float; infinite ones pass.

    Raises:
        ValueError: NaN, no number, or a whole number that no float can hold.

    Example:
        >>> real("cost", 3)
        3.0
        >>> real("cost", 10**400)
        Traceback (most recent call last):
        ValueError: cost must be a number, got 1000000000000000000000000000000000000000
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got {value!s:.40}")
    return number


def num_unfinite(values: Tensor) -> int:
    """How many values are NaN or infinite.

    Where there are none, the usual case, their sum says so in one pass that allocates nothing; a sum of
    finite values that overflows is only slower.

    Example:
        >>> import torch
        >>> num_unfinite(torch.tensor([1.0, torch.inf, torch.nan]))
        2
    """
    return 0 if math.isfinite(float(values.sum())) else int((~values.isfinite()).sum())


def check_targets(targets: Tensor, n: int, c: int) -> None:
    """Whether there is one class in [0, c) for each of n samples.

    Raises:
        ValueError: there is not.

    Example:
        >>> import torch
        >>> check_targets(torch.tensor([0, 3]), 2, 3)
        Traceback (most recent call last):
        ValueError: 1 of 2 targets are outside the 3 classes [0, 3); leave such samples out
    """
    if targets.shape != (n,):
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, but there are {n} samples: one class each"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"targets must be whole numbers of classes, got {targets.dtype}")
    outside = int(((targets < 0) | (targets >= c)).sum())
    if outside:
        raise ValueError(
            f"{outside} of {n} targets are outside the {c} classes [0, {c}); leave such samples out"
        )


def real_matrix(name: str, array: Tensor) -> Tensor:
    """The array [n, k], k >= 1, of real numbers; truth values become numbers.

    Raises:
        ValueError: another shape, or complex numbers.

    Example:
        >>> import torch
        >>> real_matrix("evidence", torch.zeros(2))
        Traceback (most recent call last):
        ValueError: evidence must be [n, k] with k >= 1 experts, got shape (2,)
    """
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(
            f"{name} must be [n, k] with k >= 1 experts, got shape {tuple(array.shape)}"
        )
    if array.is_complex():
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    return array if array.is_floating_point() else array.double()


def scientific(number: Any) -> str:
    """A whole number of any size in six digits.

    Example:
        >>> scientific(4), scientific(2 * 10**400)
        ('4', '2.00000e+400')
    """
    from decimal import Decimal

    return f"{number:g}" if abs(number) < 2**53 else f"{Decimal(number):.6g}"
