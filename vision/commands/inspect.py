"""What a recipe or a run consists of: MACs and parameters, of the parts and of the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from coe_core import mixture_macs
from vision.divide.division import division_tables
from vision.recipe import Recipe, load_recipe, shipped_recipes
from vision.recipe_networks import Networks, run_macs
from vision.run import LAST, load_run, without_downloads

NUM_CLASSES = {"digits": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}


def describe(
    source: str, overrides: Sequence[str] = (), exit_rate: float | None = None
) -> list[Table]:
    """Tables for the terminal.

    Args:
        source: a run folder, a checkpoint, or a recipe.
        overrides: of the recipe.
        exit_rate: at which the mixture is counted, in [0, 1]; None: at five.

    Raises:
        ValueError: overrides for a run, an unknown recipe or key, an exit rate outside [0, 1], or one for
            a recipe without a delegator.
    """
    is_recipe = source in shipped_recipes() and not (Path(source) / LAST).is_file()
    if not is_recipe and (Path(source).is_dir() or source.endswith(".ckpt")):
        if overrides:
            raise ValueError("a run is as it was trained: overrides are for recipes")
        networks = load_run(source, team=False).networks
    else:
        networks = untrained(load_recipe(source, overrides))
    macs = run_macs(networks)

    def parameters(built: nn.Module) -> str:
        return f"{sum(p.numel() for p in built.parameters()) / 1e6:.4g}"

    recipe = networks.recipe
    parts = Table(
        title=f"networks, per image of {recipe.data.size} x {recipe.data.size}",
        title_justify="left",
    )
    for heading in ("part", "network", "MMACs", "parameters, M"):
        parts.add_column(heading, justify="left" if heading in ("part", "network") else "right")
    team = networks.team
    entries = []
    if team is not None:
        entries.append(("delegator", recipe.delegator, macs.delegator, team.delegator))
    entries += [
        (f"expert {j}", network, macs.experts[j], team.experts[j])
        for j, network in enumerate(recipe.expert_networks)
    ]
    entries += [
        (f"control {name}", network, macs.controls[name], networks.controls[name])
        for name, network in recipe.controls.items()
    ]
    entries += [
        (
            f"ensemble {name}, each of {built.division.s}",
            built.division.divided,
            macs.ensembles[name],
            built.members[0],
        )
        for name, built in networks.ensembles.items()
    ]
    for part, network, cost, built in entries:
        parts.add_row(part, network.shown, f"{cost / 1e6:.4g}", parameters(built))
    tables = [parts]
    for ensemble in networks.ensembles.values():
        tables += division_tables(ensemble.division)
    if team is None:
        if exit_rate is not None:
            raise ValueError("exit_rate is of a collaboration; this recipe trains ensembles only")
        return tables
    mixture = Table(title="mean MMACs of the collaboration", title_justify="left")
    mixture.add_column("exits %", justify="right")
    mixture.add_column("MMACs", justify="right")
    mixture.add_column("parameters, M", justify="right")
    for rate in (0, 0.25, 0.5, 0.75, 1) if exit_rate is None else (exit_rate,):
        mean = mixture_macs(macs.delegator, macs.experts, rate)
        mixture.add_row(f"{100 * rate:.4g}", f"{mean / 1e6:.4g}", parameters(team))
    return [*tables, mixture]


def untrained(recipe: Recipe) -> Networks:
    """Without their numbers, as they can be large, unless a constructor computes with these."""
    data = recipe.data
    classes = [str(label) for label in range(NUM_CLASSES.get(data.name, 10))]
    arguments = without_downloads(recipe.to_dict()), classes, data.preprocess().to_dict()
    try:
        with torch.device("meta"):
            return Networks(*arguments)
    except (RuntimeError, ValueError):  # what is really wrong fails again
        return Networks(*arguments)
