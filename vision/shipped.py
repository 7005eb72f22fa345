"""The recipes of this adapter that come with the package, without importing anything that trains."""

from __future__ import annotations

from pathlib import Path

from coe_core.support import recipes
from coe_core.support.command import nearest

PROGRAM = "coe-vision"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe of this adapter that comes with the package."""
    folder = recipes.recipes_folder()
    shipped = {path.stem: path for path in sorted((folder / "vision").glob("*.yaml"))}
    for part in ("divide", "imagenet"):
        paths = sorted((folder / part).glob("*.yaml"))
        shipped |= {f"{part}/{path.stem}": path for path in paths}
    return shipped


def shipped_studies() -> dict[str, Path]:
    """Name -> file of every study that comes with the package, see `coe-vision study`."""
    paths = sorted((recipes.recipes_folder() / "study").glob("*.yaml"))
    return {f"study/{path.stem}": path for path in paths}


def find_recipe(name: str) -> Path:
    """A file path, or the name of a shipped recipe, see `coe_core.support.recipes.find_recipe`."""
    return recipes.find_recipe(name, shipped_recipes(), PROGRAM)


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
