"""`coe-vision inspect`: what a recipe or a run consists of, of the parts and of the mixture."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coe_core.support.command import add_overrides

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from vision.recipe_networks import Networks, RunMacs

EXIT_RATES = (0.0, 0.25, 0.5, 0.75, 1.0)  # at which the mixture is counted if none is named


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("source", help="recipe or run")
    add_overrides(parser)
    parser.add_argument(
        "--exit-rate", type=float, metavar="R", help="of the mixture, in [0, 1] (default: several)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the tables."""
    from coe_core.support.reports import print_table

    for table in describe(arguments.source, arguments.overrides, arguments.exit_rate):
        print_table(table)


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
    from coe_core.support.reports import rich_table
    from vision.divide.report import division_tables
    from vision.recipe_networks import run_macs

    networks = _networks(source, overrides)
    macs = run_macs(networks)
    sides = networks.recipe.data.sides
    rows = [
        [part.name, part.network, f"{part.macs / 1e6:.4g}", _millions(part.built)]
        for part in _parts(networks, macs)
    ]
    tables = [
        rich_table(
            ("part", "network", "MMACs", "parameters, M"),
            rows,
            f"networks, per image of {sides}",
            left=(0, 1),
        )
    ]
    for ensemble in networks.ensembles.values():
        tables += division_tables(ensemble.division)
    if networks.team is not None:
        return [*tables, _mixture(networks, macs, exit_rate)]
    if exit_rate is not None:
        raise ValueError("exit_rate is of a collaboration; this recipe trains ensembles only")
    return tables


def _networks(source: str, overrides: Sequence[str]) -> Networks:
    from vision.recipe import load_recipe
    from vision.recipe_networks import untrained
    from vision.run import LAST, load_run
    from vision.shipped import shipped_recipes

    is_recipe = source in shipped_recipes() and not (Path(source) / LAST).is_file()
    if is_recipe or not (Path(source).is_dir() or source.endswith(".ckpt")):
        return untrained(load_recipe(source, overrides))
    if overrides:
        raise ValueError("a run is as it was trained: overrides are for recipes")
    return load_run(source, team=False).networks


class _Part(NamedTuple):
    name: str
    network: str  # as the recipe names it
    macs: float
    built: nn.Module


def _parts(networks: Networks, macs: RunMacs) -> Iterator[_Part]:
    recipe, team = networks.recipe, networks.team
    if team is not None and recipe.delegator is not None:
        yield _Part("delegator", recipe.delegator.shown, macs.delegator, team.delegator)
        for j, network in enumerate(recipe.expert_networks):
            yield _Part(f"expert {j}", network.shown, macs.experts[j], team.experts[j])
    for name, network in recipe.controls.items():
        built = networks.controls[name]
        yield _Part(f"control {name}", network.shown, macs.controls[name], built)
    for name, ensemble in networks.ensembles.items():
        division = ensemble.division
        title = f"ensemble {name}, each of {division.s}"
        yield _Part(title, division.divided.shown, macs.ensembles[name], ensemble.members[0])


def _mixture(networks: Networks, macs: RunMacs, exit_rate: float | None) -> Table:
    from coe_core import mixture_macs
    from coe_core.support.reports import rich_table

    rows = []
    for rate in EXIT_RATES if exit_rate is None else (exit_rate,):
        mean = mixture_macs(macs.delegator, macs.experts, rate)
        rows.append([f"{100 * rate:.4g}", f"{mean / 1e6:.4g}", _millions(networks.required_team)])
    headings = ("exits %", "MMACs", "parameters, M")
    return rich_table(headings, rows, "mean MMACs of the collaboration", left=())


def _millions(built: nn.Module) -> str:
    return f"{sum(p.numel() for p in built.parameters()) / 1e6:.4g}"
