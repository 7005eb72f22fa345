"""Find the width at which S small networks cost what one wide network does. OURS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from vision.divide.width_knobs import (
    EXAMPLES,
    KNOBS,
    MULTIPLES,
    Widths,
    is_width,
    usable_width,
    usable_widths,
)
from vision.errors import nearest
from vision.networks.network import Network
from vision.networks.size import Size, network_size

Match = Literal["macs", "parameters"]


class Solution(NamedTuple):
    """The chosen width."""

    knob: str
    options: dict[str, Any]  # to be set in the network
    size: Size  # of one divided network


def solve_width(
    network: Network,
    arguments: Mapping[str, Any],
    s: int,
    match: Match = "macs",
    num_classes: int = 10,
    image_size: int = 32,
    channels: int = 3,
    tolerance: float = 0.03,
    knob: str | None = None,
) -> Solution:
    """The width whose s-fold size comes nearest the undivided network's: bisection, local scan. OURS.

    Channels are multiples of 8 where that meets the tolerance, else of 4, 2 or 1.

    Args:
        network: undivided.
        arguments: of its constructor, see `network_size.constructor_arguments`.
        s: number of networks, at least 2.
        match: what shall be the same: macs or parameters.
        num_classes: outputs.
        image_size: side of the images; decides the multiply-adds.
        channels: of the images.
        tolerance: largest relative difference.
        knob: argument of the constructor to be changed; None takes the first of KNOBS that works.

    Raises:
        ValueError: no width knob, an unknown one, or a network too narrow to divide.

    Example:
        >>> wide = Network("small_resnet", options={"width": 32})
        >>> solve_width(wide, wide.options, 4).options
        {'width': 16}
    """
    position = Size._fields.index(match)
    known: dict[str, Size] = {}

    def measure(candidate: Network) -> Size:
        key = repr(candidate.options)
        if key not in known:
            known[key] = network_size(
                candidate, num_classes, image_size, channels, macs=match == "macs"
            )
        return known[key]

    budget = measure(network)[position]
    search = _choose(network, arguments, measure, knob)
    top = round(search.lead / search.step)
    lowest = _lowest(search, top)
    if lowest is None:
        raise ValueError(
            f"{network.name} is too narrow to divide into s={s}: its constructor takes no "
            f"{search.knob} below {search.arguments[search.knob]}"
        )
    if s * lowest[1][position] > budget * (1 + tolerance):
        raise ValueError(
            f"{network.name} is too narrow to divide into s={s}: the budget is "
            f"{budget / s / 1e6:.4g}M {match} each, the narrowest network ({search.knob} from "
            f"{search.arguments[search.knob]} to {_first(search.options(lowest[0]))}) has "
            f"{lowest[1][position] / 1e6:.4g}M; at most s={budget // lowest[1][position]} fits; "
            "choose a smaller s or a wider network"
        )
    low = _last_within(search, lowest, top, budget / s, position)
    return _scan(search, low, s, budget, position, tolerance, match)


def _lowest(search: Widths, top: int) -> tuple[int, Size] | None:
    """A network that is about the narrowest that the constructor takes."""
    starts = [2**power for power in range(top.bit_length())]
    return next((narrow for start in starts if (narrow := search.near(start))), None)


def _last_within(
    search: Widths, lowest: tuple[int, Size], top: int, share: float, position: int
) -> int:
    """Last width whose size is below the share: bisection, first where a power law has it."""
    (low, small), high = lowest, top
    large = search.size(top)
    trial = -1
    while high - low > 1:
        trial += 1
        middle = (low + high) // 2
        if trial < 6 and large is not None and large[position] > small[position]:
            part = math.log(share / small[position]) / math.log(large[position] / small[position])
            guess = low * (high / low) ** min(max(part, 0.0), 1.0)
            middle = min(max(round(guess), low + 1), high - 1)
        tried = search.near(middle)
        if tried is None or tried[0] >= high or tried[1][position] >= share:
            high = middle
            large = tried[1] if tried is not None else None
        else:
            low, small = tried
    return low


def _choose(
    network: Network,
    arguments: Mapping[str, Any],
    measure: Callable[[Network], Size],
    knob: str | None,
) -> Widths:
    if knob is None:
        for search in usable_widths(network, arguments, measure):
            return search
        raise ValueError(
            f"{network.name} has no width knob that its constructor takes (looked for "
            f"{', '.join(KNOBS)}); some that have: {EXAMPLES}"
        )
    chosen = usable_width(network, arguments, knob, measure)
    if chosen is None:
        widths = [name for name, value in arguments.items() if is_width(value)]
        raise ValueError(
            f"{network.name} has no knob {knob!r} that its constructor takes"
            f"{nearest(knob, widths)}; it has the numbers {', '.join(widths)}"
        )
    return chosen


def _scan(
    search: Widths,
    low: int,
    s: int,
    budget: int,
    position: int,
    tolerance: float,
    match: Match,
) -> Solution:
    """The best width near the crossing, as coarsely rounded as the tolerance allows."""
    best, options, size = math.inf, {}, Size(0, 0)

    for multiple in MULTIPLES:
        centre = low // multiple
        for index in range(max(1, centre), centre + (2 if multiple > 1 else 6)):
            candidate = search.size(index, multiple)
            if candidate is None:
                continue
            off = abs(s * candidate[position] / budget - 1)
            if off < best:
                best, options, size = off, search.options(index, multiple), candidate
            elif s * candidate[position] > budget:
                break
        if best <= tolerance:
            return Solution(search.knob, options, size)
    fine = _finer(search, options, size, budget / s, position)
    if fine is not None and abs(s * fine.size[position] / budget - 1) <= tolerance:
        return fine
    raise ValueError(
        f"{search.network.name} is too narrow to divide into s={s} within {tolerance:.0%}: "
        f"{_first(options)} as {search.knob} comes nearest, with "
        f"{s * size[position] / budget - 1:+.1%} {match}; raise the tolerance, choose another s or "
        "another knob"
    )


def _finer(
    search: Widths, options: dict[str, Any], size: Size, share: float, position: int
) -> Solution | None:
    """Where attention heads make the width coarse, mend the rest by the width of the MLPs."""
    ratio = search.arguments.get("mlp_ratio")
    if ratio is None or not is_width(ratio) or isinstance(ratio, list | tuple):
        return None
    other = search.size_of({**options, "mlp_ratio": 1.1 * ratio})
    if other is None or other[position] == size[position]:
        return None
    part = (share - size[position]) / (other[position] - size[position])
    mended = {**options, "mlp_ratio": round(ratio * (1 + 0.1 * part), 2)}
    mended_size = search.size_of(mended)
    if mended_size is None or abs(part) > 3:
        return None
    return Solution(search.knob, mended, mended_size)


def _first(options: Mapping[str, Any]) -> Any:
    return next(iter(options.values()))
