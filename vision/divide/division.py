"""One wide network becomes s small ones of about its cost: Divide and Co-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, get_args

from coe_core.support.command import nearest
from coe_core.support.plain_values import plain
from coe_core.support.typed import from_plain
from vision.divide.published import DIVISION_RULES, PUBLISHED, apply_rule, published_network
from vision.divide.regularisers import Regulariser, divide_regularisers
from vision.divide.width_knobs import FACTORS
from vision.divide.width_solver import Match, solve_width
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
        """The size of all s networks together."""
        return self.divided_size.times(self.s)

    @property
    def weight_decay(self) -> float | None:
        """The weight decay for the recipe, if the undivided one was given."""
        return next((r.after for r in self.regularisers if r.kind == "weight_decay"), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: in a checkpoint they spare its reader the search for the width."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Division:
        """Inverse of `to_dict`, of values that may be anyone's.

        Raises:
            ValueError: they are no division.

        Example:
            >>> division = divide_network("paper/wrn_16_8", 2)
            >>> Division.from_dict(division.to_dict()) == division
            True
        """
        return from_plain(cls, values)


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
    _check_numbers(s, tolerance, match)
    if isinstance(network, str):
        network = Network(network)
    task = _task(network, rule, num_classes, image_size, channels)
    network, rule = task.network, task.rule
    shape = (task.num_classes, task.image_size, channels)
    _check_rule(task, s, knob)
    undivided = _undivided_size(task)
    arguments = constructor_arguments(network, task.num_classes, channels)
    regularisers = _regularisers(task, arguments, s, weight_decay, regulariser_rules)
    if rule in DIVISION_RULES:
        new = apply_rule(rule, arguments, s)
    elif s == 1 or rule == NONE:
        new = {}
    else:
        new = solve_width(
            network,
            arguments,
            s,
            match,
            *shape,
            tolerance=tolerance,
            knob=knob,
        ).options
    softer = {r.option: r.after for r in regularisers if r.kind != "weight_decay" and s > 1}
    divided = replace(network, options={**network.options, **new, **softer})
    before = {**dict.fromkeys(FACTORS, 1.0), **arguments}
    same = divided.options == network.options
    return Division(
        network,
        divided,
        s,
        rule,
        {k: (before.get(k), v) for k, v in new.items() if _differ(before.get(k), v)},
        undivided,
        undivided if same else network_size(divided, *shape),
        regularisers,
    )


class _Task(NamedTuple):
    """What is divided, with the paper's settings where it is the paper's."""

    network: Network
    rule: str
    num_classes: int
    image_size: int
    channels: int


def _check_numbers(s: int, tolerance: float, match: str) -> None:
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


def _task(
    network: Network,
    rule: str | None,
    num_classes: int | None,
    image_size: int | None,
    channels: int,
) -> _Task:
    default = _Task(network, SOLVE, 10, 32, channels)
    if network.name.startswith(PAPER):
        paper = published_network(network.name.removeprefix(PAPER))
        options = {**paper.network.options, **network.options}
        network = Network(paper.network.name, network.pretrained, options)
        default = _Task(network, paper.rule, paper.num_classes, paper.image_size, channels)
    return default._replace(
        rule=default.rule if rule is None else rule,
        num_classes=default.num_classes if num_classes is None else num_classes,
        image_size=default.image_size if image_size is None else image_size,
    )


def _check_rule(task: _Task, s: int, knob: str | None) -> None:
    rule, known = task.rule, (SOLVE, NONE, *DIVISION_RULES)
    if rule not in known:
        raise ValueError(
            f"unknown rule {rule!r}{nearest(rule, known)}; there are {', '.join(known)}"
        )
    if rule != SOLVE and knob is not None:
        raise ValueError(
            f"knob {knob!r} is for rule {SOLVE!r}; rule {rule!r} says itself what it changes"
        )
    if task.network.pretrained and s > 1 and rule != NONE:
        raise ValueError(
            f"{task.network.name}: published weights do not fit divided networks; set "
            "pretrained=false"
        )


def _undivided_size(task: _Task) -> Size:
    network = task.network
    try:
        return network_size(network, task.num_classes, task.image_size, task.channels)
    except ValueError as error:
        if network.name in PUBLISHED:
            raise ValueError(f"{error}; the paper's goes by {PAPER}{network.name}") from error
        raise


def _regularisers(
    task: _Task,
    arguments: Mapping[str, Any],
    s: int,
    weight_decay: float | None,
    rules: Mapping[str, str] | None,
) -> tuple[Regulariser, ...]:
    """Regularisers of the network and, as weight_decay, of its recipe; with rule none of the recipe alone."""
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    of_network = {k: v for k, v in arguments.items() if k != "weight_decay" and task.rule != NONE}
    return divide_regularisers(
        {**decay, **of_network}, s, resnet_family=_is_resnet(task.network.name), rules=rules
    )


def _is_resnet(name: str) -> bool:
    """ResNet, WRN, ResNeXt, ResNeSt and relatives: the paper divides their dropout by s."""
    return "resn" in name or "shake" in name


def _differ(before: object, after: object) -> bool:
    as_list = [list(v) if isinstance(v, list | tuple) else v for v in (before, after)]
    return as_list[0] != as_list[1]
