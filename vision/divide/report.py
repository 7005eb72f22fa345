"""What a division looks like in the terminal and in a recipe; options from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from coe_core.support.typed import parse_override
from vision.divide.division import Division
from vision.networks.network import Network

if TYPE_CHECKING:
    from rich.table import Table


def division_tables(division: Division) -> list[Table]:
    """Tables for the terminal: the configuration, the sizes, and what becomes of each regulariser."""
    from rich.table import Table

    s = division.s
    sizes = Table(
        title=f"{division.network.name} divided into {s} by rule {division.rule}",
        title_justify="left",
    )
    for heading in ("network", "MMACs", "of budget %", "parameters, M", "of budget %"):
        sizes.add_column(heading, justify="left" if heading == "network" else "right")
    whole = division.undivided_size
    for label, size in (
        ("undivided", whole),
        ("one divided", division.divided_size),
        (f"{s} divided", division.total),
    ):
        sizes.add_row(
            label,
            f"{size.macs / 1e6:.5g}",
            f"{100 * size.macs / whole.macs:.1f}" if whole.macs else "",
            f"{size.parameters / 1e6:.4g}",
            f"{100 * size.parameters / whole.parameters:.1f}",
        )
    options = Table(title="options", title_justify="left")
    for heading in ("option", "undivided", "divided", "rule"):
        options.add_column(heading)
    for option, (before, after) in division.changed.items():
        options.add_row(option, str(before), str(after), division.rule)
    for option, _, rule, before, after in division.regularisers:
        options.add_row(option, f"{before:.4g}", f"{after:.4g}", rule)
    return [sizes, options]


def recipe_entry(division: Division) -> str:
    """One divided network as YAML, to be pasted into a recipe.

    Example:
        >>> from vision.divide.division import divide_network
        >>> print(recipe_entry(divide_network("paper/resnet_110", 4)))
        name: cifar_resnet
        options: {depth: 110, width: 8}
    """
    options = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in division.divided.options.items()
    }
    shown = yaml.safe_dump(options, default_flow_style=True, sort_keys=False, width=1000).strip()
    return f"name: {division.divided.name}\noptions: {shown}"


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a network from ``key=value``; values are YAML.

    Raises:
        ValueError: not of that form, or not YAML.

    Example:
        >>> parse_options(["width=64", "blocks=[2, 2]"])
        {'width': 64, 'blocks': [2, 2]}
    """
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"option {text!r} is not of the form key=value")
        options[key.strip()] = parse_override(Network, ["options", key], value, f"option {text!r}")
    return options
