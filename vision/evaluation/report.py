"""A run as one page to look at: what is deployed and why, its errors, its reliability, its routes."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from coe_core import TwoStage
from coe_core.stored_points import COE, has_exits
from coe_core.support.files import write_text
from vision.budgets import ResolvedBudget, resolve_budget
from vision.data.load import ImageData
from vision.errors import RunError
from vision.evaluation import report_parts as parts
from vision.evaluation.predictions import Predictions, predict_all
from vision.evaluation.report_plots import Axis, Series, Tick, thumbnail, trade_off_plot
from vision.evaluation.stages import held_out_systems, system_stage
from vision.precision import choose_precision
from vision.recipe_networks import RunMacs, run_macs
from vision.run import Run, load_run_data, provenance

MATRIX_CLASSES = 30  # that a confusion matrix is shown of
LISTED_CLASSES = 100  # the worst, where there are more
CURVE_POINTS = 80
_TEMPLATE = Path(__file__).parent / "web" / "report.html"
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class _Tested(NamedTuple):
    """A run with its predictions on test data."""

    run: Run
    data: ImageData
    test: Predictions
    macs: RunMacs
    budget: ResolvedBudget


def write_report(
    run: Run,
    path: Path,
    *,
    at: str | None = None,
    system: str | None = None,
    data_path: str | None = None,
) -> Path:
    """Write a self-contained page about a run: no other file, no address, works offline.

    Args:
        run: calibrated.
        path: of the page; one that is there is replaced.
        at: operating point, or multiply-adds, that the page is about; None: "best".
        system: in place of the one that was chosen.
        data_path: where the data lie now.

    Raises:
        RunError: a run that was never calibrated, networks that have diverged, or no test images.
    """
    if not path.parent.is_dir():  # before the work
        raise RunError(f"{path} cannot be written: there is no folder {path.parent}")
    budget = resolve_budget(run, at, system=system)
    data = load_run_data(run, data_path, decode=("test",))
    if len(data.test) == 0:
        raise RunError(f"{run.folder} has no test images to report on")
    precision = choose_precision(run.recipe.train.precision)
    test = predict_all(run.networks, data.test, precision, "test data")
    test.check_team(str(run.folder))
    tested = _Tested(run, data, test, run_macs(run.networks), budget)
    write_text(path, _render(_content(tested)))
    return path


def _render(content: dict[str, Any]) -> str:
    """The page; its policy lets its own script run, and nothing else."""
    from jinja2 import Environment, StrictUndefined

    text = _TEMPLATE.read_text(encoding="utf-8")
    (script,) = _SCRIPT.findall(text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda part, places=1: f"{100 * part:.{places}f}%"
    environment.filters["cost"] = _millions
    page = environment.from_string(text).render(**content, script_digest=digest)
    # Names may hold bytes that are no UTF-8.
    return page.encode("utf-8", "backslashreplace").decode()


def _millions(macs: float) -> str:
    """Multiply-adds as people read them.

    Example:
        >>> _millions(2.5e6), _millions(3580)
        ('2.5 M', '3.58 k')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if macs >= size:
            return f"{macs / size:.3g} {letter}"
    return f"{macs:.3g}"


def _content(tested: _Tested) -> dict[str, Any]:
    run, data, test, macs, budget = tested
    answers = parts.answers_of(test, macs, budget)
    stage = system_stage(test, macs, budget.system, budget.rough_weight, budget.rule)
    reached = stage.at(budget.threshold)
    error, bins = parts.reliability(answers)
    rows = parts.class_rows(answers, data.classes)
    pairs = parts.confused_pairs(answers, data.classes)
    shown = {i for pair in pairs for i in pair.images}
    content: dict[str, Any] = {
        "name": run.folder.resolve().name,
        "word": _word(tested),
        "budget": budget,
        "has_exits": has_exits(budget.system),
        "accuracy": parts.share(int(answers.right.sum()), len(answers.target)),
        "macs": reached.cost["macs"],
        "exit_rate": reached.exit_rate,
        "points": _points(run),
        "choice": _choice(tested),
        "plot": _trade_off(tested, reached.quality, reached.cost["macs"]),
        "reliability": _reliability_plot(bins),
        "calibration_error": error,
        "bins": bins,
        "classes": rows[:LISTED_CLASSES],
        "num_classes": len(rows),
        "pairs": pairs,
        "matrix": _matrix(answers, data.classes),
        "routes": _routes(tested),
        "made": _made(tested),
    }
    if content["routes"] is not None:
        shown |= {i for route in content["routes"]["ways"] for i in route.images}
    content["pictures"] = {i: thumbnail(data.test[i]["image"]) for i in sorted(shown)}
    content["truth"] = {i: data.classes[int(answers.target[i])] for i in shown}
    content["answered"] = {i: data.classes[int(answers.label[i])] for i in shown}
    return content


def _points(run: Run) -> list[dict[str, Any]]:
    return [
        {"name": name, "system": run.stored.deployed(name), "point": point}
        for name, point in run.operating_points.items()
    ]


def _word(tested: _Tested) -> str:
    """What the page is about: what is deployed, or what its reader named."""
    used = tested.run.operating_points.get(tested.budget.name)
    is_used = used is not None and tested.run.stored.deployed(used.name) == tested.budget.system
    return "deployed" if is_used else "shown"


