"""Checkpoints of fairseq: their mean, what they hold, one network taken out."""

from __future__ import annotations

import argparse
import io
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
    from translation.plugin.checkpoints import average, load_state, num_updates

    ready_to_write(arguments.out, arguments.checkpoints)
    loaded = (load_state(path) for path in arguments.checkpoints)
    by_updates = {num_updates(state): state for state in loaded}
    states = [by_updates[updates] for updates in sorted(by_updates)]
    _save(average(states), arguments.out)
    updates = ", ".join(map(str, sorted(by_updates)))
    print(f"{arguments.out}: mean of {len(states)} checkpoints, after {updates} updates")


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation inspect`."""
    parser.add_argument("checkpoint")


def run_inspect(arguments: argparse.Namespace) -> None:
    """Networks, sizes and settings of a checkpoint."""
    from translation.plugin.checkpoints import (
        load_state,
        network_names,
        network_sizes,
        num_experts_of,
        num_updates,
    )
    from translation.plugin.trust import sections

    state = load_state(arguments.checkpoint)
    num_experts = num_experts_of(state)
    networks = {name: network_sizes(state, name) for name in network_names(num_experts)}
    config = sections(state)
    print(f"{config['model']['_name']}, {num_experts} experts")
    print(f"updates {num_updates(state)}")
    print(f"{'network':12} {'encoder':>8} {'decoder':>8} {'width':>6} {'parameters':>12}")
    for name, sizes in networks.items():
        print(
            f"{name:12} {sizes.encoder_layers:8} {sizes.decoder_layers:8} "
            f"{sizes.width:6} {sizes.num_parameters:12,}"
        )
    shown = ("focus", "focus_warmup", "selection_labels", "selection_weight", "agreement")
    for name in shown:
        print(f"{name} {config.get('criterion', {}).get(name)}")


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
