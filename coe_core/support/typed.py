"""Dataclasses from plain values: types checked, every message one line that names the dotted key."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from coe_core.support.command import nearest
from coe_core.support.plain_values import parse_yaml, plain, printable_line

T = TypeVar("T")
Location = Sequence[str | int]

_EXPECTED = {
    **{"int_type": "int", "int_from_float": "int", "float_type": "float", "bool_type": "bool"},
    **{"string_type": "str", "list_type": "list", "dict_type": "dict"},
}
_KEYS = ("dataclass_type", "dict_type")
_UNKNOWN = "unexpected_keyword_argument"
# What YAML 1.1 reads as a text and people mean as a number.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass, and those inside it, from plain values. Nothing is converted but int to float.

    Args:
        kind: of the result; its ``__post_init__`` may refuse with a ValueError.
        values: see `plain`.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type or that is refused.

    Example:
        >>> @dataclasses.dataclass
        ... class Network:
        ...     name: str
        ...     size: int | None = None
        >>> from_plain(Network, {"name": "resnet18", "siez": 64})
        Traceback (most recent call last):
        ...
        ValueError: unknown key 'siez'; nearest: size
    """
    values = _with_exponents(kind, plain(values))
    try:
        # As JSON: there a dict becomes a dataclass and yet no text becomes a number.
        adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
        return adapter.validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(printable_line(_first_complaint(kind, values, error))) from error


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _first_complaint(kind: type, values: Any, error: ValidationError) -> str:
    """The first complaint; of unknown keys before others, as these often follow from them."""
    problems: list[Any] = sorted(error.errors(), key=lambda e: e["type"] != _UNKNOWN)
    problem, location = problems[0], problems[0]["loc"]
    key, value = dotted(values, location), problem["input"]
    expected = type_at(kind, location)
    if problem["type"] == _UNKNOWN:
        section = type_at(kind, location[:-1])
        known = [dotted(values, (*location[:-1], name)) for name in _fields(section)]
        return f"unknown key {key!r}{nearest(key, known)}"
    if problem["type"] == "missing":
        return f"missing key {key!r}"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return message if not key or message.startswith(key) else f"{key}: {message}"
    if problem["type"] in _KEYS and not (problem["type"] == "dict_type" and value is not None):
        hint = "" if value is not None else "; write {} or leave it out"
        return f"{key} holds {_shown(value)}; expected keys and values{hint}"
    if problem["type"] == "literal_error":
        choices = _choices(expected)
        near = nearest(str(value), map(str, choices))
        return f"{key}: expected one of {choices}, got {_shown(value)}{near}"
    if problem["type"] in _EXPECTED:
        quotes = (
            "; put it in quotes" if problem["type"] == "string_type" and value is not None else ""
        )
        # A key that takes several kinds has a complaint for each, whose place ends with the kind.
        same = [p for p in problems if p["loc"][:-1] == location[:-1] and p["input"] == value]
        words = [p["ctx"]["expected"] for p in same if p["type"] == "literal_error"]
        kinds = dict.fromkeys(_EXPECTED[p["type"]] for p in same if p["type"] in _EXPECTED)
        kinds |= dict.fromkeys(words)
        if len(kinds) > 1:
            key = key.removesuffix(f".{location[-1]}")
        return f"{key}: expected {' or '.join(kinds)}, got {_shown(value)}{quotes}"
    return f"{key}: {problem['msg']}, got {_shown(value)}"


def _shown(value: Any) -> str:
    """A value in one line; in quotes where it would look like a number or null."""
    text = " ".join(str(value).split())
    if isinstance(value, str) and re.fullmatch(
        r"[-+.\d].*|true|false|yes|no|on|off|null|", text, re.I
    ):
        text = repr(text)
    return text if len(text) <= 80 else f"{text[:77]}..."


def dotted(values: Any, location: Location) -> str:
    """A place in plain values as a recipe's author writes it; the one entry of a list has no number.

    Example:
        >>> dotted({"experts": [{}, {}]}, ("experts", 1, "name"))
        'experts[1].name'
        >>> dotted({"experts": [{}]}, ("experts", 0, "name"))
        'experts.name'
    """
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]" if isinstance(values, list) and len(values) > 1 else ""
        elif isinstance(values, dict):  # else a branch of a union, which pydantic names
            key += f".{part}" if key else part
        try:
            values = values[part]
        except (LookupError, TypeError):
            values = None
    return key


