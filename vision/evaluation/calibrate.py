"""Fit every system of a run on its held-out data, choose the one to deploy, and keep both with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from coe_core import (
    AimNotReachableError,
    CalibratedCurve,
    Candidate,
    Choice,
    OperatingPoint,
    StageCost,
    choose,
    choose_guaranteed,
    fit_systems,
)
from coe_core.calibration import AimKind
from coe_core.exit_rules import ExitKind
from coe_core.support.aims import Aim, parse_aim
from vision.data.load import ImageData
from vision.evaluation.predictions import Predictions, predict_all
from vision.evaluation.stages import HeldOutSystem, held_out_systems
from vision.evaluation.timing import milliseconds_per_image
from vision.precision import choose_precision, under_autocast
from vision.recipe_networks import RunMacs, run_macs
from vision.run import Run
from vision.systems import COE, System, build_system, find_system

AIMS = get_args(AimKind)
LEVEL = 0.05  # of the test by which a system is worse than the best
_LATENCY_IMAGES = 256


def calibrate(
    run: Run,
    data: ImageData,
    aims: Sequence[str],
    *,
    guarantee: float | None = None,
    confidence: ExitKind = "max_probability",
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    level: float = LEVEL,
    system: str | None = None,
) -> list[OperatingPoint]:
    """Fit every system to every aim on the validation split, choose one, and store it with the run.

    Args:
        run: to calibrate; its operating_points.json and trade_off_curve.json are updated.
        data: whose validation split is used, never the test split.
        aims: see `coe_core.support.aims`, such as macs=60%: of what the collaboration costs without exits.
        guarantee: for accuracy_drop: probability with which the drop holds on new data (OURS).
        confidence: what exits are decided by; for gain every second sample fits the rule, the others
            the thresholds, so that the guarantee holds.
        names: of the operating points; None names each by its aim.
        batch_size: at which latency is measured; None: 64.
        level: of the paired test, see `coe_core.choose`.
        system: the one to use; None: whichever is best.

    Returns:
        The points that are used: those of the systems chosen, see `Run.stored` for the others and why.

    Raises:
        ValueError: unknown aim, a guarantee or a batch size that no aim has a use for, or a level outside
            (0, 1].
        RunError: the run holds no such system.
        AimNotReachableError: no system reaches an aim; names the one that comes nearest.
    """
    parsed = [parse_aim(text, AIMS) for text in aims]
    kinds = {aim.kind for aim in parsed}
    if guarantee is not None and kinds != {"accuracy_drop"}:
        raise ValueError("a guarantee is defined for accuracy_drop=... only")
    if batch_size is not None and "latency" not in kinds:
        raise ValueError("a batch size is for latency=... only: no other aim is timed")
    only = None if system is None else find_system(run.recipe, system)
    precision = choose_precision(run.recipe.train.precision)
    predictions = predict_all(run.networks, data.validation, precision, "validation data")
    predictions.check_team(str(run.folder))
    macs = run_macs(run.networks)
    systems, predictions = held_out_systems(predictions, macs, confidence)
    if only is not None:
        systems = {only: systems[only]}
    if "latency" in kinds:
        built = {name: build_system(run.networks, macs, name) for name in systems}
        systems = _with_latency(run, data, systems, built, predictions, batch_size or 64)
    provenance: dict[str, Any] = {
        "num_samples": len(predictions.target),
        "data": f"{run.recipe.data.name}, validation split",
    }
    fitted = []
    for aim in parsed:
        try:
            fitted.append(_fit(systems, aim, guarantee, level))
        except AimNotReachableError as error:
            raise AimNotReachableError(f"{aim.text}: {error}; nothing was stored") from error
    for name, aim, fit in zip(names or aims, parsed, fitted, strict=True):
        points = _points(run, systems, aim, fit, name=name, guarantee=guarantee, **provenance)
        run.store(name, points, fit.choice)
    date = next(iter(run.operating_points.values())).date
    run.store_curves(
        {
            name: CalibratedCurve.from_curve(
                entry.stage.curve(cost="macs"),
                date=date,
                rough_weight=entry.rough_weight,
                **_fitted_with(run, entry),
                **provenance,
            )
            for name, entry in systems.items()
        }
    )
    return [run.operating_points[name] for name in names or aims]


class _Fit(NamedTuple):
    """What serves an aim."""

    choice: Choice
    at: dict[str, int]  # of each system that reaches it, the point on its curve
    value: float | None  # of the aim, absolute


def _unit(aim: Aim) -> str:
    return "ms" if aim.kind == "latency" else "macs"


def _fit(
    systems: Mapping[str, HeldOutSystem], aim: Aim, guarantee: float | None, level: float
) -> _Fit:
    unit = _unit(aim)
    candidates = {name: Candidate(entry.stage, entry.parts) for name, entry in systems.items()}
    if guarantee is not None and aim.value is not None:
        chosen, index = choose_guaranteed(candidates, aim.value, guarantee, cost=unit, level=level)
        return _Fit(chosen, index, aim.value)
    value = aim.absolute(_cost_without_exits(systems, unit))
    kind = cast(AimKind, aim.kind)
    choice = choose(candidates, kind, value, cost=unit, level=level)
    stages = {name: entry.stage for name, entry in systems.items()}
    return _Fit(choice, fit_systems(stages, kind, value, cost=unit), value)


def _cost_without_exits(systems: Mapping[str, HeldOutSystem], unit: str) -> float:
    """What a part is of: the collaboration's, in a run without one that of its dearest system."""
    costs = {name: entry.stage.at(torch.inf).cost[unit] for name, entry in systems.items()}
    return costs.get(COE, max(costs.values()))


