"""The plugin for fairseq: where it is, and loading it."""

from __future__ import annotations

import argparse
from pathlib import Path

from translation.plugin.loading import load_fairseq

__all__ = ["add_user_dir_options", "load_fairseq", "run_user_dir"]


def add_user_dir_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation user-dir`."""


def run_user_dir(arguments: argparse.Namespace) -> None:
    """Print the folder to give to fairseq's --user-dir."""
    print(Path(__file__).resolve().parents[1])
