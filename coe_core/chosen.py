"""What a choice between systems came to: the record that is stored beside the operating points."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from coe_core.operating_points import check_type
from coe_core.paired import PairedDifference
from coe_core.support.files import as_number


@dataclass(frozen=True)
class Rival:
    """A system that reaches the aim, and how it compares with the best one.

    Example:
        >>> Rival(1, 0.9, 10.0, PairedDifference(-0.1, -0.2, 0.0, 0.2), False).difference.mean
        -0.1
    """

    parts: int
    quality: float  # on held-out samples, out of fold
    cost: float  # mean per sample, out of fold
    difference: PairedDifference  # to the best system, in what the aim makes best of
    is_worse: bool  # by the paired test


@dataclass(frozen=True)
class Choice:
    """The system to deploy for an aim, and why.

    Example:
        >>> rival = Rival(1, 0.9, 10.0, PairedDifference(0.0, 0.0, 0.0, 1.0), False)
        >>> choice = Choice("single", "single", "quality", 0.05, 300, {"single": rival})
        >>> Choice.from_dict(choice.to_dict()) == choice
        True
    """

    deployed: str  # the simplest of those that are not worse than the best
    best: str
    criterion: str  # "quality" or "cost": what the aim makes best of
    level: float  # of the paired test
    num_samples: int
    rivals: dict[str, Rival]  # by system: all that reach the aim

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        values = asdict(self)
        for rival in values["rivals"].values():
            rival["difference"] = rival["difference"]._asdict()
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Choice:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field that is missing, unknown, or of another type.
        """
        _check_names(cls, values, "a choice")
        for name in ("deployed", "best", "criterion"):
            check_type(name, values[name], str, "a text")
        check_type("num_samples", values["num_samples"], int, "a whole number")
        check_type("rivals", values["rivals"], dict, "an object")
        rivals = {system: _rival(entry) for system, entry in values["rivals"].items()}
        for name in ("deployed", "best"):
            if values[name] not in rivals:
                raise ValueError(f"{name} is {values[name]!r:.60}, which is none of its rivals")
        return cls(**{**values, "level": as_number(values["level"], "level"), "rivals": rivals})


def shown_cost(cost: float, unit: str) -> str:
    """A mean cost with its unit.

    Example:
        >>> shown_cost(2.5e6, "macs"), shown_cost(3.0, "ms")
        ('2.5 MMACs', '3.000 ms')
    """
    return f"{cost / 1e6:.3g} MMACs" if unit == "macs" else f"{cost:.3f} ms"


def shown_amount(amount: float) -> str:
    """A number in words of an error: all digits of a large one, which people compare.

    Example:
        >>> shown_amount(31361900.0), shown_amount(0.25)
        ('31,361,900', '0.25')
    """
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:g}"


def reason(choice: Choice, unit: str, points: float = 1.0) -> str:
    """Who won, by how much, with the interval, in one line.

    Args:
        choice: to be told.
        unit: of its costs, see `shown_cost`.
        points: how many a quality of 1 is: 100 of an accuracy, 1 of BLEU.

    Example:
        >>> rivals = {
        ...     "CoE": Rival(5, 30.0, 2e7, PairedDifference(-2.0, -3.0, -1.0, 0.001), True),
        ...     "single:large": Rival(1, 32.0, 2e7, PairedDifference(0.0, 0.0, 0.0, 1.0), False),
        ... }
        >>> choice = Choice("single:large", "single:large", "quality", 0.05, 500, rivals)
        >>> print(reason(choice, "macs"))
        single:large (1 network), the best; CoE is 2.00 points (95% interval 1.00 to 3.00, p = 0.001) behind
    """
    deployed, best, rivals = choice.deployed, choice.best, choice.rivals
    by_cost = choice.criterion == "cost"
    if len(rivals) == 1:
        return f"{deployed} is the only system that reaches it"
    if deployed != best:
        parts, of_best = rivals[deployed].parts, rivals[best].parts
        behind = "dearer than" if by_cost else "behind"
        return (
            f"{deployed} ({_networks(parts)}), {_gap(choice, deployed, unit, points)} {behind} {best} "
            f"({_networks(of_best)}): not worse at level {choice.level:g}"
        )
    others = [name for name in rivals if name != best]
    key = (lambda n: rivals[n].cost) if by_cost else (lambda n: -rivals[n].quality)
    second = min(others, key=key)
    return f"{deployed} ({_networks(rivals[deployed].parts)}), the best; {second} is " + (
        f"{_gap(choice, second, unit, points)} {'dearer' if by_cost else 'behind'}"
    )


def _networks(count: int) -> str:
    return f"{count} network{'s' * (count > 1)}"


def _gap(choice: Choice, name: str, unit: str, points: float) -> str:
    """How far a system is behind the best, with the interval and the p-value."""
    difference = choice.rivals[name].difference
    mean, low, high = difference[:3]
    sure = f"{100 * (1 - choice.level):g}% interval"
    if choice.criterion == "cost":
        shown = [shown_cost(value, unit).split() for value in (mean, low, high)]
        numbers = f"{shown[0][0]} {shown[0][1]} ({sure} {shown[1][0]} to {shown[2][0]}"
    else:
        mean, low, high = (0.0 - points * value for value in (mean, low, high))  # no -0.00
        numbers = f"{mean:.2f} points ({sure} {high:.2f} to {low:.2f}"
    return f"{numbers}, p = {difference.p_value:.2g})"


def _check_names(record: Any, values: Any, what: str) -> None:
    check_type(what, values, dict, "an object")
    known = {entry.name for entry in fields(record)}
    if set(values) != known:
        raise ValueError(
            f"not {what}: it has the fields {sorted(values, key=str)}, not {sorted(known)}"
        )


def _rival(values: Any) -> Rival:
    _check_names(Rival, values, "a rival")
    check_type("parts", values["parts"], int, "a whole number")
    check_type("is_worse", values["is_worse"], bool, "true or false")
    check_type("difference", values["difference"], dict, "an object")
    if set(values["difference"]) != set(PairedDifference._fields):
        raise ValueError(f"a difference has {', '.join(PairedDifference._fields)}")
    numbers = {n: as_number(value, n) for n, value in values["difference"].items()}
    return Rival(
        values["parts"],
        as_number(values["quality"], "quality"),
        as_number(values["cost"], "cost"),
        PairedDifference(**numbers),
        values["is_worse"],
    )
