"""The pictures beside the table: the trade-off curve with all controls, and who gets which classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from coe_core import TradeOffCurve
from vision.evaluation.table import Summary

_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "figure.dpi": 130,
    "text.parse_math": False,  # classes and runs may have a $ in their names
}
_NOT_AN_OPERATING_POINT = ("CoE at", "CoE no", "cascade")


def _accuracy_at(curves: Sequence[TradeOffCurve], macs: Tensor) -> Tensor:
    """Accuracy of each curve, in percent, interpolated to common costs: [curves, costs]."""
    lines = []
    for curve in curves:
        order = torch.argsort(curve.cost)
        cost, quality = curve.cost[order].numpy(), curve.quality[order].numpy()
        lines.append(torch.from_numpy(100 * np.interp(macs.numpy(), cost, quality)))
    return torch.stack(lines)


def draw_trade_off(
    path: Path,
    title: str,
    curves: dict[str, Sequence[TradeOffCurve]],
    lines: Sequence[Summary],
) -> None:
    """Accuracy against mean MACs: a curve per two-stage predictor, a point per control.

    Args:
        path: PNG file to write.
        title: of the picture.
        curves: "CoE" and "cascade" -> one curve per run, on the test data.
        lines: of the table; those that are no point of a curve are drawn as points.
    """
    colours = {"CoE": "#c0392b", "cascade": "#2c3e50"}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 4.8), layout="constrained")
        for name, runs in curves.items():
            low = max(float(curve.cost.min()) for curve in runs)
            high = min(float(curve.cost.max()) for curve in runs)
            macs = torch.linspace(low, high, 200, dtype=torch.float64)
            accuracy = _accuracy_at(runs, macs)
            axes.plot(macs / 1e6, accuracy.mean(0), color=colours.get(name), lw=2, label=name)
            if len(runs) > 1:
                spread = accuracy.std(0)
                axes.fill_between(
                    macs / 1e6,
                    accuracy.mean(0) - spread,
                    accuracy.mean(0) + spread,
                    color=colours.get(name),
                    alpha=0.15,
                    lw=0,
                )
        markers = itertools.cycle("sD^vPX*<>phd")
        for line in lines:
            if line.name.startswith(_NOT_AN_OPERATING_POINT):
                continue
            axes.errorbar(
                line.macs / 1e6,
                line.accuracy,
                yerr=line.spread,
                fmt=next(markers, "o"),
                ms=6,
                capsize=2,
                label=line.name,
            )
        axes.set_xlabel("mean multiply-adds per image, millions (log scale)")
        axes.set_xscale("log")
        ticks = sorted({line.macs / 1e6 for line in lines})
        axes.set_xticks([x for i, x in enumerate(ticks) if i == 0 or x > 1.25 * ticks[i - 1]])
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
        axes.minorticks_off()
        axes.set_ylabel("top-1 accuracy, %")
        axes.set_title(title, loc="left")
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path)
        plt.close(figure)


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
    shown = order[:40]  # ImageNet would not fit a page
    with plt.rc_context({**_STYLE, "axes.grid": False}):
        size = (2.6 + 0.75 * num_experts, 1.4 + 0.3 * len(shown))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.imshow(100 * share[shown], cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for row, index in enumerate(shown.tolist()):
            for j in range(num_experts):
                value = float(100 * share[index, j])
                axes.text(
                    j,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 60 else "black",
                )
        axes.set_xticks(range(num_experts), [f"expert {j}" for j in range(num_experts)], fontsize=8)
        axes.set_yticks(range(len(shown)), [classes[i] for i in shown.tolist()], fontsize=8)
        axes.set_title(title, loc="left", fontsize=9)
        figure.savefig(path)
        plt.close(figure)
