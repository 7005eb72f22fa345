"""The plugin for fairseq: where it is, and loading it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_user_dir_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation user-dir`."""


def run_user_dir(arguments: argparse.Namespace) -> None:
    """Print the folder to give to fairseq's --user-dir."""
    print(Path(__file__).resolve().parents[1])


def load_fairseq() -> None:
    """fairseq and the plugin, without the lines that its parts log while they load."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="fairseq|hydra|torch")
    warnings.filterwarnings("ignore", "(?s).*ConfigStore schema")
    for name in ("fairseq", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import translation

    translation.register()
