"""An export beside the run it came from: the same pixels, routes and probabilities; time per route."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from coe_core import ExitRule
from coe_core.support.exports import Parity
from vision.export.convert import ExportError
from vision.export.graphs import Kind, example_pixels, exported_weight, own_run, undisturbed
from vision.export.pictures import write_pictures
from vision.export.runner import Routed, Runner
from vision.export.sessions import (
    load_programs,
    run_one_by_one,
    run_programs,
    scalar,
    team_session,
)
from vision.recipe_networks import run_macs
from vision.run import Run, load_run_data
from vision.systems import COE, System, build_system

TIE = 1e-5  # confidences this near to the threshold may fall on either side of it
TOLERANCE = 1e-4  # of probabilities
NUM_FILES = 16  # of the run's own data, beside the pictures that are made for the comparison


class CheckedImages(NamedTuple):
    """What an export is compared on."""

    pixels: UInt8[Tensor, "n ch h w"]  # decoded images
    what: str  # they are
    files: list[Path]  # some that images were decoded from; none where the data are no files


def images_to_check(
    run: Run, count: int, data_path: str | None = None, required: bool = False
) -> CheckedImages:
    """Decoded images of the run's validation and test data, and some of their files.

    Validation images first, in an order drawn once: data in class folders are sorted, so the first of them
    would be of one class, and ranges for int8 measured on that alone.

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
        what = f"random pixels (the data are not here: {error})"
        return CheckedImages(example_pixels(run, count), what, [])
    sets = (data.validation, data.test)
    drawn = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(images), generator=drawn).tolist() for images in sets]
    rows = [(sets[place], i) for place, order in enumerate(orders) for i in order][:count]
    paths = [images.paths[i] for images, i in rows[:NUM_FILES] if images.paths is not None]
    files = [Path(path) for path in paths if isinstance(path, str | Path)]
    pixels = torch.stack([images[i]["image"] for images, i in rows])
    return CheckedImages(pixels, "of the run's data", files)


def check_export(
    run: Run,
    folder: Path,
    kind: Kind,
    pixels: UInt8[Tensor, "n ch h w"],
    threshold: float,
    rough_weight: float,
    tolerance: float = TOLERANCE,
    files: Sequence[Path] = (),
    rule: ExitRule | None = None,
    system: str = COE,
) -> list[Parity]:
    """Compare every form of an export with the run in fp32; the run and random numbers stay as they are.

    runner.py is compared from files, too: on pictures of many sizes and modes that are written for the
    purpose, and on ``files``. Both must decode the very same pixels.

    Args:
        run: that was exported.
        folder: of the export.
        kind: of the export.
        pixels: decoded images.
        threshold: that both route by.
        rough_weight: of both.
        tolerance: of probabilities; 1 compares routes only.
        files: images to decode.
        rule: that exits are decided by; None: the default.
        system: that was exported.

    Raises:
        ExportError: other pixels, another route, or other probabilities.
        DamagedExportError: a file of the export is missing or damaged; names it.
    """
    with undisturbed(), torch.inference_mode():
        copied, weight = own_run(run), exported_weight(run, system, rough_weight)
        rule = rule or ExitRule()
        exported = build_system(copied.networks, run_macs(copied.networks), system)
        eager = _eager(copied, exported, pixels, threshold, rough_weight, rule)
        answers: dict[str, tuple[Routed, Routed]] = {}
        if kind == "pt2":
            programs = load_programs(folder, len(exported.expert_macs))
            answers["programs"] = eager, run_programs(*programs, pixels, threshold, weight)
        else:
            runner = Runner(folder, threads=torch.get_num_threads())
            answers["runner.py"] = eager, runner.infer(pixels.numpy(), threshold, weight)
            if runner.experts:
                team = team_session(folder)
                answers["team.onnx"] = eager, run_one_by_one(team, pixels, threshold, weight)
            decoded = _decoded_alike(copied, runner, pixels, files)
            answers["runner.py, from files"] = (
                _eager(copied, exported, decoded, threshold, rough_weight, rule),
                runner.infer(decoded.numpy(), threshold, weight),
            )
    parities = [_compare(form, *both, threshold, tolerance) for form, both in answers.items()]
    for parity in parities:
        if not parity.holds:
            raise ExportError(
                f"the export ({parity.form}) differs from the run: {parity.same_route} of "
                f"{parity.num_samples} images take the same route ({parity.ties} are as confident as the "
                f"threshold), probabilities differ by up to {parity.max_difference:.2g}"
            )
    return parities


