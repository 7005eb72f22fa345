"""`coe-vision recipes`: list what is shipped, or copy it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list")
    parser.add_argument("recipe", nargs="?", help="to copy")
    parser.add_argument("to", nargs="?", default=".", help="file or folder (default: here)")


def run(arguments: argparse.Namespace) -> None:
    """List, or copy one; nothing is overwritten."""
    from vision.shipped import find_shipped, heading_of, shipped_recipes, shipped_studies

    if arguments.action == "list":
        if arguments.recipe is not None:
            raise ValueError(f"list takes no name, got {arguments.recipe!r}; copy does")
        shipped = shipped_recipes() | shipped_studies()
        width = 2 + max(map(len, shipped))
        for name, path in shipped.items():
            print(f"{name:{width}}{heading_of(path)}")
        return
    if arguments.recipe is None:
        raise ValueError("copy which recipe? `coe-vision recipes` lists them")
    source = find_shipped(arguments.recipe)
    target = Path(arguments.to)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ValueError(f"{target} exists already and is left as it is; choose another name")
    shutil.copyfile(source, target)
    command = "study" if source in shipped_studies().values() else "train"
    print(f"copied to {target}; run it with: coe-vision {command} {target}")
