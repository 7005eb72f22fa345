"""An export beside the run it came from: the same routes, the same probabilities, time per route."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from coe_core import Delegation, infer
from vision.export.export import ExportError, Kind, example_pixels
from vision.export.runner import Routed, Runner
from vision.run import Run, load_run_data

TIE = 1e-5  # confidences this near to the threshold may fall on either side of it
TOLERANCE = 1e-4  # of probabilities


@dataclass(frozen=True)
class Parity:
    """How far an export is from its run, over the images that were compared."""

    what: str  # which form of the export
    num_images: int
    same_route: int
    ties: int  # images whose confidence is the threshold up to `TIE`
    same_label: int  # of those whose route is the same
    max_difference: float  # of probabilities, likewise
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Same route but for ties, probabilities within the tolerance."""
        different = self.num_images - self.same_route
        return different <= self.ties and self.max_difference <= self.tolerance


def images_to_check(
    run: Run, count: int, data_path: str | None = None, required: bool = False
) -> tuple[Tensor, str]:
    """Decoded images of the run's validation and test data, and what they are.

    Args:
        run: whose data.
        count: at most so many.
        data_path: where the data lie now.
        required: the data must be there; else random pixels stand in for them.
    """
    try:
        data = load_run_data(run, data_path, decode=())
    except (ValueError, OSError) as error:
        if data_path is not None or required:
            raise
        return example_pixels(run, count), f"random pixels (the data are not here: {error})"
    sets = (data.validation, data.test)
    found = [(images, i) for images in sets for i in range(len(images))][:count]
    return torch.stack([images[i]["image"] for images, i in found]), "of the run's data"


@torch.inference_mode()
def check_export(
    run: Run,
    folder: Path,
    kind: Kind,
    pixels: UInt8[Tensor, "n ch size size"],
    threshold: float,
    rough_weight: float,
    tolerance: float = TOLERANCE,
) -> list[Parity]:
    """Compare every form of an export with the run in fp32.

    Args:
        run: that was exported.
        folder: of the export.
        kind: of the export.
        pixels: decoded images.
        threshold: that both route by.
        rough_weight: of both.
        tolerance: of probabilities; 1 compares routes only.

    Raises:
        ExportError: another route, or other probabilities.
    """
    networks = run.networks
    prepared = networks.prepare(pixels.to(networks.device))
    result = networks.team.infer(prepared, threshold, rough_weight=rough_weight)
    eager = Routed(
        result.prediction.softmax(1).cpu().numpy(),
        *(column.cpu().numpy() for column in result[1:4]),
    )
    forms: dict[str, Callable[[Tensor], Routed]]
    if kind == "pt2":
        programs = load_programs(folder, run.recipe.num_experts)
        forms = {"programs": lambda p: run_programs(*programs, p, threshold, rough_weight)}
    else:
        runner, team = Runner(folder, threads=torch.get_num_threads()), team_session(folder)
        forms = {
            "runner.py": lambda p: runner.infer(p.numpy(), threshold, rough_weight),
            "team.onnx": lambda p: _one_by_one(team, p, threshold, rough_weight),
        }
    found = [
        _compare(what, eager, form(pixels), threshold, tolerance) for what, form in forms.items()
    ]
    for parity in found:
        if not parity.holds:
            raise ExportError(
                f"{folder} ({parity.what}) differs from the run: {parity.same_route} of "
                f"{parity.num_images} images take the same route ({parity.ties} are as sure as the "
                f"threshold), probabilities differ by up to {parity.max_difference:.2g}"
            )
    return found


def _compare(what: str, eager: Routed, found: Routed, threshold: float, tolerance: float) -> Parity:
    ends = eager.exited & found.exited
    stays = ~eager.exited & ~found.exited & (eager.selected_expert == found.selected_expert)
    same = ends | stays
    difference = np.abs(eager.probabilities - found.probabilities)[same]
    labels = eager.probabilities.argmax(1) == found.probabilities.argmax(1)
    return Parity(
        what,
        len(same),
        int(same.sum()),
        int((np.abs(eager.confidence - threshold) <= TIE).sum()),
        int((labels & same).sum()),
        float(difference.max()) if difference.size else 0.0,
        tolerance,
    )


def team_session(folder: Path):
    """onnxruntime's session of team.onnx, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # it warns that threshold and rough_weight may be given
    return onnxruntime.InferenceSession(
        str(folder / "team.onnx"), options, providers=["CPUExecutionProvider"]
    )


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _one_by_one(session, pixels: Tensor, threshold: float, rough_weight: float) -> Routed:
    numbers = {"threshold": _number(threshold), "rough_weight": _number(rough_weight)}
    rows = [session.run(None, {"images": one[None].numpy(), **numbers}) for one in pixels]
    return Routed(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def load_programs(folder: Path, num_experts: int) -> tuple[Callable, list[Callable]]:
    """Delegator and experts of a pt2 export."""
    names = ["delegator", *(f"expert_{j}" for j in range(num_experts))]
    first, *rest = (torch.export.load(folder / f"{name}.pt2").module() for name in names)
    return first, rest


def run_programs(
    delegator: Callable,
    experts: list[Callable],
    pixels: Tensor,
    threshold: float,
    rough_weight: float,
) -> Routed:
    """Route a batch through the programs of a pt2 export."""
    rough, sureness, selected = delegator(pixels)
    selection = torch.nn.functional.one_hot(selected, len(experts)).float()
    result = infer(
        lambda _: Delegation(rough, sureness, selection),
        experts,
        pixels,
        threshold,
        combine=lambda rough, answer: answer + rough_weight * rough,
    )
    columns = (result.prediction.softmax(1), *result[1:])
    return Routed(*(column.numpy() for column in columns))


def milliseconds_per_route(folder: Path, pixels: Tensor, rounds: int = 30) -> dict[str, float]:
    """Median time of single images: the networks alone, and team.onnx by the route it takes.

    That team.onnx takes as long as the networks on its route shows that the others cost nothing.
    A route that none of the images takes is left out.
    """
    runner, team = Runner(folder, threads=torch.get_num_threads()), team_session(folder)
    selected = runner.infer(pixels.numpy(), np.inf).selected_expert
    one = pixels[:1].numpy()
    calls = {"delegator": lambda: runner.delegator.run(None, {"images": one})}
    never = {"threshold": _number(np.inf)}
    always = {"threshold": _number(0)}
    calls["team.onnx: exit"] = lambda: team.run(None, {"images": one, **always})
    for j, expert in enumerate(runner.experts):
        rows = np.flatnonzero(selected == j)
        if not len(rows):
            continue
        image = pixels[rows[:1]].numpy()
        calls[f"expert {j}"] = lambda e=expert, i=image: e.run(None, {"images": i})
        calls[f"team.onnx: expert {j}"] = lambda i=image: team.run(None, {"images": i, **never})
    times: dict[str, list[float]] = {name: [] for name in calls}
    for counted in [False, *[True] * rounds]:
        for name, call in calls.items():  # in turns, so that drift hits all alike
            start = time.perf_counter()
            call()
            if counted:
                times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}
