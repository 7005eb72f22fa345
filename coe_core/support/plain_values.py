"""Plain values from YAML texts of anyone: bounded, one meaning for each text, no objects.

A recipe, an override and a checkpoint are data. What is read here is numbers, texts, booleans, null, and
lists and dicts of them; nothing in it names a class, a function or a file to load.
"""

from __future__ import annotations

import codecs
import math
import re
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**18  # of a YAML text; recipes have about 2,000
MAX_VALUES = 20_000  # counted as often as aliases repeat them
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_INT = r"[-+]?(?:0b[0-1_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)"
_FLOAT = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
)
_SPECIAL = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """YAML 1.1 but: 1e-3 is a number; dates and 12:30 are texts; keys are texts as they are written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0].removeprefix(_TAG) not in _REPLACED]
    for _REPLACED in [("int", "float", "timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(f"^(?:{_INT})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(f"^(?:{_FLOAT}|{_SPECIAL})$"), list("-+0123456789.")
)


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML file.

    Raises:
        ValueError: cannot be read, too long, not a text in UTF-8, or see `parse_yaml`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is longer than {MAX_BYTES} bytes: that is no recipe")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is a text in UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a text in UTF-8: byte {error.start} is {content[error.start]:#04x}"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not a text: byte {content.index(0)} is 0")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Plain values of a YAML text; ``source`` names it in messages.

    Raises:
        ValueError: not YAML, a key given twice, aliases that multiply or contain themselves, nested too
            deep, or values that are not plain.

    Example:
        >>> parse_yaml("{lr: 1e-3, no: [a, 2024-01-01]}", "recipe")
        {'lr': 0.001, 'no': ['a', '2024-01-01']}
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        tabs = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ValueError(f"{source} is not YAML: {place}{problem}{tabs}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{source} is nested deeper than {MAX_DEPTH} levels") from error
    except (LookupError, ArithmeticError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(  # of a tag such as !!int on what is none
            f"{source} is not YAML: {' '.join(str(error).split()).partition('; use')[0]}"
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """Values and levels below a node, aliases written out; keys are checked on the way."""
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
    if id(node) in known:
        return known[id(node)]
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children, names = [value for _, value in node.value], set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a plain name"
            elif key.value in names:
                problem = f"the key {key.value!r} is given twice"
            else:
                names.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
    counts = [_count(child, known, above | {id(node)}) for child in children]
    values = 1 + sum(value for value, _ in counts)
    levels = 1 + max((level for _, level in counts), default=0)
    if values > MAX_VALUES or levels > MAX_DEPTH:
        problem = f"more than {MAX_VALUES} values, aliases written out"
        if levels > MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    known[id(node)] = values, levels
    return values, levels


def printable_line(message: object, most: int = 600) -> str:
    """A message that may quote anyone's text: in one line, its letters printable, not endless.

    Example:
        >>> printable_line("a\\x85b \\n c")
        'a\\\\x85b c'
    """
    text = "".join(
        letter if letter.isprintable() else " " if letter in "\n\t" else repr(letter)[1:-1]
        for letter in str(message)
    )
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def plain(value: Any, key: str = "", depth: int = 0) -> Any:
    """A copy of plain values, tuples as lists; what else there is, is refused.

    Args:
        value: of anyone, such as a recipe in a checkpoint.
        key: dotted, where the value stands; for messages.
        depth: levels above the value.

    Raises:
        ValueError: something that is not plain, a name that is no text, a number that is not finite or
            too large, a text that cannot be written, or nested too deep.

    Example:
        >>> plain({"a": (1, None, "x")})
        {'a': [1, None, 'x']}
        >>> plain({"a": [{True: 1}]})
        Traceback (most recent call last):
        ...
        ValueError: a[0]: the name True is not text; put it in quotes
    """
    shown = key or "the top"
    if depth > MAX_DEPTH:
        raise ValueError(f"{shown[:80]} is nested deeper than {MAX_DEPTH} levels")
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        if abs(value) >= 2**63:
            raise ValueError(f"{shown}: a number of {len(hex(value)) * 4} bits is too large")
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{shown} must be a finite number, got {value}")
        return value
    if type(value) is str:
        if "\0" in value or not _writable(value):
            raise ValueError(f"{shown}: {value[:40]!r} holds letters that no text can")
        return value
    if isinstance(value, list | tuple):
        return [plain(part, f"{key}[{i}]", depth + 1) for i, part in enumerate(value)]
    if isinstance(value, dict):
        for name in value:
            if type(name) is not str:
                raise ValueError(f"{shown}: the name {name!r} is not text; put it in quotes")
        return {
            plain(name, key): plain(part, f"{key}.{name}" if key else name, depth + 1)
            for name, part in value.items()
        }
    raise ValueError(
        f"{shown}: {type(value).__name__} is no plain value; numbers, texts, true, false, null, lists "
        "and keys with values are"
    )


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