def type_at(kind: Any, location: Location) -> Any:
    """The annotation at a place in a dataclass; Any where nothing is known of it.

    Example:
        >>> @dataclasses.dataclass
        ... class Network:
        ...     condconv: int = 0
        >>> type_at(Network, ["condconv"])
        <class 'int'>
    """
    for part in location:
        kind = _without_none(kind)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is list:
            kind = arguments[0]
            if isinstance(part, int):
                continue
            kind = _without_none(kind)  # experts.width: of the list's one entry
            origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is dict:
            kind = arguments[1]
        elif dataclasses.is_dataclass(kind):
            kind = _fields(kind).get(str(part), Any)
    return kind


def is_text(kind: Any) -> bool:
    """Whether only texts (or null) can stand there."""
    kind = _without_none(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return all(is_text(part) for part in typing.get_args(kind) if part is not type(None))
    return kind is str or (bool(choices := _choices(kind)) and all(type(c) is str for c in choices))


def parse_override(kind: type, location: Location, text: str, source: str) -> Any:
    """The value that a command line gives a key: literal where the key holds a text, else YAML.

    A text wholly in quotes is YAML too, and ``null``, or nothing, is none where the key may hold none.

    Raises:
        ValueError: not YAML.

    Example:
        >>> @dataclasses.dataclass
        ... class Network:
        ...     name: str
        ...     options: dict[str, Any]
        >>> parse_override(Network, ["name"], "my net #2", "override")
        'my net #2'
        >>> parse_override(Network, ["options", "blocks"], "[2, 2]", "override")
        [2, 2]
    """
    expected, bare = type_at(kind, location), text.strip()
    quoted = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\""
    if is_text(expected) and not quoted:
        return None if bare in ("", "null") and _without_none(expected) is not expected else text
    value = parse_yaml(text, source)
    return bare if isinstance(value, str) and not quoted else value


def _fields(kind: Any) -> dict[str, Any]:
    kind = _without_none(kind)
    return _hints(cast(Any, kind)) if dataclasses.is_dataclass(kind) else {}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _without_none(kind: Any) -> Any:
    """X of ``X | None``."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        rest = [part for part in typing.get_args(kind) if part is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind


def _choices(kind: Any) -> list[Any]:
    """The choices of a Literal, or of a union of Literals."""
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [choice for part in typing.get_args(kind) for choice in _choices(part)]
    return []


def _with_exponents(kind: Any, value: Any) -> Any:
    """Texts such as 1e-3 as numbers where a number is expected."""
    kind = _without_none(kind)
    arguments = typing.get_args(kind)
    if kind is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return number if math.isfinite(number := float(value)) else value
    if isinstance(value, list) and typing.get_origin(kind) is list:
        return [_with_exponents(arguments[0], part) for part in value]
    if isinstance(value, dict):
        nested = arguments[1] if typing.get_origin(kind) is dict else None
        fields = _fields(kind)
        return {n: _with_exponents(nested or fields.get(n, Any), v) for n, v in value.items()}
    return value


_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


def check_ranges(values: Any, ranges: Mapping[str, str], prefix: str = "") -> None:
    """Refuse numbers of a dataclass that lie outside their intervals; null and words are passed over.

    Args:
        values: the dataclass.
        ranges: field -> interval, such as "(0, 1]".
        prefix: of the fields in messages.

    Raises:
        ValueError: outside, naming the field, the interval and the number.

    Example:
        >>> @dataclasses.dataclass
        ... class Network:
        ...     size: int
        >>> check_ranges(Network(7), {"size": "[8, 64)"}, "network.")
        Traceback (most recent call last):
        ...
        ValueError: network.size must be in [8, 64), got 7
    """
    for name, interval in ranges.items():
        value = getattr(values, name)
        parts = _INTERVAL.fullmatch(interval)
        assert parts is not None, interval
        left, low, high, right = parts.groups()
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None or isinstance(number, str):
                continue
            above = number > float(low) or (left == "[" and number == float(low))
            below = number < float(high) or (right == "]" and number == float(high))
            if not (above and below):
                raise ValueError(f"{prefix}{name} must be in {interval}, got {number}")
