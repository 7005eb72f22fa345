"""One grammar of amounts and aims, for both commands, their Python interfaces and their servers.

best                 the best quality
macs=100M            mean multiply-adds per sample of at most 100 million
macs=60%             of at most 60% of what no exits cost
latency=20           of at most 20 milliseconds; latency=60%: of what no exits take
accuracy_drop=0.5%   the cheapest that loses at most half a point; the percent sign is required
accuracy=90%         the cheapest that reaches 90%; the percent sign is required
bleu_drop=0.5        the cheapest that loses at most half a point of BLEU; no percent sign
chrf_drop=0.5        the same of chrF
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from coe_core.support.command import nearest

_NUMBER = re.compile(
    r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?([kmgt]?)(i?b|ms|%)?", re.ASCII | re.IGNORECASE
)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_EXAMPLES = {
    "best": "best",
    "macs": "macs=100M or macs=60% (of no exits)",
    "latency": "latency=20 (milliseconds) or latency=60% (of no exits)",
    "accuracy_drop": "accuracy_drop=0.5%",
    "accuracy": "accuracy=90%",
    "bleu_drop": "bleu_drop=0.5 (points)",
    "chrf_drop": "chrf_drop=0.5 (points)",
}


class Amount(NamedTuple):
    """How much something may cost: an absolute amount, or a part of what no exits cost."""

    value: float  # above 0; a part in (0, 1]
    relative: bool  # whether it is a part
    text: str  # as it was written

    def absolute(self, of_no_exits: float) -> float:
        """The amount itself, given what no exits cost.

        Example:
            >>> parse_amount("60%").absolute(2e8), parse_amount("100M").absolute(2e8)
            (120000000.0, 100000000.0)
        """
        return self.value * of_no_exits if self.relative else self.value


class Aim(NamedTuple):
    """What a threshold is fitted for."""

    kind: str  # best, macs, latency, accuracy_drop, accuracy, bleu_drop or chrf_drop
    value: (
        float | None
    )  # multiply-adds, milliseconds, a part of 1 (accuracy, parts), or points of BLEU
    relative: bool  # whether value is a part of what no exits cost
    text: str  # as it was written

    def absolute(self, of_no_exits: float) -> float | None:
        """The value itself, given what no exits cost; None for "best".

        Example:
            >>> parse_aim("macs=60%").absolute(2e8), parse_aim("best").absolute(2e8)
            (120000000.0, None)
        """
        return self.value * of_no_exits if self.relative and self.value is not None else self.value


class _Parts(NamedTuple):
    number: float  # before unit and percent sign
    unit: str  # "", k, m, g or t
    ending: str  # "", %, ms, b or ib


def _parts(text: str) -> _Parts | None:
    """None: no number, or one that is infinite."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    number = float(match[1] + (match[2] or ""))
    parts = _Parts(number, match[3].lower(), (match[4] or "").lower())
    return parts if math.isfinite(number * _UNITS[parts.unit]) else None


def parse_amount(text: str | float) -> Amount:
    """An amount such as 100M, 1.5g, 20000 or 60% (of what no exits cost); a number is taken as it is.

    Raises:
        ValueError: anything else, an amount that is not above 0, or more than 100%.

    Example:
        >>> parse_amount("1.5G").value, parse_amount("20m").value, parse_amount(2e4).value
        (1500000000.0, 20000000.0, 20000.0)
        >>> parse_amount("60%")
        Amount(value=0.6, relative=True, text='60%')
    """
    written = f"{text:.17g}" if isinstance(text, float) else str(text)
    parts = _parts(written)
    if parts is None or parts.ending not in ("", "%") or (parts.ending == "%" and parts.unit):
        raise ValueError(
            f"{_quoted(text)} is no amount; write one such as 100M, 1.5G or 60% (of what no exits cost)"
        )
    relative = parts.ending == "%"
    value = _scaled(parts)
    if value <= 0:
        raise ValueError(f"an amount must be above 0, got {written}")
    if relative and value > 1:
        raise ValueError(f"{written} is more than what no exits cost; write at most 100%")
    return Amount(value, relative, written)


def _scaled(parts: _Parts) -> float:
    if parts.ending == "%":
        return round(parts.number / 100, 12)
    return parts.number * _UNITS[parts.unit]


def looks_like_an_amount(text: str) -> bool:
    """Whether a text is meant as an amount rather than as a name: it begins with a digit or a dot.

    Example:
        >>> looks_like_an_amount("100M"), looks_like_an_amount("macs=60%"), looks_like_an_amount("fast")
        (True, True, False)
    """
    return re.match(r"\s*(macs\s*=|[+-]?\.?[0-9])", text) is not None


def parse_budget(text: str | float) -> Amount:
    """Mean multiply-adds, with or without their name: macs=100M, 100M, 60%.

    Raises:
        ValueError: see `parse_amount`.

    Example:
        >>> parse_budget("macs=1.5G").value, parse_budget("100M").value
        (1500000000.0, 100000000.0)
    """
    return parse_amount(text.strip().removeprefix("macs=") if isinstance(text, str) else text)


