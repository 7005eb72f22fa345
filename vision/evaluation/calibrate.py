"""Fit thresholds of a run on its held-out data and keep them with the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import Tensor

from coe_core import (
    CalibratedCurve,
    OperatingPoint,
    StageCost,
    TwoStage,
    controlled_threshold,
    fit_threshold,
)
from coe_core.calibration import AimKind
from coe_core.exit_rules import ExitKind
from coe_core.support.aims import parse_aim
from vision.data.load import ImageData
from vision.evaluation.predictions import predict_all
from vision.evaluation.stages import coe_logits, fit_held_out
from vision.evaluation.timing import milliseconds_per_image
from vision.precision import choose_precision, under_autocast
from vision.recipe_networks import RunMacs, run_macs
from vision.run import Run

AIMS = get_args(AimKind)


def calibrate(
    run: Run,
    data: ImageData,
    aims: Sequence[str],
    *,
    guarantee: float | None = None,
    confidence: ExitKind = "max_probability",
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> list[OperatingPoint]:
    """Fit a threshold for every aim on the validation split and store them with the run.

    Args:
        run: to calibrate; its operating_points.json is updated.
        data: whose validation split is used, never the test split.
        aims: see `coe_core.support.aims`, such as macs=60%.
        guarantee: for accuracy_drop: probability with which the drop holds on new data (OURS).
        confidence: what exits are decided by; for gain every second sample fits the rule, the others
            the thresholds, so that the guarantee holds.
        names: of the operating points; None names each by its aim.
        batch_size: at which latency is measured; None: 64.

    Raises:
        ValueError: unknown aim, or a guarantee or a batch size that no aim has a use for.
        AimNotReachableError: no threshold reaches an aim.
    """
    parsed = [parse_aim(text, AIMS) for text in aims]
    kinds = {aim.kind for aim in parsed}
    if guarantee is not None and kinds != {"accuracy_drop"}:
        raise ValueError("a guarantee is defined for accuracy_drop=... only")
    if batch_size is not None and "latency" not in kinds:
        raise ValueError("a batch size is for latency=... only: no other aim is timed")
    precision = choose_precision(run.recipe.train.precision)
    predictions = predict_all(run.networks, data.validation, precision, "validation data")
    predictions.check_team(str(run.folder))
    logits_of = partial(coe_logits, macs=run_macs(run.networks))
    rough_weight, rule, predictions, stage = fit_held_out(predictions, logits_of, confidence)
    if "latency" in kinds:
        stage = _with_latency(run, data, stage, predictions.selected_expert, batch_size or 64)
    provenance: dict[str, Any] = {
        "num_samples": len(predictions.target),
        "data": f"{run.recipe.data.name}, validation split",
        "rough_weight": rough_weight,
        "fitted_with": run.fitted_with(rule),
        "exit_rule": rule,
    }
    points = []
    for name, aim in zip(names or aims, parsed, strict=True):
        unit = "ms" if aim.kind == "latency" else "macs"
        curve = stage.curve(cost=unit)
        value = aim.absolute(float(curve.cost[0]))
        if guarantee is None:
            index = fit_threshold(curve, cast(AimKind, aim.kind), value)
        else:
            assert value is not None, "of accuracy_drop"
            rough_right, final_right, _ = stage.qualities["accuracy"]
            threshold = controlled_threshold(
                stage.confidence, rough_right[:, 0], final_right[:, 0], value, guarantee
            )
            index = int(torch.nonzero(curve.threshold == threshold).flatten()[0])
        points.append(
            OperatingPoint.at_index(
                curve,
                index,
                name=name,
                aim=aim.kind,
                value=value,
                cost_unit=unit,
                guarantee=guarantee,
                **provenance,
            )
        )
    for point in points:
        run.store(point)
    run.store_curve(CalibratedCurve.from_curve(stage.curve(), date=points[0].date, **provenance))
    return points


def default_points(run: Run, data: ImageData) -> list[OperatingPoint]:
    """What `train` stores: "best" accuracy, "drop" (at most 0.5 points), "half" of the expert's MACs."""
    macs: RunMacs = run_macs(run.networks)
    half = f"macs={macs.delegator + macs.expert / 2:.0f}"
    return calibrate(
        run, data, ["best", "accuracy_drop=0.5%", half], names=["best", "drop", "half"]
    )


def _with_latency(
    run: Run, data: ImageData, stage: TwoStage, selected_expert: Tensor, batch_size: int
) -> TwoStage:
    """The same predictor, its cost also in milliseconds: each network timed alone on validation images."""
    images = torch.stack(
        [data.validation[i]["image"] for i in range(min(256, len(data.validation)))]
    )
    precision = choose_precision(run.recipe.train.precision)
    team = run.networks.required_team

    networks = {"delegator": under_autocast(team.delegator, precision)}
    networks |= {str(j): under_autocast(expert, precision) for j, expert in enumerate(team.experts)}
    prepared = run.networks.prepare(images.to(run.networks.device))
    with torch.inference_mode():
        features = team.features(prepared)
    times = milliseconds_per_image(
        networks,
        prepared,
        min(batch_size, len(images)),
        rounds=7,
        others={str(j): features for j in range(team.num_experts)},
    )
    experts = torch.tensor([times[str(j)] for j in range(team.num_experts)], dtype=torch.float64)
    cost = StageCost(times["delegator"], experts[selected_expert])
    return replace(stage, costs={**stage.costs, "ms": cost})
