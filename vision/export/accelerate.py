"""Networks through onnxruntime where that is faster: converted once, kept, checked when they are loaded."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from coe_core.support.files import whole_file
from vision.budgets import ResolvedBudget
from vision.data.cache import cache_folder
from vision.errors import CoEError, RunError
from vision.export.convert import OPSET, ExportError, converted
from vision.export.graphs import ExpertGraph, RestGraph, example_pixels, undisturbed
from vision.export.sessions import cpu_session
from vision.networks.team import Team, Trunked
from vision.precision import Runtime
from vision.prediction.predictor import Predictor
from vision.systems import MeanLogits, System

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
LEAST_MACS = 1e6  # of an image: smaller networks are no part of a request's time
WORTH_CONVERTING = 3e11  # multiply-adds of all images: seconds of eager work, as converting takes
WORTH_LOADING = 2e10
MAX_BYTES = 2 * 2**30  # of all networks that are kept
TOLERANCE = 1e-4  # of a network's answers, relative to the largest
_CHECKED = 8  # images
_ROUNDS = 5


class Chosen(NamedTuple):
    """What a predictor's networks run through, and why.

    Attributes:
        runtime: "torch" or "onnxruntime".
        reason: for one line of output; empty where there was nothing to choose.
    """

    runtime: Runtime
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.runtime} ({self.reason})"


class SessionNetwork(nn.Module):
    """A network as a session of onnxruntime: tensors in, a tensor out, on the CPU.

    Args:
        session: with one input and one output.
    """

    def __init__(self, session: Any):
        super().__init__()
        self.session, self.seen = session, session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        """What the network answers: uint8 pixels, or features, -> logits or features."""
        (answer,) = self.session.run(None, {self.seen: images.contiguous().numpy()})
        return torch.from_numpy(answer)


def accelerate(
    predictor: Predictor,
    systems: Sequence[str],
    *,
    runtime: Runtime = "auto",
    batch_size: int,
    images: float = float("inf"),
) -> Chosen:
    """Let a predictor's systems run through onnxruntime, in fp32, where that is possible and faster.

    Each network is converted once and kept in the user's cache folder (COE_CACHE); whatever is loaded from
    there must answer as the run's own network does, else it is made anew.

    Args:
        predictor: whose systems are replaced; as it was where torch is chosen.
        systems: of the predictor, the most used first, by which time is measured.
        runtime: "auto" chooses; "onnxruntime" raises where it is not possible.
        batch_size: of images that are answered together, for the measurement.
        images: that will be answered: few are not worth the conversion.

    Raises:
        ExportError: "onnxruntime" was asked for, and a network cannot be converted, or answers otherwise.
        RunError: it was asked for on another device than the CPU, or without its packages.
    """
    asked = runtime == "onnxruntime"
    why_not = _why_not(predictor, [predictor.systems[name] for name in systems], images, asked)
    if runtime == "torch" or why_not:
        if asked:
            raise RunError(f"--runtime onnxruntime: {why_not}")
        return Chosen("torch")
    try:
        with undisturbed():
            faster = {name: _converted_system(predictor, name, images, asked) for name in systems}
    except _TooFewImagesError:
        return Chosen("torch")
    except CoEError as error:
        if asked:
            raise
        return Chosen("torch", str(error))
    seconds = _seconds(predictor, systems[0], faster[systems[0]], batch_size)
    measured = (
        f"{batch_size} images take {1000 * seconds['onnxruntime']:.3g} ms, with torch "
        f"{1000 * seconds['torch']:.3g}"
    )
    if not asked and seconds["onnxruntime"] >= seconds["torch"]:
        return Chosen("torch", measured.replace("images", "images with onnxruntime"))
    predictor.systems.update(faster)
    return Chosen("onnxruntime", f"fp32, answers checked; {measured}")


class _TooFewImagesError(Exception):
    """Nothing is kept, and converting would take longer than answering."""


def _why_not(predictor: Predictor, systems: list[System], images: float, asked: bool) -> str:
    """Why onnxruntime cannot, or need not, be tried; empty: it can."""
    device = predictor.networks.device
    if device.type != "cpu":
        return f"the networks are on {device}; it is for the CPU"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: pip install 'collaboration-of-experts[export]'"
    if asked:
        return ""
    macs = max(system.most_macs for system in systems)
    if macs < LEAST_MACS or macs * images < WORTH_LOADING:
        return "too little work"
    return "" if kept_networks() else "nothing is kept (COE_CACHE=off)"


def kept_networks() -> Path | None:
    """The folder of converted networks: in the user's cache, or where COE_CACHE says; None: nowhere."""
    return cache_folder(named="networks", usual="networks")


