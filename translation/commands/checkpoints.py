"""Checkpoints of fairseq: their mean, what they hold, one network taken out."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from coe_core.support.files import ready_to_write, write_bytes


def add_average_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation average`."""
    parser.add_argument(
        "checkpoints", nargs="+", help="in any order; two after as many updates count once"
    )
    parser.add_argument("--out", required=True, help="file to write; it is replaced")


def run_average(arguments: argparse.Namespace) -> None:
    """Average the parameters of checkpoints of one training."""
    from translation.plugin.checkpoints import average, load_state, num_updates, of_one_training

    ready_to_write(arguments.out, arguments.checkpoints)
    states, doubt = of_one_training({path: load_state(path) for path in arguments.checkpoints})
    _save(average(states), arguments.out)
    if doubt is not None:
        print(f"warning: {doubt}", file=sys.stderr)
    updates = ", ".join(str(num_updates(state)) for state in states)
    print(f"{arguments.out}: mean of {len(states)} checkpoints, after {updates} updates")


def add_take_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation take`."""
    parser.add_argument("checkpoint")
    parser.add_argument("network", help="delegator, expert-0, expert-1, ...")
    parser.add_argument("--out", required=True, help="file to write")


def run_take(arguments: argparse.Namespace) -> None:
    """Take one network out, as a plain fairseq checkpoint."""
    from translation.plugin.checkpoints import load_state, take_network

    if Path(arguments.out).exists():
        raise ValueError(f"{arguments.out} exists; it is not overwritten")
    ready_to_write(arguments.out)
    network = take_network(load_state(arguments.checkpoint), arguments.network)
    _save(network, arguments.out)


def _save(checkpoint: dict[str, Any], path: str) -> None:
    """Through memory: where the disk is full, torch's own writer says what nobody understands."""
    import torch

    content = io.BytesIO()
    torch.save(checkpoint, content)
    write_bytes(path, content.getbuffer())
