"""The coe-vision command: a table of commands, each in a file of its own."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from coe_core.support.command import Command, Parser, build_parser, run_command

PROGRAM = "coe-vision"
DESCRIPTION = "Train, calibrate and use a Collaboration of Experts on images."
COMMANDS = [
    Command(name, f"vision.commands.{name}", text)
    for name, text in (
        ("check", "Read a folder or table before training; say what is wrong and what is odd."),
        ("train", "Train a recipe: delegator, experts and controls."),
        ("evaluate", "Table and pictures of one run, or of several seeds."),
        ("calibrate", "Fit thresholds on held-out data, keep them in the run."),
        ("predict", "Predict image files, each with its route."),
        ("report", "One page to look at: what is deployed and why, errors, reliability, routes."),
        ("export", "Write a run for use elsewhere: ONNX or torch.export."),
        ("serve", "Serve a run over HTTP, with a page to try it."),
        ("recipes", "List the shipped recipes and studies, or copy one to change it."),
        ("inspect", "MACs and parameters of a recipe's or run's networks."),
        ("divide", "Divide a network into S small ones of its cost; print what they become."),
        (
            "advise",
            "Train for a few minutes; say whether a team, a cascade or one network will win.",
        ),
        ("study", "Compare variants of a recipe over seeds, beside the line of single networks."),
    )
]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit status; what is wrong is said in one line on stderr."""
    return run_command(PROGRAM, DESCRIPTION, COMMANDS, argv, _quieten)


def parser() -> Parser:
    """The parser of all commands."""
    return build_parser(PROGRAM, DESCRIPTION, COMMANDS)


def _quieten() -> None:
    """Leave out what a user cannot act on: banners, tips and hints on worker counts."""
    loading = (
        "lightning.pytorch.trainer.connectors.checkpoint_connector"  # how it reads its own file
    )
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", loading):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*The dirpath has changed.*",
        ".*srun.*",
    ):
        warnings.filterwarnings("ignore", text)


if __name__ == "__main__":
    sys.exit(main())
