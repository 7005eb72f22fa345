"""How results look: mean and spread, tables in Markdown, CSV and on a terminal, the trade-off picture.

The pictures stand on `matplotlib.figure.Figure`: no pyplot, so the caller's backend and figures stay.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import io
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coe_core.support.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

NONE = "-"  # in tables for people: does not apply
WIDTH = 120  # of tables that are not shown on a terminal
MANY = 80  # points at which the curves of several seeds are averaged
_COLOURS = {"CoE": "#c0392b", "cascade": "#2c3e50", "random": "#7f8c8d", "oracle": "#27ae60"}
_OTHER_COLOURS = ("#8e44ad", "#d35400", "#2980b9", "#16a085", "#7f6000")
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "text.parse_math": False,  # names of classes and runs may have a $ in them
}
DOTS_PER_INCH = 130
_FONTS_OF_MORE_LETTERS = (  # whichever are installed, behind matplotlib's own
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "WenQuanYi Zen Hei", "Source Han Sans"),
    *("Droid Sans Fallback", "Arial Unicode MS", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic"),
)


class Spread(NamedTuple):
    """Several seeds in two numbers."""

    mean: float | None  # None: no value at all
    spread: float | None  # sample standard deviation; None with fewer than two values
    count: int  # type: ignore[assignment]  # in place of tuple's method, which nobody calls

    def shown(self, digits: int = 2) -> str:
        """Such as "81.3 ± 0.2".

        Example:
            >>> mean_and_spread([81.1, 81.5]).shown(1), mean_and_spread([None]).shown()
            ('81.3 ± 0.3', '-')
        """
        if self.mean is None:
            return NONE
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


def mean_and_spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation of the values that there are: None and NaN are left out.

    Example:
        >>> mean_and_spread([1.0, 3.0, None])
        Spread(mean=2.0, spread=1.4142135623730951, count=2)
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    return Spread(
        statistics.fmean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
        len(known),
    )


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """A table for documents; the columns ``left`` are aligned to the left, the others to the right.

    Example:
        >>> print(markdown_table(["name", "%"], [["a|b", "3"]]), end="")
        | name | % |
        | --- | ---: |
        | a\\|b | 3 |
    """
    rule = ["---" if place in left else "---:" for place in range(len(headings))]
    lines = [headings, rule, *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def csv_text(headings: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 6) -> str:
    """A table for spreadsheets: plain numbers with so many significant digits; None is empty.

    Example:
        >>> csv_text(["name", "macs"], [["a, b", 1234567.0], ["c", None]])
        'name,macs\\n"a, b",1.23457e+06\\nc,\\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headings)
    for row in rows:
        writer.writerow([f"{v:.{digits}g}" if isinstance(v, float) else v for v in row])
    return out.getvalue()


