"""A run on disk: a folder with a recipe, checkpoints, metrics and operating points."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from coe_core import CalibratedCurve, Choice, ExitRule, OperatingPoint, StoredPoints
from coe_core.stored_points import COE, load_curves, load_points, save_curves, save_points
from coe_core.support import provenance as support
from coe_core.support.files import sha256_of
from vision.checkpoints import LAST, PARAMETERS, find_checkpoint, load_checkpoint
from vision.data.facts import DATA_SETS
from vision.data.load import ImageData, load_data
from vision.errors import RunError
from vision.networks.network import no_larger_than
from vision.precision import choose_precision
from vision.recipe import Recipe, recipe_from_dict
from vision.recipe_networks import Networks

POINTS = Path("operating_points.json")
TASK = "vision"  # of stored points
CURVE = Path("trade_off_curve.json")
_PREFIX = "networks."  # of the networks' weights in a checkpoint of the training module
_EXPERTS = f"{_PREFIX}team.experts."


@dataclass
class Run:
    """A trained team, ready to evaluate, calibrate or predict.

    Attributes:
        folder: where results belong.
        checkpoint: the file the weights came from.
        networks: in evaluation mode.
        stored: operating points of every system, and which system's is used for each.
        curves: of each system the trade-off on the validation split, for budgets that were not stored.
    """

    folder: Path
    checkpoint: Path
    networks: Networks
    stored: StoredPoints = field(default_factory=lambda: StoredPoints({}, {}, {}))
    curves: dict[str, CalibratedCurve] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.networks.recipe

    @cached_property
    def _digest(self) -> str:
        return sha256_of(self.checkpoint)

    def fitted_with(self, rule: ExitRule | None = None) -> dict[str, str]:
        """What thresholds depend on, see `coe_core.check_fitted_with`: they hold for these weights.

        Args:
            rule: what exits are decided by; None: the default.
        """
        return {"checkpoint": self._digest, "confidence": (rule or ExitRule()).kind}

    @property
    def operating_points(self) -> dict[str, OperatingPoint]:
        """By its name the point that is used: that of the system chosen for it."""
        points = [point for entries in self.stored.points.values() for point in entries]
        names = dict.fromkeys([*self.stored.choices, *(point.name for point in points)])
        used = {name: self.stored.named(self.stored.deployed(name)).get(name) for name in names}
        return {name: point for name, point in used.items() if point is not None}

    @property
    def curve(self) -> CalibratedCurve | None:
        """The collaboration's trade-off curve."""
        return self.curves.get(COE)

    def store(
        self, name: str, points: Mapping[str, OperatingPoint], choice: Choice | None = None
    ) -> None:
        """Keep what is used at a name with the run, replacing what was there.

        Args:
            name: of all the points.
            points: by system.
            choice: of one of these systems; None: the collaboration.
        """
        kept: dict[str, dict[str, OperatingPoint]] = {}
        for system in dict.fromkeys([*self.stored.points, *points]):
            kept[system] = self.stored.named(system)
            if system in points:
                kept[system][name] = points[system]  # in its place
            else:
                kept[system].pop(name, None)
        choices = dict(self.stored.choices)
        if choice is None:
            choices.pop(name, None)
        else:
            choices[name] = choice  # in its place
        order = [*choices, *dict.fromkeys(n for entries in kept.values() for n in entries)]
        by_system = {
            system: sorted(entries.values(), key=lambda point: order.index(point.name))
            for system, entries in kept.items()
            if entries
        }
        self.stored = StoredPoints(by_system, {}, choices)
        save_points(self.folder / POINTS, TASK, self.stored)

    def store_curves(self, curves: Mapping[str, CalibratedCurve]) -> None:
        """Keep trade-off curves with the run, replacing those of the same systems."""
        self.curves |= curves
        save_curves(self.folder / CURVE, TASK, self.curves)