def _eager(
    run: Run,
    system: System,
    pixels: Tensor,
    threshold: float,
    rough_weight: float,
    rule: ExitRule,
) -> Routed:
    """What the run itself says."""
    prepared = run.networks.prepare(pixels)
    result = system.infer(prepared, threshold, rule, rough_weight)
    return Routed(result.prediction.softmax(1).numpy(), *(column.numpy() for column in result[1:4]))


def _decoded_alike(run: Run, runner: Runner, pixels: Tensor, files: Sequence[Path]) -> Tensor:
    """Pixels of files as the run decodes them.

    Raises:
        ExportError: the runner decodes one of them otherwise.
    """
    from vision.data.preprocess import UnreadableImageError
    from vision.prediction.predictor import decode_image

    preprocess, decoded = run.networks.preprocess, []
    with TemporaryDirectory() as scratch:
        for path in (*write_pictures(Path(scratch), pixels, preprocess), *files):
            try:
                expected = decode_image(preprocess, path)
            except UnreadableImageError:
                continue  # a damaged file of the data
            theirs = runner.decode(path)
            if not np.array_equal(theirs, expected.numpy()):
                difference = np.abs(theirs.astype(int) - expected.numpy()).max()
                raise ExportError(
                    f"runner.py decodes {path.name} otherwise than the run: pixels differ by up to "
                    f"{difference}; please report it with this picture's size and mode"
                )
            decoded.append(expected)
    return torch.stack(decoded)


def _compare(
    form: str, eager: Routed, exported: Routed, threshold: float, tolerance: float
) -> Parity:
    ends = eager.exited & exported.exited
    stays = ~eager.exited & ~exported.exited & (eager.selected_expert == exported.selected_expert)
    same = ends | stays
    difference = np.abs(eager.probabilities - exported.probabilities)[same]
    labels = eager.probabilities.argmax(1) == exported.probabilities.argmax(1)
    return Parity(
        form,
        len(same),
        int(same.sum()),
        int((np.abs(eager.confidence - threshold) <= TIE).sum()),
        int((labels & same).sum()),
        float(difference.max()) if difference.size else 0.0,
        tolerance,
    )


def milliseconds_per_route(folder: Path, pixels: Tensor, rounds: int = 30) -> dict[str, float]:
    """Median time of single images: the networks alone, and team.onnx by the route it takes.

    That team.onnx takes as long as the networks on its route shows that the others cost nothing.
    A route that none of the images takes is left out.
    """
    runner = Runner(folder, threads=torch.get_num_threads())
    first = pixels[:1].numpy()
    if not runner.experts:
        return _medians({"network": lambda: runner.delegator.run(None, {"images": first})}, rounds)
    team = team_session(folder)
    selected = runner.infer(pixels.numpy(), np.inf).selected_expert
    calls: dict[str, Callable] = {
        "delegator": lambda: runner.delegator.run(None, {"images": first})
    }
    never, always = {"threshold": scalar(np.inf)}, {"threshold": scalar(0)}
    calls["team.onnx: exit"] = lambda: team.run(None, {"images": first, **always})
    for j, expert in enumerate(runner.experts):
        rows = np.flatnonzero(selected == j)
        if not len(rows):
            continue
        image = pixels[rows[:1]].numpy()
        features = runner.delegator.run(None, {"images": image})[3:]
        seen = {expert.get_inputs()[0].name: features[0] if features else image}
        calls[f"expert {j}"] = lambda e=expert, s=seen: e.run(None, s)
        calls[f"team.onnx: expert {j}"] = lambda i=image: team.run(None, {"images": i, **never})
    return _medians(calls, rounds)


def _medians(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for counted in [False, *[True] * rounds]:
        for name, call in calls.items():  # in turns, so that drift hits all alike
            start = time.perf_counter()
            call()
            if counted:
                times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}
