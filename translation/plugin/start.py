"""What experts start as: copies of a plain transformer that is trained already."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from translation.plugin.checkpoints import load_state


def copy_into_experts(experts: Iterable[nn.Module], path: str | Path) -> None:
    """Copy the parameters of a plain transformer into every expert.

    Args:
        experts: of the team.
        path: of fairseq's checkpoint of the plain transformer.

    Raises:
        ValueError: no such checkpoint, or one of other sizes or of another dictionary; names what differs.
    """
    stored = load_state(path)["model"]
    for expert in experts:
        own = {name: value.shape for name, value in expert.state_dict().items()}
        theirs = {name: value.shape for name, value in stored.items()}
        if own != theirs:
            name = next(n for n in (*own, *theirs) if own.get(n) != theirs.get(n))
            shapes = [list(sizes[name]) if name in sizes else "missing" for sizes in (theirs, own)]
            raise ValueError(
                f"{path} cannot start the experts: its {name} is {shapes[0]}, theirs {shapes[1]}; it must be "
                "a plain transformer of an expert's sizes, trained with the same dictionary"
            )
        expert.load_state_dict(stored)
