"""Fit thresholds of a run on its held-out data and keep them with the run."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch

from coe_core import (
    OperatingPoint,
    TradeOffCurve,
    controlled_threshold,
    fit_rough_weight,
    fit_threshold,
    trade_off_curve,
)
from coe_core.calibration import Aim
from vision.data.section import ImageData
from vision.evaluation.predictions import RunMacs, predict_all, run_macs
from vision.evaluation.table import TwoStage, coe_logits
from vision.evaluation.timing import milliseconds_per_image
from vision.precision import choose_precision, under_autocast
from vision.prediction.budgets import CalibratedCurve
from vision.run import Run

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "%": 0.01}
_VALUED = ("macs", "latency", "accuracy_drop", "accuracy")


def parse_aim(text: str) -> tuple[Aim, float | None]:
    """An aim as typed: best, macs=100M, latency=0.3 (ms per image), accuracy_drop=0.5%, accuracy=90%.

    Raises:
        ValueError: anything else, saying what is known.

    Example:
        >>> parse_aim("macs=2.5M"), parse_aim("accuracy_drop=0.5%"), parse_aim("best")
        (('macs', 2500000.0), ('accuracy_drop', 0.005), ('best', None))
    """
    aim, equals, value = text.partition("=")
    if aim == "best" and not equals:
        return "best", None
    if aim in _VALUED and value:
        number, unit = (
            (value[:-1], value[-1].lower()) if value[-1].lower() in _UNITS else (value, "")
        )
        try:
            parsed = round(float(number) * _UNITS.get(unit, 1.0), 12)
        except ValueError:
            parsed = -1.0
        if aim.startswith("accuracy") and parsed > 1:
            raise ValueError(f"{text!r} is above 1; with a percent sign: {text.rstrip('%')}%")
        if parsed >= 0:
            return aim, parsed
    raise ValueError(
        f"unknown aim {text!r}; known: best, macs=100M, latency=0.3 (milliseconds per image), "
        "accuracy_drop=0.5%, accuracy=90%"
    )


def calibrate(
    run: Run,
    data: ImageData,
    aims: Sequence[str],
    *,
    guarantee: float | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 64,
) -> list[OperatingPoint]:
    """Fit a threshold for every aim on the validation split and store them with the run.

    Args:
        run: to calibrate; its operating_points.json is updated.
        data: whose validation split is used, never the test split.
        aims: see `parse_aim`.
        guarantee: for accuracy_drop: probability with which the drop holds on new data (OURS).
        names: of the operating points; None names each by its aim.
        batch_size: at which latency is measured.

    Raises:
        ValueError: unknown aim, or a guarantee for an aim that has none.
        AimNotReachableError: no threshold reaches an aim.
    """
    parsed = [parse_aim(aim) for aim in aims]
    if guarantee is not None and any(aim != "accuracy_drop" for aim, _ in parsed):
        raise ValueError("a guarantee is defined for accuracy_drop=... only")
    precision = choose_precision(run.recipe.train.precision)
    predictions = predict_all(run.networks, data.validation, precision, "validation data")
    rough_weight = fit_rough_weight(*coe_logits(predictions), predictions.target)
    stage = TwoStage.coe(predictions, run_macs(run.networks), rough_weight)
    in_macs = stage.curve()
    in_milliseconds: TradeOffCurve | None = None
    points = []
    for name, text, (aim, value) in zip(names or aims, aims, parsed, strict=True):
        curve = in_macs
        if aim == "latency":
            if in_milliseconds is None:
                in_milliseconds = _latency_curve(
                    run, data, stage, predictions.selected_expert, batch_size
                )
            curve = in_milliseconds
        if guarantee is None:
            index = fit_threshold(curve, aim, value)
        else:
            limit = controlled_threshold(
                stage.sureness, stage.rough_right, stage.final_right, value, guarantee
            )
            index = int(torch.nonzero(curve.threshold == limit).flatten()[0])
        points.append(
            OperatingPoint(
                name=name,
                threshold=float(curve.threshold[index]),
                aim=text.partition("=")[0],
                value=value,
                exit_rate=float(curve.exit_rate[index]),
                quality=float(curve.quality[index]),
                cost=float(curve.cost[index]),
                cost_unit="ms" if aim == "latency" else "macs",
                num_samples=len(data.validation),
                data=f"{run.recipe.data.name}, validation split",
                date=datetime.date.today().isoformat(),
                guarantee=guarantee,
                rough_weight=rough_weight,
            )
        )
    for point in points:
        run.store(point)
    provenance = {name: getattr(points[0], name) for name in ("num_samples", "data", "date")}
    run.store_curve(CalibratedCurve.from_curve(in_macs, rough_weight=rough_weight, **provenance))
    return points


def default_points(run: Run, data: ImageData) -> list[OperatingPoint]:
    """What `train` stores: "best" accuracy, "drop" (at most 0.5 points), "half" of the expert's MACs."""
    macs: RunMacs = run_macs(run.networks)
    half = f"macs={macs.delegator + macs.expert / 2:.0f}"
    return calibrate(
        run, data, ["best", "accuracy_drop=0.5%", half], names=["best", "drop", "half"]
    )


def _latency_curve(
    run: Run, data: ImageData, stage: TwoStage, selected_expert: torch.Tensor, batch_size: int
) -> TradeOffCurve:
    """Trade-off in measured milliseconds: each network timed alone on validation images."""
    images = torch.stack(
        [data.validation[i]["image"] for i in range(min(256, len(data.validation)))]
    )
    precision = choose_precision(run.recipe.train.precision)
    team = run.networks.team

    networks = {"delegator": under_autocast(team.delegator, precision)}
    networks |= {str(j): under_autocast(expert, precision) for j, expert in enumerate(team.experts)}
    times = milliseconds_per_image(
        networks,
        run.networks.prepare(images.to(run.networks.device)),
        min(batch_size, len(images)),
        rounds=7,
    )
    experts = torch.tensor([times[str(j)] for j in range(team.num_experts)], dtype=torch.float64)
    return trade_off_curve(
        stage.sureness,
        stage.rough_right,
        stage.final_right,
        times["delegator"],
        experts[selected_expert],
    )
