"""What is exported: each network from pixels to answers, in a copy that the caller's run does not share."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from coe_core import ExitRule, confidence
from vision.data.preprocess import Preprocess
from vision.networks.team import Team, Trunked
from vision.run import Run
from vision.systems import answering

Kind = Literal["onnx", "pt2"]
Graph: TypeAlias = "DelegatorGraph | ExpertGraph | RestGraph | NetworkGraph"
IMAGES, FEATURES = (
    "images",
    "features",
)  # names of what networks see: pixels, or what a trunk made of them


class DelegatorGraph(nn.Module):
    """Pixels -> rough logits, confidence, selected expert, and a shared trunk's features where there is one.

    Normalisation is included.
    """

    seen = IMAGES
    outputs: tuple[str, ...] = ("rough_logits", "confidence", "selected_expert")

    def __init__(self, team: Team, preprocess: Preprocess, rule: ExitRule):
        super().__init__()
        # The delegator alone: the experts are no part of this graph.
        self.delegator, self.num_classes = team.delegator, team.num_classes
        self.preprocess, self.rule = preprocess, rule
        if isinstance(team.delegator, Trunked):
            self.outputs = (*self.outputs, FEATURES)

    def forward(self, images: UInt8[Tensor, "n ch h w"]) -> tuple[Tensor, ...]:
        """Rough logits [n, c], confidence [n], selected expert [n]; features [n, ...] of a trunk."""
        seen, delegator = self.preprocess.normalise(images), self.delegator
        if isinstance(delegator, Trunked):
            seen, delegator = delegator.trunk(seen), delegator.branch
        outputs = delegator(seen)
        rough, selection = outputs[:, : self.num_classes], outputs[:, self.num_classes :]
        answer = rough, self.rule.confidence(rough, selection).float(), selection.argmax(1)
        return (*answer, seen) if FEATURES in self.outputs else answer


class ExpertGraph(nn.Module):
    """Pixels -> logits; normalisation included."""

    seen, outputs = IMAGES, ("logits",)

    def __init__(self, expert: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.expert, self.preprocess = expert, preprocess

    def forward(self, images: UInt8[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        return self.expert(self.preprocess.normalise(images))


class RestGraph(nn.Module):
    """A shared trunk's features -> logits."""

    seen, outputs = FEATURES, ("logits",)

    def __init__(self, expert: nn.Module):
        super().__init__()
        self.expert = expert

    def forward(self, features: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        return self.expert(features)


class NetworkGraph(nn.Module):
    """Pixels -> logits and confidence, of a network that answers alone; normalisation included."""

    seen, outputs = IMAGES, ("logits", "confidence")

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.network, self.preprocess = network, preprocess

    def forward(
        self, images: UInt8[Tensor, "n ch h w"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
        logits = self.network(self.preprocess.normalise(images))
        return logits, confidence(logits)


def own_run(run: Run) -> Run:
    """The run with a copy of its networks: on the CPU, in fp32, in evaluation mode, each called by itself."""
    networks = copy.deepcopy(run.networks).float().cpu().eval()
    for ensemble in networks.ensembles.values():
        ensemble.run_in_loop()
    return dataclasses.replace(run, networks=networks)


def system_graphs(run: Run, system: str, rule: ExitRule | None = None) -> dict[str, Graph]:
    """What is exported of a system of a run that is ours, see `own_run`, by file name: its networks.

    What residual experts add, the rough logits, is added where answers are pooled: see `exported_weight`.

    Args:
        run: whose networks.
        system: that is exported.
        rule: what exits are decided by; None: the default.
    """
    team, preprocess = answering(run.networks, system), run.networks.preprocess
    graphs: dict[str, Graph]
    if not isinstance(team, Team):
        graphs = {"network": NetworkGraph(team, preprocess)}
    else:
        graphs = {"delegator": DelegatorGraph(team, preprocess, rule or ExitRule())}
        trunked = isinstance(team.delegator, Trunked)
        for j, network in enumerate(team.experts):
            expert = RestGraph(network) if trunked else ExpertGraph(network, preprocess)
            graphs[f"expert_{j}"] = expert
    for graph in graphs.values():
        graph.eval()
    return graphs


def exported_weight(run: Run, system: str, rough_weight: float) -> float:
    """Weight of the rough logits beside the exported experts' own: one more where these go on from them."""
    team = answering(run.networks, system)
    return rough_weight + float(isinstance(team, Team) and team.rough_logits)


@torch.no_grad()
def seen_by(graphs: Mapping[str, Graph], pixels: Tensor) -> dict[str, Tensor]:
    """What each graph sees of some pixels: these, or the features that the delegator hands over."""
    values = {IMAGES: pixels}
    if "delegator" in graphs:
        delegator = graphs["delegator"]
        values |= dict(zip(delegator.outputs, delegator(pixels), strict=True))
    return {name: values[graph.seen] for name, graph in graphs.items()}


def example_pixels(run: Run, count: int) -> UInt8[Tensor, "n ch h w"]:
    """Random pixels of the run's shape, the same at every call."""
    preprocess = run.networks.preprocess
    shape = (count, *preprocess.shape)
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
