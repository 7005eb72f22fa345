"""The recipes of translation that come with the package, without importing anything that trains."""

from __future__ import annotations

from pathlib import Path

from coe_core.support import recipes

PROGRAM = "coe-translation"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe of translation that comes with the package."""
    paths = sorted((recipes.recipes_folder() / "translation").glob("*.yaml"))
    return {path.stem: path for path in paths}


def find_recipe(name: str) -> Path:
    """A file path, or the name of a shipped recipe, see `coe_core.support.recipes.find_recipe`."""
    return recipes.find_recipe(name, shipped_recipes(), PROGRAM)
