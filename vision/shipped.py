"""The recipes that come with the package: found by name, without importing anything that trains."""

from __future__ import annotations

from pathlib import Path

import coe_recipes

from vision.errors import nearest


def recipes_folder() -> Path:
    """Where the recipes that come with the package are."""
    return next(folder for path in coe_recipes.__path__ if (folder := Path(path)).is_dir())


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe of this adapter that comes with the package."""
    folder = recipes_folder()
    shipped = {path.stem: path for path in sorted((folder / "vision").glob("*.yaml"))}
    for part in ("divide", "imagenet"):
        paths = sorted((folder / part).glob("*.yaml"))
        shipped |= {f"{part}/{path.stem}": path for path in paths}
    return shipped


def shipped_studies() -> dict[str, Path]:
    """Name -> file of every study that comes with the package, see `coe-vision study`."""
    paths = sorted((recipes_folder() / "study").glob("*.yaml"))
    return {f"study/{path.stem}": path for path in paths}


def heading_of(path: Path) -> str:
    """The first line of a recipe file, without its sign of a comment."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().lstrip("# ")


def find_shipped(name: str) -> Path:
    """What is shipped under a name, recipe or study.

    Raises:
        ValueError: nothing is; names the nearest.
    """
    shipped = shipped_recipes() | shipped_studies()
    if name not in shipped:
        raise ValueError(
            f"no shipped recipe is called {name!r}{nearest(name, shipped)}; `coe-vision recipes` "
            "lists them"
        )
    return shipped[name]


def find_study(name: str) -> Path:
    """A file path, or the name of a shipped study, with or without its ``study/``.

    Raises:
        ValueError: neither; names the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    studies = shipped_studies()
    for known in (name, f"study/{name}"):
        if known in studies:
            return studies[known]
    raise ValueError(
        f"no study file and no shipped study is called {name!r}{nearest(f'study/{name}', studies)}; "
        f"there are {', '.join(studies)}"
    )


def find_recipe(name: str) -> Path:
    """A file path, or the name of a shipped recipe.

    Raises:
        ValueError: neither; names the nearest recipe.
    """
    try:
        if Path(name).is_file():
            return Path(name)
        is_other = Path(name).exists() and name not in shipped_recipes()
    except (OSError, ValueError) as error:  # too long, a NUL
        raise ValueError(f"no recipe can be called {name[:80]!r}: {error}") from error
    if is_other:
        kind = "a folder" if Path(name).is_dir() else "no regular file"
        raise ValueError(f"{name!r} is {kind}, not a recipe file; `coe-vision recipes` lists some")
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise ValueError(
        f"no recipe file and no shipped recipe is called {name!r}"
        f"{nearest(Path(name).stem, shipped)}; `coe-vision recipes` lists them"
    )
