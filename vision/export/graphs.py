"""What is exported: each network from pixels to answers, in a copy that the caller's run does not share."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from coe_core import confidence
from vision.data.preprocess import Preprocess
from vision.run import Run

Kind = Literal["onnx", "pt2"]
OUTPUTS = {"delegator": ["rough_logits", "confidence", "selected_expert"], "expert": ["logits"]}


class DelegatorGraph(nn.Module):
    """Pixels -> rough logits, confidence, selected expert; normalisation included."""

    def __init__(self, delegator: nn.Module, preprocess: Preprocess, num_classes: int):
        super().__init__()
        self.delegator, self.preprocess, self.num_classes = delegator, preprocess, num_classes

    def forward(
        self, images: UInt8[Tensor, "n ch size size"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Int[Tensor, " n"]]:
        outputs = self.delegator(self.preprocess.normalise(images))
        rough = outputs[:, : self.num_classes]
        return rough, confidence(rough), outputs[:, self.num_classes :].argmax(1)


class ExpertGraph(nn.Module):
    """Pixels -> logits; normalisation included."""

    def __init__(self, expert: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.expert, self.preprocess = expert, preprocess

    def forward(self, images: UInt8[Tensor, "n ch size size"]) -> Float[Tensor, "n c"]:
        return self.expert(self.preprocess.normalise(images))


def own_run(run: Run) -> Run:
    """The run with a copy of its networks: on the CPU, in fp32, in evaluation mode."""
    return dataclasses.replace(run, networks=copy.deepcopy(run.networks).float().cpu().eval())


def team_graphs(run: Run) -> dict[str, nn.Module]:
    """What is exported of a run that is ours, see `own_run`, by file name."""
    team, preprocess = run.networks.required_team, run.networks.preprocess
    delegator = DelegatorGraph(team.delegator, preprocess, team.num_classes)
    graphs: dict[str, nn.Module] = {"delegator": delegator}
    graphs |= {f"expert_{j}": ExpertGraph(net, preprocess) for j, net in enumerate(team.experts)}
    return {name: graph.eval() for name, graph in graphs.items()}


def example_pixels(run: Run, count: int) -> UInt8[Tensor, "n ch size size"]:
    """Random pixels of the run's shape, the same at every call."""
    preprocess = run.networks.preprocess
    shape = (count, preprocess.channels, preprocess.size, preprocess.size)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


@contextmanager
def undisturbed() -> Iterator[None]:
    """The caller's random numbers and number of threads are afterwards what they were before."""
    import numpy as np

    threads, drawn = torch.get_num_threads(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):  # all of it runs on the CPU
        try:
            yield
        finally:
            np.random.set_state(drawn)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
