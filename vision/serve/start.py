"""What a server does before its first request: it runs its networks once, and chooses its threads."""

from __future__ import annotations

import logging

import torch

from coe_core.threads import Threads, choose_threads
from vision.budgets import ResolvedBudget
from vision.precision import autocast
from vision.prediction.predictor import Predictor
from vision.systems import System

log = logging.getLogger("coe-serve")
_IMAGES = 4  # in a batch that is timed: most of a server's batches are small


def warm_up(predictor: Predictor, batch_size: int) -> None:
    """Run every network once, so that no request pays for what is done only once.

    Args:
        predictor: compiled networks are compiled here, which can take minutes.
        batch_size: of the server; the first batch of another size compiles again if it must.
    """
    networks = predictor.networks
    with torch.inference_mode(), autocast(networks.device, predictor.precision):
        for count in sorted(
            {1, min(2, batch_size)}
        ):  # of one image compilers make a case of its own
            pixels = _blank(predictor, count).to(networks.device)
            for name in predictor.expected_systems:
                system = predictor.systems[name]
                _run_once(system, predictor.seen(system, pixels))


def _run_once(system: System, seen: torch.Tensor) -> None:
    """Every network of a system; one that fails will fail its images, others not."""
    if system.team is None:
        try:
            system.infer(seen)
        except Exception:
            log.exception("%s fails", system.name)
        return
    try:
        handed = system.team.for_experts(system.team.hand_over(seen))
    except Exception:
        log.exception("the delegator fails")
        return
    for j, expert in enumerate(system.team.experts):
        try:
            expert(handed)
        except Exception:
            log.exception("expert %d fails", j)


def serving_threads(predictor: Predictor, batch_size: int) -> Threads:
    """The number of threads with which the server's batches are predicted fastest, see `choose_threads`.

    Args:
        predictor: of the server.
        batch_size: images in its largest batch.
    """
    count = min(_IMAGES, batch_size)
    pixels = _blank(predictor, count)
    system = predictor.systems[predictor.expected_systems[0]]
    macs = count * system.most_macs
    without_exits = ResolvedBudget("no exits", 2.0, 0.0, None, None, system=system.name)

    def predict() -> None:
        predictor.predict_pixels(pixels, [without_exits] * count)

    try:
        return choose_threads(predict, macs, f"a batch of {count} images")
    except Exception:  # told above
        return Threads(torch.get_num_threads())


def _blank(predictor: Predictor, count: int) -> torch.Tensor:
    """Grey pictures, as the networks take them."""
    preprocess = predictor.networks.preprocess
    return torch.full((count, *preprocess.shape), 127, dtype=torch.uint8)
