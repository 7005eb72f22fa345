"""Recipes of both adapters: found by name, listed, copied, read with ``key=value`` overrides, compared."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import coe_recipes

from coe_core.support.command import nearest


def recipes_folder() -> Path:
    """Where the recipes that come with the package are."""
    return next(folder for path in coe_recipes.__path__ if (folder := Path(path)).is_dir())


def heading_of(path: Path) -> str:
    """The first line of a recipe file, without its sign of a comment."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().lstrip("# ")


def find_recipe(name: str, shipped: Mapping[str, Path], program: str) -> Path:
    """A file path, or the name of a shipped recipe.

    Args:
        name: of either.
        shipped: name -> file.
        program: whose command ``recipes`` lists them, for messages.

    Raises:
        ValueError: neither; names the nearest recipe.
    """
    try:
        if Path(name).is_file():
            return Path(name)
        is_other = Path(name).exists() and name not in shipped
    except (OSError, ValueError) as error:  # too long, a NUL
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ValueError(f"no recipe can be called {name[:80]!r}: {reason}") from error
    if is_other:
        kind = "a folder" if Path(name).is_dir() else "no regular file"
        raise ValueError(f"{name!r} is {kind}, not a recipe file; `{program} recipes` lists some")
    if name in shipped:
        return shipped[name]
    raise ValueError(
        f"no recipe file and no shipped recipe is called {name!r:.200}"
        f"{nearest(Path(name).stem, shipped)}; `{program} recipes` lists them"
    )


def find_shipped(name: str, shipped: Mapping[str, Path], program: str) -> Path:
    """What is shipped under a name.

    Raises:
        ValueError: nothing is; names the nearest.
    """
    if name not in shipped:
        raise ValueError(
            f"no shipped recipe is called {name!r}{nearest(name, shipped)}; `{program} recipes` "
            "lists them"
        )
    return shipped[name]


def print_shipped(shipped: Mapping[str, Path]) -> None:
    """Name and heading of each, a line each."""
    width = 2 + max(map(len, shipped))
    for name, path in shipped.items():
        print(f"{name:{width}}{heading_of(path)}")


def copy_shipped(source: Path, to: str) -> Path:
    """Copy a file to a file or into a folder; returns where it is.

    Raises:
        ValueError: there is one already; it is left as it is.
    """
    target = Path(to)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ValueError(f"{target} exists already and is left as it is; choose another name")
    shutil.copyfile(source, target)
    return target


def read_recipe(kind: type, path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values of a recipe file with ``key=value`` overrides, not yet checked.

    Args:
        kind: dataclass that they are for, see `coe_core.support.typed.parse_override`.
        path: of the file.
        overrides: taken literally where the key holds a text, else YAML.

    Raises:
        ValueError: not YAML of keys and values, or an override that is not of the form key=value.
    """
    from coe_core.support.plain_values import read_yaml
    from coe_core.support.typed import parse_override

    values = read_yaml(path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: expected keys and values at its top")
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().split(".")
        if not equals or not all(keys):
            raise ValueError(f"override {override!r:.200} is not of the form key=value")
        set_value(values, keys, parse_override(kind, keys, text, f"override {override!r:.200}"))
    return values


def set_value(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested key; ``experts.width`` style keys reach into the one entry of a list.

    Raises:
        ValueError: something that holds no keys is in the way.

    Example:
        >>> values = {"experts": [{"width": 2}]}
        >>> set_value(values, ["experts", "width"], 3)
        >>> values
        {'experts': [{'width': 3}]}
    """
    from coe_core.support.plain_values import printable_line

    for key in keys[:-1]:
        nested = values.setdefault(key, {})
        if isinstance(nested, list) and len(nested) == 1:
            nested = nested[0]
        if not isinstance(nested, dict):
            where = f"override {'.'.join(keys):.200}: {key!r:.80}"
            raise ValueError(printable_line(f"{where} holds {nested!r:.200}, not keys"))
        values = nested
    values[keys[-1]] = value


def differences(old: Any, new: Any, may_differ: Collection[str] = (), key: str = "") -> list[str]:
    """A line for each value that differs between two recipes.

    Args:
        old: plain values.
        new: of another one.
        may_differ: dotted keys that do not count, nor do those below them.
        key: dotted, where the values stand.

    Example:
        >>> old = {"train": {"lr": 0.1}, "data": {"path": "a"}}
        >>> differences(old, {"train": {"lr": 1}, "data": {}}, ["data.path"])
        ['train.lr was 0.1, now 1']
    """
    if key in may_differ:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            line
            for name in names
            for line in differences(
                old.get(name), new.get(name), may_differ, f"{key}.{name}".lstrip(".")
            )
        ]
    return [] if old == new else [f"{key} was {old!r}, now {new!r}"]
