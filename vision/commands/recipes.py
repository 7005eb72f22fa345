"""`coe-vision recipes`: list what is shipped, or copy it."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list")
    parser.add_argument("recipe", nargs="?", help="to copy")
    parser.add_argument("to", nargs="?", default=".", help="file or folder (default: here)")


def run(arguments: argparse.Namespace) -> None:
    """List, or copy one; nothing is overwritten."""
    from coe_core.support.recipes import copy_shipped, find_shipped, print_shipped
    from vision.shipped import PROGRAM, shipped_recipes, shipped_studies

    shipped, studies = shipped_recipes() | shipped_studies(), shipped_studies()
    if arguments.action == "list":
        if arguments.recipe is not None:
            raise ValueError(f"list takes no name, got {arguments.recipe!r}; copy does")
        print_shipped(shipped)
        return
    if arguments.recipe is None:
        raise ValueError(f"copy which recipe? `{PROGRAM} recipes` lists them")
    source = find_shipped(arguments.recipe, shipped, PROGRAM)
    target = copy_shipped(source, arguments.to)
    command = "study" if source in studies.values() else "train"
    print(f"copied to {target}; run it with: {PROGRAM} {command} {target}")
