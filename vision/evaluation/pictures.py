"""The pictures beside the table: the trade-off curve with all controls, and who gets which classes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from coe_core import TradeOffCurve
from coe_core.support import reports
from coe_core.support.reports import Curve, Panel, Point, figure_to
from vision.evaluation.summary import SummaryRow

_NOT_AN_OPERATING_POINT = ("CoE at", "CoE no", "cascade")
MOST_CLASSES = 40  # of a picture: ImageNet would not fit a page
LETTERS = 13  # of a title to the inch
LONGEST_NAME = 40  # letters of a class on an axis


def draw_trade_off(
    path: Path,
    title: str,
    curves: Mapping[str, Sequence[TradeOffCurve]],
    rows: Sequence[SummaryRow],
) -> None:
    """Accuracy against mean MACs: a curve per two-stage predictor, a point per control.

    Args:
        path: PNG file to write.
        title: of the picture.
        curves: "CoE" and "cascade" -> one curve per run, on the test data.
        rows: of the table; those that are no point of a curve are drawn as points.
    """
    drawn = [
        Curve(name, [((c.cost / 1e6).tolist(), (100 * c.quality).tolist()) for c in runs])
        for name, runs in curves.items()
    ]
    points = [
        Point(row.name, row.macs / 1e6, row.accuracy, row.spread)
        for row in rows
        if row.accuracy is not None and not row.name.startswith(_NOT_AN_OPERATING_POINT)
    ]
    panel = Panel(
        "mean multiply-adds per image, millions",
        "top-1 accuracy, %",
        drawn,
        points,
        is_log=True,
        ticks=[row.macs / 1e6 for row in rows],
    )
    reports.draw_trade_off(path, title, [[panel]])


def draw_selection(
    path: Path,
    title: str,
    classes: Sequence[str],
    target: Tensor,
    selected_expert: Tensor,
    num_experts: int,
) -> None:
    """Which classes go to which expert: share of each class's samples that selects each expert.

    Args:
        path: PNG file to write.
        title: of the picture.
        classes: names.
        target: label of each test sample.
        selected_expert: expert of each test sample, exits included.
        num_experts: k.
    """
    counts = torch.zeros(len(classes), num_experts)
    counts.index_put_((target, selected_expert), torch.ones(len(target)), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    order = torch.argsort(share.argmax(1) - share.amax(1), stable=True)  # clearest first, by expert
    shown = order[:MOST_CLASSES]
    size = (2.6 + 0.75 * num_experts, 1.4 + 0.3 * len(shown))
    with figure_to(path, size, {"axes.grid": False}) as figure:
        axes = figure.subplots()
        axes.imshow((100 * share[shown]).numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for row, index in enumerate(shown.tolist()):
            for j in range(num_experts):
                value = float(100 * share[index, j])
                colour = "white" if value > 60 else "black"
                axes.text(
                    j, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour
                )
        axes.set_xticks(range(num_experts), [f"expert {j}" for j in range(num_experts)], fontsize=8)
        names = [_shortened(classes[index]) for index in shown.tolist()]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        if len(shown) < len(order):
            title += f"; the clearest {len(shown)} of {len(order)} classes"
        figure.suptitle(textwrap.fill(title, int(LETTERS * size[0])), x=0.02, ha="left", fontsize=9)


def _shortened(name: str) -> str:
    """A class's name as it fits beside a picture, in one line."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 3]}..."
