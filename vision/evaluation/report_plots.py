"""Plots of the report as numbers on a drawing: the page draws them as SVG, so that they need no library."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vision.data.bands import to_be_seen

WIDTH, HEIGHT = 640.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 14.0, 44.0  # margins
THUMBNAIL = 96  # pixels of a picture's side, at most
_SMALL = 48  # up to here pictures are kept exactly


class Tick(NamedTuple):
    """A number on an axis."""

    place: float
    text: str


class Axis(NamedTuple):
    """Numbers to places along one side of the drawing."""

    low: float
    high: float
    start: float  # place of low
    end: float  # place of high
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, rounded as far as one can see."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[Tick]:
        """Round numbers in its range."""
        if self.is_log:
            return [Tick(self.place(value), f"{value:g}") for value in self._log_ticks()]
        raw = (self.high - self.low) / count or 1.0
        power = 10 ** math.floor(math.log10(raw))
        step = power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * power - raw))
        first = math.ceil(self.low / step - 1e-9)
        values = [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [Tick(self.place(value), f"{value:.6g}") for value in values]

    def _log_ticks(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        return [value for value in values if self.low <= value <= self.high]


class Dot(NamedTuple):
    """A predictor on the plot."""

    name: str
    x: float  # place
    y: float  # place
    says: str  # in words, for hover, keyboard and screen readers


class Line(NamedTuple):
    """A curve on the plot; its dots can be walked along."""

    name: str
    dots: list[Dot]

    @property
    def points(self) -> str:
        """As SVG has them."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.dots)


class Plot(NamedTuple):
    """A drawing of `WIDTH` by `HEIGHT`."""

    x: Axis
    y: Axis
    lines: list[Line]
    dots: list[Dot]


class Series(NamedTuple):
    """What is drawn as a curve: cost, quality in percent, and words, of each point."""

    name: str
    points: list[tuple[float, float, str]]


def trade_off_plot(
    curves: Sequence[Series], points: Sequence[tuple[str, float, float, str]]
) -> Plot:
    """Accuracy over multiply-adds, the latter on a logarithmic scale.

    Args:
        curves: of the systems with exits.
        points: name, cost, quality and words of each system without.
    """
    costs = [cost for series in curves for cost, _, _ in series.points] + [p[1] for p in points]
    qualities = [y for series in curves for _, y, _ in series.points] + [p[2] for p in points]
    pad = max(0.5, 0.06 * (max(qualities) - min(qualities)))
    x = Axis(min(costs) / 1.1, max(costs) * 1.1, LEFT, WIDTH - RIGHT, is_log=True)
    low, high = max(0.0, min(qualities) - pad), min(100.0, max(qualities) + pad)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP)
    lines = [
        Line(s.name, [Dot(s.name, x.place(c), y.place(q), words) for c, q, words in s.points])
        for s in curves
    ]
    dots = [Dot(name, x.place(cost), y.place(q), words) for name, cost, q, words in points]
    return Plot(x, y, lines, dots)


def thumbnail(pixels: UInt8[Tensor, "ch h w"]) -> str:
    """A picture as a data: address: small ones exactly, others as JPEG of at most `THUMBNAIL` pixels."""
    picture, content = to_be_seen(pixels), io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(content, "png", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        picture.save(content, "jpeg", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