def _converted_system(predictor: Predictor, name: str, images: float, asked: bool) -> System:
    """A system of sessions: the same routes, rules and costs."""
    system, pixels = predictor.systems[name], example_pixels(predictor.run, _CHECKED)
    may_convert = asked or system.most_macs * images >= WORTH_CONVERTING

    def session(part: str, network: nn.Module, seen: Tensor | None = None) -> SessionNetwork:
        return _session(predictor, f"{name}/{part}", network, pixels, seen, may_convert)

    if system.team is None:
        network = session("network", cast(nn.Module, system.network))
        return replace(system, network=network, sees_pixels=True)
    team, delegator = system.team, system.team.delegator
    features: Tensor | None = None
    if isinstance(delegator, Trunked):
        trunk = session("trunk", delegator.trunk)
        features = trunk(pixels)
        first: nn.Module = Trunked(trunk, session("branch", delegator.branch, features))
    else:
        first = session("delegator", delegator)
    experts = [session(f"expert {j}", net, features) for j, net in enumerate(team.experts)]
    fast = Team(first, experts, team.num_classes, rough_logits=team.rough_logits).eval()
    return replace(system, team=fast, sees_pixels=True)


def _session(
    predictor: Predictor,
    name: str,
    network: nn.Module,
    pixels: Tensor,
    features: Tensor | None,
    may_convert: bool,
) -> SessionNetwork:
    """A network's session: kept, if it answers as the network does; else converted, kept and checked."""
    graph = _graph(network, predictor, features is not None)
    seen = pixels if features is None else features
    with torch.inference_mode():
        wanted = graph(seen)
    path = _path(predictor, name)
    if path is not None and path.is_file():
        with suppress(Exception):  # damaged, or of another version: it is made anew
            kept = SessionNetwork(cpu_session(path))
            _check(name, kept(seen), wanted)
            os.utime(path)
            return kept
    if not may_convert:
        raise _TooFewImagesError
    save = converted("onnx", OPSET, {name: graph}, {name: seen[:2].clone()})[name]
    with _written(path) as file:  # only what answers as it should is kept
        save(file)
        made = SessionNetwork(cpu_session(file))
        _check(name, made(seen), wanted)
    return made


@contextmanager
def _written(path: Path | None) -> Iterator[Path]:
    """Where a network is written; at the end it is kept, and others make room; None: nothing stays."""
    if path is None:
        with TemporaryDirectory() as folder:
            yield Path(folder) / "network.onnx"
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        yield temporary
    _make_room(path)


def _graph(network: nn.Module, predictor: Predictor, of_features: bool) -> Any:
    """A copy of a network in fp32, as it is converted."""
    own = copy.deepcopy(network).float().eval()
    if isinstance(own, MeanLogits):
        own.ensemble.run_in_loop()
    graph = RestGraph(own) if of_features else ExpertGraph(own, predictor.networks.preprocess)
    return graph.eval()


def _path(predictor: Predictor, name: str) -> Path | None:
    """Where a converted network is kept: a name of all that decides over it."""
    folder = kept_networks()
    if folder is None:
        return None
    parts = [predictor.run.fitted_with()["checkpoint"], name, OPSET]
    versions = [version(package) for package in (*PACKAGES, "torch", "collaboration-of-experts")]
    digest = hashlib.sha256(json.dumps([parts, versions]).encode()).hexdigest()
    return folder / f"{digest[:40]}.onnx"


def _check(name: str, answer: Tensor, wanted: Tensor) -> None:
    """Raise ExportError where two answers differ by more than rounding."""
    if answer.shape != wanted.shape:
        raise ExportError(
            f"{name}: onnxruntime answers with shape {tuple(answer.shape)}, torch with "
            f"{tuple(wanted.shape)}"
        )
    difference = float((answer - wanted).abs().max())
    bound = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not difference <= bound:
        raise ExportError(
            f"{name}: onnxruntime's answers differ by {difference:.2g} from torch's, more than {bound:.2g}"
        )


def _make_room(newest: Path) -> None:
    """Remove kept networks that were not used for longest, until all fit into `MAX_BYTES`."""
    with suppress(OSError):
        files = sorted(newest.parent.glob("*.onnx*"), key=lambda file: -file.stat().st_mtime)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > MAX_BYTES and not file.name.startswith(newest.name):
                file.unlink()


def _seconds(predictor: Predictor, name: str, faster: System, count: int) -> dict[Runtime, float]:
    """Median seconds of a batch without exits, in turns; one thread's own, whatever else the machine does."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    pixels = example_pixels(predictor.run, count)
    budget = ResolvedBudget("no exits", 2.0, 0.0, None, None, system=name)
    calls: dict[Runtime, System] = {"torch": predictor.systems[name], "onnxruntime": faster}
    seconds: dict[Runtime, list[float]] = {kind: [] for kind in calls}
    try:
        for turn in range(_ROUNDS + 1):
            for kind, system in calls.items():
                predictor.systems[name] = system
                start = clock()
                predictor.predict_pixels(pixels, [budget] * count)
                if turn:  # the first also pays what is done only once
                    seconds[kind].append(clock() - start)
    finally:
        predictor.systems[name] = calls["torch"]
    return {kind: statistics.median(measured) for kind, measured in seconds.items()}
