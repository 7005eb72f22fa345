"""`coe-translation inspect`: what a checkpoint, a run or a recipe consists of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coe_core.support.command import add_overrides, at_least

if TYPE_CHECKING:
    from translation.recipe import Recipe


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation inspect`."""
    parser.add_argument(
        "source", help="a checkpoint, a run folder, a recipe file or the name of a recipe"
    )
    add_overrides(parser, "of a recipe")
    parser.add_argument(
        "--tokens",
        type=at_least(1, 100000),
        default=25,
        metavar="N",
        help="pieces of a sentence, and of its translation, that a recipe's costs are of (25)",
    )


def run_inspect(arguments: argparse.Namespace) -> None:
    """Networks, sizes and settings of a checkpoint or of a run; parameters and costs of a recipe."""
    if arguments.source.endswith(".pt"):
        if arguments.overrides:
            raise ValueError("a checkpoint is as it was trained: overrides are for recipes")
        _inspect_checkpoint(arguments.source)
        return
    from translation.recipe import load_recipe
    from translation.run import RECIPE

    file = Path(arguments.source) / RECIPE
    source = str(file) if file.is_file() else arguments.source
    _inspect_recipe(load_recipe(source, arguments.overrides), arguments.tokens)


def _inspect_recipe(recipe: Recipe, tokens: int) -> None:
    from coe_core.support.reports import print_table, rich_table
    from translation.recipe_networks import parts

    rows = [
        [part.name, f"{part.parameters / 1e6:.4g}", f"{part.macs / 1e6:.4g}"]
        for part in parts(recipe, tokens)
    ]
    title = (
        f"a sentence of {tokens} pieces and as long a translation, beam {recipe.generation.beam}"
    )
    print_table(rich_table(("network", "parameters, M", "MMACs"), rows, title, left=(0,)))


def _inspect_checkpoint(path: str) -> None:
    from translation.plugin.checkpoints import (
        load_state,
        network_names,
        network_sizes,
        num_experts_of,
        num_updates,
    )
    from translation.plugin.trust import sections

    state = load_state(path)
    num_experts = num_experts_of(state)
    networks = {name: network_sizes(state, name) for name in network_names(num_experts)}
    config = sections(state)
    print(f"{config['model']['_name']}, {num_experts} experts")
    print(f"updates {num_updates(state)}")
    print(f"{'network':12} {'encoder':>8} {'decoder':>8} {'width':>6} {'parameters':>12}")
    for name, sizes in networks.items():
        print(
            f"{name:12} {sizes.encoder_layers:8} {sizes.decoder_layers:8} "
            f"{sizes.width:6} {sizes.num_parameters:12,}"
        )
    for name in ("shared_encoder_layers", "shared_decoder"):
        if value := config["model"].get(name):
            print(f"{name} {value}")
    shown = ("focus", "focus_warmup", "selection_labels", "selection_weight", "agreement")
    for name in shown:
        print(f"{name} {config.get('criterion', {}).get(name)}")
