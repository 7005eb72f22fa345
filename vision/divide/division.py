"""One wide network becomes s small ones of about its cost: Divide and Co-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import yaml
from rich.table import Table

from vision.divide.published import PUBLISHED, RULES, apply_rule, published
from vision.divide.regularisers import Regulariser, divide_regularisers
from vision.divide.width_knobs import FACTORS
from vision.divide.width_solver import Match, solve_width
from vision.errors import nearest
from vision.networks.network import Network
from vision.networks.size import Size, constructor_arguments, network_size

SOLVE = "solve"
NONE = "none"
PAPER = "paper/"


@dataclass(frozen=True)
class Division:
    """One network and what it becomes; ``divided`` is an entry for a recipe."""

    network: Network  # undivided
    divided: Network  # one of the s; its regularisers are divided too
    s: int
    rule: str  # "solve" or a published one
    changed: dict[str, tuple]  # option -> (before, after)
    undivided_size: Size
    divided_size: Size  # of one
    regularisers: tuple[Regulariser, ...]

    @property
    def total(self) -> Size:
        """Of all s networks together."""
        return self.divided_size.times(self.s)

    @property
    def weight_decay(self) -> float | None:
        """For the recipe, if the undivided one was given."""
        return next((r.after for r in self.regularisers if r.kind == "weight_decay"), None)


def divide_network(
    network: Network | str,
    s: int,
    match: Match = "macs",
    *,
    rule: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    channels: int = 3,
    tolerance: float = 0.03,
    knob: str | None = None,
    weight_decay: float | None = None,
    regulariser_rules: Mapping[str, str] | None = None,
) -> Division:
    """Divide a network into s of the same depth whose s-fold cost is about the same.

    The published rules are PAPER; the width solver, which takes any s and any constructor with a
    width knob, is OURS.

    Args:
        network: by name and options; "paper/NAME" is one of the paper's, such as paper/wrn_28_10.
        s: number of networks.
        match: what the solver keeps: macs or parameters.
        rule: "solve", a published one by name, or "none": s networks as given, of which only the
            weight decay is divided; None takes the paper's for the paper's networks,
            else "solve".
        num_classes: outputs; None means 10, or what the paper's network has.
        image_size: side of the images; None means 32, or what the paper's network has.
        channels: of the images.
        tolerance: of the solver, relative.
        knob: argument of the constructor that the solver changes; None means the first that works.
        weight_decay: of the recipe, to be divided with the other regularisers.
        regulariser_rules: kind -> rule for other than the published ones, see `divide_regularisers`.

    Raises:
        ValueError: s below 1, a tolerance or a regulariser out of range, an unknown network, rule or
            match, pretrained weights, or a network that cannot be divided so; the numbers and the
            alternatives are named.

    Example:
        >>> division = divide_network("paper/wrn_16_8", 2, weight_decay=1e-4)
        >>> division.changed
        {'width': (128, 96)}
        >>> round(division.total.macs / division.undivided_size.macs, 2)
        1.13
        >>> round(divide_network("paper/wrn_16_8", 3, rule="solve").total.macs / 1e9, 2)
        1.57
    """
    if s < 1 or s != int(s):
        raise ValueError(
            f"s must be at least 1, got {s}; it counts networks, and s=1 leaves the one undivided"
        )
    if not 0 < tolerance < 1:
        raise ValueError(
            f"tolerance is a part of the budget, above 0 and below 1, got {tolerance}; 0.03 is 3%"
        )
    if match not in get_args(Match):
        raise ValueError(
            f"unknown match {match!r}{nearest(match, get_args(Match))}; it is "
            f"{' or '.join(get_args(Match))}"
        )
    if isinstance(network, str):
        network = Network(network)
    if network.name.startswith(PAPER):
        paper = published(network.name.removeprefix(PAPER))
        network = Network(
            paper.network.name, network.pretrained, {**paper.network.options, **network.options}
        )
        rule = paper.rule if rule is None else rule
        num_classes = paper.num_classes if num_classes is None else num_classes
        image_size = paper.image_size if image_size is None else image_size
    rule = SOLVE if rule is None else rule
    num_classes = 10 if num_classes is None else num_classes
    image_size = 32 if image_size is None else image_size
    known = (SOLVE, NONE, *RULES)
    if rule not in known:
        raise ValueError(
            f"unknown rule {rule!r}{nearest(rule, known)}; there are {', '.join(known)}"
        )
    if rule != SOLVE and knob is not None:
        raise ValueError(
            f"knob {knob!r} is for rule {SOLVE!r}; rule {rule!r} says itself what it changes"
        )
    if network.pretrained and s > 1 and rule != NONE:
        raise ValueError(
            f"{network.name}: published weights do not fit divided networks; set pretrained=false"
        )
    try:
        undivided = network_size(network, num_classes, image_size, channels)
    except ValueError as error:
        if network.name in PUBLISHED:
            raise ValueError(f"{error}; the paper's goes by {PAPER}{network.name}") from error
        raise
    arguments = constructor_arguments(network, num_classes, channels)
    before = {**dict.fromkeys(FACTORS, 1.0), **arguments}
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    own = {k: v for k, v in arguments.items() if k != "weight_decay" and rule != NONE}
    regularisers = divide_regularisers(
        {**decay, **own},
        s,
        resnet_family=_is_resnet(network.name),
        rules=regulariser_rules,
    )
    if rule in RULES:
        new = apply_rule(rule, arguments, s)
    elif s == 1 or rule == NONE:
        new = {}
    else:
        solution = solve_width(
            network, arguments, s, match, num_classes, image_size, channels, tolerance, knob
        )
        new = solution.options
    softer = {r.option: r.after for r in regularisers if r.kind != "weight_decay" and s > 1}
    divided = replace(network, options={**network.options, **new, **softer})
    return Division(
        network,
        divided,
        s,
        rule,
        {k: (before.get(k), v) for k, v in new.items() if _differ(before.get(k), v)},
        undivided,
        undivided
        if divided.options == network.options
        else network_size(divided, num_classes, image_size, channels),
        regularisers,
    )


def _is_resnet(name: str) -> bool:
    """ResNet, WRN, ResNeXt, ResNeSt and relatives: the paper divides their dropout by s."""
    return "resn" in name or "shake" in name


def _differ(before: object, after: object) -> bool:
    as_list = [list(v) if isinstance(v, list | tuple) else v for v in (before, after)]
    return as_list[0] != as_list[1]


def division_tables(division: Division) -> list[Table]:
    """For the terminal: the configuration, the sizes, and what becomes of each regulariser."""
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
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"option {text!r}: {value!r} is not a YAML value") from error
    return options