def parse_size(text: str | int) -> int:
    """Bytes from 500k, 10M, 1G, 2MB or a number of them; a unit is 1024 times the one before.

    Raises:
        ValueError: anything else, infinite sizes too, or less than one byte.

    Example:
        >>> parse_size("10M"), parse_size("1.5kB"), parse_size("4096")
        (10485760, 1536, 4096)
    """
    parts = _parts(str(text))
    if parts is None or parts.ending in ("%", "ms"):
        raise ValueError(f"{_quoted(text)} is no size; write one such as 500k, 10M or 1G")
    size = int(parts.number * _SIZES[parts.unit])
    if size < 1:
        raise ValueError(f"a size must be at least one byte, got {text}")
    return size


def size_text(size: float) -> str:
    """Bytes as they are read: three digits, and the largest unit of which there is one.

    Args:
        size: bytes, 0 or more.

    Example:
        >>> size_text(0), size_text(1000), size_text(1023 * 2**10), size_text(1.5 * 2**30)
        ('0 bytes', '1000 bytes', '1023 KiB', '1.5 GiB')
    """
    for unit in "tgmk":
        if size >= _SIZES[unit]:
            number = size / _SIZES[unit]
            shown = (
                f"{number:.3g}" if number < 999.5 else f"{number:.0f}"
            )  # 1e+03 is no number to read
            return f"{shown} {unit.upper()}iB"
    return f"{size:.0f} bytes"


def parse_aim(text: str, kinds: Sequence[str] = tuple(_EXAMPLES)) -> Aim:
    """An aim as typed; see the head of this module.

    Args:
        text: such as ``macs=60%``.
        kinds: those that the caller knows.

    Raises:
        ValueError: an unknown kind, a value that is missing or out of range, points where percent are
            due or the other way round.

    Example:
        >>> parse_aim("accuracy_drop=0.5%")
        Aim(kind='accuracy_drop', value=0.005, relative=False, text='accuracy_drop=0.5%')
        >>> parse_aim("accuracy_drop=0.5")
        Traceback (most recent call last):
        ...
        ValueError: 'accuracy_drop=0.5' has no percent sign: write accuracy_drop=0.5% for half a point
    """
    kind, equals, written = text.partition("=")
    if kind not in kinds or kind not in _EXAMPLES:
        known = ", ".join(_EXAMPLES[aim] for aim in kinds)
        raise ValueError(f"unknown aim {_quoted(text)}{nearest(kind, kinds)}; known: {known}")
    if kind == "best":
        if equals:
            raise ValueError(f"aim 'best' takes no value, got {_quoted(text)}")
        return Aim(kind, None, False, text)
    parts = _parts(written)
    if parts is None or (parts.ending == "%" and parts.unit):
        raise ValueError(f"aim {_quoted(text)} needs a number: write {_EXAMPLES[kind]}")
    if kind in ("macs", "latency"):
        value = _of_cost(kind, parts, text)
    else:
        value = _of_quality(kind, parts, text)
    return Aim(kind, value, kind in ("macs", "latency") and parts.ending == "%", text)


def _of_cost(kind: str, parts: _Parts, text: str) -> float:
    """Multiply-adds, milliseconds, or a part of 1."""
    allowed = ("", "%") if kind == "macs" else ("", "%", "ms")
    if parts.ending not in allowed or (kind == "latency" and parts.unit):
        raise ValueError(f"aim {_quoted(text)} is not understood: write {_EXAMPLES[kind]}")
    value = _scaled(parts)
    if value <= 0:
        raise ValueError(f"aim {_quoted(text)} must be above 0: write {_EXAMPLES[kind]}")
    if parts.ending == "%" and value > 1:
        raise ValueError(
            f"aim {_quoted(text)} is more than what no exits cost: write at most {kind}=100%"
        )
    return value


def _of_quality(kind: str, parts: _Parts, text: str) -> float:
    """A part of 1 for accuracies, points for BLEU and chrF."""
    in_points = kind in ("bleu_drop", "chrf_drop")
    if parts.unit or parts.ending not in ("", "%"):
        raise ValueError(f"aim {_quoted(text)} is not understood: write {_EXAMPLES[kind]}")
    if in_points and parts.ending == "%":
        raise ValueError(
            f"{_quoted(text)} has a percent sign, but {kind} is in points: "
            f"write {kind}={parts.number:g} for {_points(parts.number)}"
        )
    if not in_points and parts.ending != "%":
        what = f" for {_points(parts.number)}" if kind == "accuracy_drop" else ""
        number = parts.number * 100 if kind == "accuracy" and parts.number <= 1 else parts.number
        raise ValueError(f"{_quoted(text)} has no percent sign: write {kind}={number:g}%{what}")
    if parts.number > 100:
        raise ValueError(f"{_quoted(text)} is above 100; write {_EXAMPLES[kind]}")
    return parts.number if in_points else _scaled(parts)


def _points(number: float) -> str:
    return {0.5: "half a point", 1.0: "one point"}.get(number, f"{number:g} points")


def _quoted(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