def _choice(tested: _Tested) -> dict[str, Any] | None:
    """Why this system; None where it was not chosen by `calibrate`."""
    choice = tested.run.stored.choices.get(tested.budget.name)
    if choice is None or choice.deployed != tested.budget.system:
        return None
    point = tested.run.stored.named(choice.deployed)[tested.budget.name]
    rows = parts.rival_rows(choice)
    ends = [end for row in rows for end in (row.behind[1], row.behind[2])]
    axis = Axis(min(0.0, *ends), max(0.0, *ends) or 1.0, 4.0, 196.0)
    return {
        "choice": choice,
        "unit": point.cost_unit,
        "rows": rows,
        "is_simplest": rows[0].networks == min(row.networks for row in rows),
        "zero": axis.place(0.0),
        "bars": [[axis.place(value) for value in row.behind] for row in rows],
    }


def _trade_off(tested: _Tested, quality: float, macs: float) -> dict[str, Any]:
    curves, points = [], []
    for name, entry in _stages(tested).items():
        if not has_exits(name):
            whole = entry.at(torch.inf)
            spent = whole.cost["macs"]
            words = f"{name}: {100 * whole.quality:.1f}% at {_millions(spent)} multiply-adds"
            points.append((name, spent / 1e6, 100 * whole.quality, words))
            continue
        curve = entry.curve(cost="macs")
        keep = torch.linspace(0, len(curve.cost) - 1, CURVE_POINTS).round().long().unique().tolist()
        series = []
        for i in keep:
            cost, top1, exits = float(curve.cost[i]), float(curve.quality[i]), curve.exit_rate[i]
            words = (
                f"{name}: {100 * top1:.1f}% at {_millions(cost)} multiply-adds, {100 * exits:.0f}% end "
                "early"
            )
            series.append((cost / 1e6, 100 * top1, words))
        curves.append(Series(name, series))
    plot = trade_off_plot(curves, [*points, ("deployed", macs / 1e6, 100 * quality, "")])
    *dots, deployed = plot.dots
    word, system = _word(tested), tested.budget.system
    words = f"{word}: {system}, {100 * quality:.1f}% at {_millions(macs)} multiply-adds"
    return {"plot": plot._replace(dots=dots), "deployed": deployed._replace(says=words)}


def _stages(tested: _Tested) -> dict[str, TwoStage]:
    """Every system on test data, with the weight and the exit rule that are stored."""
    run, test, macs = tested.run, tested.test, tested.macs
    stages = {}
    for name in held_out_systems(test, macs)[0]:
        curve = run.curves.get(name)
        fitted = (curve.rough_weight, curve.exit_rule) if curve else (0.0, None)
        stages[name] = system_stage(test, macs, name, *fitted)
    return stages


def _reliability_plot(bins: list[parts.Bin]) -> dict[str, Any]:
    x, y = Axis(0.0, 1.0, 44.0, 324.0), Axis(0.0, 1.0, 296.0, 16.0)
    bars = [
        {
            "x": x.place(b.low) + 1,
            "width": round(x.place(b.high) - x.place(b.low) - 2, 1),
            "y": y.place(b.accuracy.part),
            "height": round(296.0 - y.place(b.accuracy.part), 1),
            "middle": x.place(b.confidence),
            "low": y.place(b.accuracy.low),
            "high": y.place(b.accuracy.high),
            "says": f"confidence {100 * b.confidence:.0f}%: {100 * b.accuracy.part:.0f}% right of "
            f"{b.accuracy.samples}",
        }
        for b in bins
    ]
    ticks = [Tick(0.0, f"{part:g}") for part in (0, 0.25, 0.5, 0.75, 1)]
    places = [0.0, 0.25, 0.5, 0.75, 1.0]
    return {
        "bars": bars,
        "x": [tick._replace(place=x.place(p)) for tick, p in zip(ticks, places, strict=True)],
        "y": [tick._replace(place=y.place(p)) for tick, p in zip(ticks, places, strict=True)],
    }


def _matrix(answers: parts.Answers, classes: list[str]) -> dict[str, Any] | None:
    """Rows of counts with the shade of each; None where there are too many classes."""
    if len(classes) > MATRIX_CLASSES:
        return None
    counts = parts.confusion(answers, len(classes))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return {
        "classes": classes,
        "rows": counts.tolist(),
        "shades": (10 * shares).ceil().long().clamp(max=10).tolist(),
    }


def _routes(tested: _Tested) -> dict[str, Any] | None:
    """The collaboration's ways; at its own threshold where another system is deployed."""
    run, data, test, macs, budget = tested
    if run.networks.team is None:
        return None
    if budget.system != COE:
        point = run.stored.named(COE).get(budget.name)
        if point is None:
            return None
        budget = ResolvedBudget(
            point.name,
            point.threshold,
            point.rough_weight,
            point.exit_rate,
            None,
            point.exit_rule,
        )
    answers = parts.answers_of(test, macs, budget)
    k = run.recipe.num_experts
    table = parts.classes_to_experts(test.target, test.selected_expert, (len(data.classes), k))
    order = torch.argsort(table.argmax(1) - table.amax(1), stable=True).tolist()[:LISTED_CLASSES]
    return {
        "is_deployed": tested.budget.system == COE,
        "ways": parts.routes(answers, test.selected_expert, k),
        "experts": [f"expert {j}" for j in range(k)],
        "table": [
            (data.classes[c], [(float(p), int((10 * p).ceil())) for p in table[c]]) for c in order
        ],
        "answered": [data.classes[i] for i in answers.label.tolist()],
    }


def _made(tested: _Tested) -> dict[str, Any]:
    about = provenance(tested.data, checkpoint=tested.run.checkpoint.name)
    return {
        "num_test": len(tested.test.target),
        "data": tested.run.recipe.data.name,
        "seed": tested.run.recipe.seed,
        "facts": yaml.safe_dump(about, sort_keys=False, allow_unicode=True),
        "recipe": yaml.safe_dump(tested.run.recipe.to_dict(), sort_keys=False, allow_unicode=True),
    }