def load_run(path: str | PathLike[str], team: bool = True, mapped: bool = False) -> Run:
    """Load a run from its folder or from a checkpoint file; nothing else is needed.

    Args:
        path: of the folder or the file.
        team: refuse a run that trained ensembles only, without delegator and experts.
        mapped: for several processes on one machine: weights stay in the file, which they share, see
            `load_checkpoint`.

    Raises:
        RunError: no such run, or a file that is not one of its checkpoints.
    """
    checkpoint = find_checkpoint(Path(path))
    content = load_checkpoint(checkpoint, mapped)
    networks = _build(checkpoint, content["hyper_parameters"], content["state_dict"])
    if team and networks.team is None:
        raise RunError(
            f"{path} trained ensembles only, no delegator and experts; `coe-vision evaluate` and "
            "`coe-vision predict` take it"
        )
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in content["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    try:
        own = networks.state_dict()
        as_stored = all(name in own and own[name].dtype == w.dtype for name, w in weights.items())
        networks.load_state_dict(weights, assign=mapped and as_stored)
    except RuntimeError as error:
        raise RunError(
            f"the weights in {checkpoint} do not fit its recipe; was it written with other versions "
            "of timm or torchvision? provenance.json names those it was trained with"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks.eval().to(memory_format=torch.channels_last).to(device)
    in_run = checkpoint.parent.name == LAST.parent.name
    run = Run(checkpoint.parent.parent if in_run else checkpoint.parent, checkpoint, networks)
    run.stored = _stored(run.folder / POINTS, lambda path: load_points(path, TASK), run.stored)
    run.curves = _stored(run.folder / CURVE, lambda path: load_curves(path, TASK), {})
    return run


def load_run_data(
    run: Run, data_path: str | None = None, decode: Collection[str] = ("validation", "test")
) -> ImageData:
    """The data of a run, with its own preprocessing and its own classes.

    Args:
        run: whose data.
        data_path: where they lie now, if not where they lay in training.
        decode: splits that are wanted in memory, see `load_data`.

    Raises:
        RunError: the data's classes are not those that the run knows.
        FileNotFoundError: the data are not there.
    """
    preprocess = run.networks.preprocess
    settings = replace(run.recipe.data, mean=list(preprocess.mean), std=list(preprocess.std))
    if data_path is not None:
        if settings.name in DATA_SETS and not DATA_SETS[settings.name].in_files:
            raise ValueError(f"{settings.name} come with the toolkit: leave out {data_path!r}")
        settings = replace(settings, path=data_path)
    try:
        data = load_data(settings, decode)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; if the data have moved, --data says where they lie"
        ) from error
    if data.classes != run.networks.classes:
        raise RunError(
            f"the data have {len(data.classes)} classes ({', '.join(data.classes[:5])}, ...), the run "
            f"was trained on {len(run.networks.classes)} ({', '.join(run.networks.classes[:5])}, ...)"
        )
    return data


def _build(
    checkpoint: Path, parameters: dict[str, Any], weights: Mapping[str, torch.Tensor]
) -> Networks:
    """The networks of a checkpoint, whose stored values may be damaged or anyone's."""
    values = {name: parameters[name] for name in PARAMETERS}
    experts = {name.split(".")[3] for name in weights if name.startswith(_EXPERTS)}
    try:
        recipe = recipe_from_dict(parameters["recipe"], str(checkpoint))
        if recipe.has_team and recipe.num_experts != len(experts):
            raise ValueError(
                f"its recipe has {recipe.num_experts} experts, its weights are of {len(experts)}"
            )
        stored = parameters["preprocess"].get("size")
        if stored != recipe.data.size:
            raise ValueError(
                f"its recipe's data.size is {recipe.data.size}, that of preprocess {stored!r:.20}"
            )
        values["recipe"] = recipe.to_dict()
        with no_larger_than(sum(value.numel() for value in weights.values())):
            return Networks(**values, divisions=parameters.get("divisions"))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"the networks of {checkpoint} cannot be built: {reason[:300]}; was it written with other "
            "versions of timm or torchvision? provenance.json names those it was trained with"
        ) from error


def _stored(path: Path, read: Callable[[Path], Any], missing: Any) -> Any:
    """What `calibrate` left in a JSON file of the run."""
    if not os.path.lexists(path):
        return missing
    try:
        return read(path)
    except ValueError as error:
        raise RunError(
            f"{path} is damaged ({error}); remove it and run `coe-vision calibrate` again"
        ) from error


def provenance(data: ImageData, **more: Any) -> dict[str, Any]:
    """Command, commit, versions, machine and data of a result.

    Args:
        data: that it was made from.
        more: what else it depends on.
    """
    return support.provenance(
        ("torch", "torchvision", "timm", "lightning", "numpy"),
        threads=torch.get_num_threads(),
        precision=choose_precision(),
        data=data.provenance,
        **more,
    )