def rich_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    title: str | None = None,
    *,
    left: Sequence[int] = (0,),
    bold: Sequence[int] = (),
    no_wrap: bool = False,
) -> Table:
    """A table for a terminal.

    Args:
        headings: of the columns.
        rows: cells, plain texts or rich's.
        title: above the table.
        left: columns that are aligned to the left.
        bold: rows that stand out.
        no_wrap: cut cells where the terminal is narrow, rather than break them.

    Example:
        >>> rich_table(["name", "%"], [["a", "3"]]).row_count
        1
    """
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: names of files and classes may hold brackets.
    table = Table(title=None if title is None else Text(title), title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(
            Text(heading), justify="left" if place in left else "right", no_wrap=no_wrap
        )
    for number, row in enumerate(rows):
        cells = [cell if isinstance(cell, Text) else Text(cell) for cell in row]
        table.add_row(*cells, style="bold" if number in bold else None)
    return table


def print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, or as it needs where there is none."""
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


class Curve(NamedTuple):
    """A predictor with thresholds: its quality against its cost, once for each seed."""

    name: str
    runs: Sequence[tuple[Sequence[float], Sequence[float]]]  # (costs, qualities) of every run
    without_exits: Sequence[tuple[float, float]] = ()  # points of their own, one of every run


class Point(NamedTuple):
    """A predictor without thresholds."""

    name: str
    cost: float
    quality: float
    spread: float | None = None


class Panel(NamedTuple):
    """One pair of axes."""

    cost_label: str
    quality_label: str
    curves: Sequence[Curve]
    points: Sequence[Point]
    is_log: bool = False  # axis of the cost
    ticks: Sequence[float] = ()  # on a logarithmic axis; those too near to another are left out


def draw_trade_off(path: str | Path, title: str, panels: Sequence[Sequence[Panel]]) -> None:
    """Quality against cost, written as PNG: curves with their spread over seeds, points of the rest.

    Args:
        path: file to write.
        title: of the picture.
        panels: rows of pairs of axes.
    """
    with figure_to(path, size=(8.2, 4.8) if len(panels[0]) == 1 else (12.5, 8)) as figure:
        grid = figure.subplots(len(panels), len(panels[0]), squeeze=False, sharey="row")
        for axes, panel in zip(grid.flat, itertools.chain(*panels), strict=True):
            _draw_panel(axes, panel)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside right center")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    others = itertools.cycle(_OTHER_COLOURS)
    for curve in panel.curves:
        colour = _COLOURS.get(curve.name) or next(others)
        costs, bands = averaged(curve.runs)
        style = "--" if curve.name == "oracle" else "-"
        means = [statistics.fmean(band) for band in bands]
        axes.plot(costs, means, style, color=colour, lw=2, label=curve.name)
        if len(curve.runs) > 1:
            spreads = [statistics.stdev(band) for band in bands]
            low, high = (
                [mean + sign * spread for mean, spread in zip(means, spreads, strict=True)]
                for sign in (-1, 1)
            )
            axes.fill_between(costs, low, high, color=colour, alpha=0.15, lw=0)
        for place, (cost, quality) in enumerate(curve.without_exits):
            label = f"{curve.name}, no exits" if place == 0 else None
            axes.plot(cost, quality, "D", color=colour, ms=6, alpha=0.8, label=label)
    markers = itertools.cycle("sD^vPX*<>phd")
    for point in panel.points:
        axes.errorbar(
            point.cost,
            point.quality,
            yerr=point.spread,
            fmt=next(markers),
            ms=6,
            capsize=2,
            label=point.name,
        )
    axes.set_xlabel(panel.cost_label + (" (log scale)" if panel.is_log else ""))
    axes.set_ylabel(panel.quality_label)
    if panel.is_log:
        _set_log_axis(axes, panel.ticks)


def _set_log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import FormatStrFormatter

    axes.set_xscale("log")
    in_order = sorted(set(ticks))
    apart: list[float] = []
    for x in in_order:  # a label with a gap takes about a seventh of the axis
        if not apart or x > max(1.25, (in_order[-1] / in_order[0]) ** (1 / 7)) * apart[-1]:
            apart.append(x)
    if apart:
        axes.set_xticks(apart)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%.3g"))
    axes.minorticks_off()


class Averaged(NamedTuple):
    """Curves of several runs at common costs."""

    costs: list[float]
    qualities: list[list[float]]  # at every cost, one of every run


def averaged(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Averaged:
    """Curves at costs that all of them reach, linear between their points; one curve stays as it is.

    Example:
        >>> averaged([([0.0, 2.0], [0.0, 4.0]), ([1.0, 3.0], [1.0, 1.0])]).qualities[-1]
        [4.0, 1.0]
    """
    ordered = [sorted(zip(costs, qualities, strict=True)) for costs, qualities in runs]
    if len(ordered) == 1:
        return Averaged([c for c, _ in ordered[0]], [[q] for _, q in ordered[0]])
    low = max(curve[0][0] for curve in ordered)
    high = min(curve[-1][0] for curve in ordered)
    costs = [low + (high - low) * step / (MANY - 1) for step in range(MANY)]
    return Averaged(costs, [[interpolated(curve, cost) for curve in ordered] for cost in costs])


def interpolated(curve: Sequence[tuple[float, float]], cost: float) -> float:
    """Quality at a cost, linear between the curve's points and constant outside of them.

    Args:
        curve: (cost, quality), in rising order of cost.
        cost: where.

    Example:
        >>> interpolated([(1.0, 10.0), (3.0, 20.0)], 2.0), interpolated([(1.0, 10.0)], 5.0)
        (15.0, 10.0)
    """
    place = bisect.bisect_right(curve, cost, key=lambda point: point[0])
    if place == 0:
        return curve[0][1]
    if place == len(curve):
        return curve[-1][1]
    (left, below), (right, above) = curve[place - 1], curve[place]
    return below + (above - below) * (cost - left) / (right - left)


@contextlib.contextmanager
def figure_to(
    path: str | Path, size: tuple[float, float], style: dict[str, Any] | None = None
) -> Iterator[Figure]:
    """An empty figure in the look of all our pictures, written as a file at the end.

    Args:
        path: file to write; its ending decides the format.
        size: width and height in inches.
        style: further settings of matplotlib for this figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**_STYLE, "font.family": _fonts(), **(style or {})}
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=DOTS_PER_INCH)
    missing = dict.fromkeys(filter(None, (_missing_letter(str(w.message)) for w in caught)))
    for warning in caught:
        if _missing_letter(str(warning.message)) is None:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if missing:  # one line for all of them; matplotlib has one for each letter at each place
        letters = "".join(list(missing)[:20])
        warnings.warn(
            f"{path}: no installed font has {letters}, drawn as boxes; install one that has, such as Noto "
            "Sans CJK",
            stacklevel=3,
        )


def _missing_letter(message: str) -> str | None:
    match = re.match(r"Glyph (\d+) .* missing from", message)
    return chr(int(match[1])) if match else None


def _fonts() -> list[str]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FONTS_OF_MORE_LETTERS if name in installed)]