def _fitted_with(run: Run, system: HeldOutSystem) -> dict[str, Any]:
    return {"fitted_with": run.fitted_with(system.rule), "exit_rule": system.rule}


def _points(
    run: Run, systems: Mapping[str, HeldOutSystem], aim: Aim, fit: _Fit, **provenance: Any
) -> dict[str, OperatingPoint]:
    unit = _unit(aim)
    return {
        system: OperatingPoint.at_index(
            systems[system].stage.curve(cost=unit),
            index,
            aim=aim.kind,
            value=fit.value,
            cost_unit=unit,
            rough_weight=systems[system].rough_weight,
            **_fitted_with(run, systems[system]),
            **provenance,
        )
        for system, index in fit.at.items()
    }


def default_points(run: Run, data: ImageData, system: str | None = None) -> list[OperatingPoint]:
    """What `train` stores: "best" accuracy, "drop" (at most 0.5 points), "half" of the expert's MACs.

    Args:
        run: with a collaboration.
        data: whose validation split is used.
        system: the one to use; None: whichever is best.
    """
    macs: RunMacs = run_macs(run.networks)
    aims = ["best", "accuracy_drop=0.5%", f"macs={macs.delegator + macs.expert / 2:.0f}"]
    return calibrate(run, data, aims, names=["best", "drop", "half"], system=system)


def _with_latency(
    run: Run,
    data: ImageData,
    systems: Mapping[str, HeldOutSystem],
    built: Mapping[str, System],
    predictions: Predictions,
    batch_size: int,
) -> dict[str, HeldOutSystem]:
    """The same systems, their cost also in milliseconds: each network timed alone on validation images."""
    count = min(_LATENCY_IMAGES, len(data.validation))
    images = torch.stack([data.validation[i]["image"] for i in range(count)])
    precision = choose_precision(run.recipe.train.precision)
    prepared = run.networks.prepare(images.to(run.networks.device))
    networks: dict[tuple[str, int], nn.Module] = {}  # system and place -> network; place 0 sees all
    features: dict[tuple[str, int], Tensor] = {}
    for name, system in built.items():
        if system.team is None:
            networks[name, 0] = cast(nn.Module, system.network)
            continue
        networks[name, 0] = system.team.delegator
        with torch.inference_mode():
            seen = system.team.features(prepared)
        for j, expert in enumerate(system.team.experts):
            networks[name, j + 1], features[name, j + 1] = expert, seen
    times = milliseconds_per_image(
        {str(place): under_autocast(network, precision) for place, network in networks.items()},
        prepared,
        min(batch_size, len(images)),
        rounds=7,
        others={str(place): seen for place, seen in features.items()},
    )
    timed = {}
    for name, entry in systems.items():
        costs = [time for place, time in times.items() if place.startswith(f"({name!r}, ")]
        second = torch.zeros(len(predictions.target), dtype=torch.float64)
        if len(costs) > 1:
            selected = predictions.selected_expert if name == COE else second.long()
            second = torch.tensor(costs[1:], dtype=torch.float64)[selected]
        stage = replace(entry.stage, costs={**entry.stage.costs, "ms": StageCost(costs[0], second)})
        timed[name] = entry._replace(stage=stage)
    return timed
