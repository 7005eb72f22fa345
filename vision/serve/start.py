"""What a server does before its first request: it runs its networks once, and chooses its threads."""

from __future__ import annotations

import logging

import torch

from vision.precision import autocast
from vision.prediction.budgets import ResolvedBudget
from vision.prediction.predictor import Predictor
from vision.threads import Threads, choose_threads

log = logging.getLogger("coe-serve")
_NO_EXITS = ResolvedBudget("no exits", 2.0, 0.0, None, None)
_IMAGES = 4  # in a batch that is timed: most of a server's batches are small


def warm_up(predictor: Predictor, batch_size: int) -> None:
    """Run every network once, so that no request pays for what is done only once.

    Args:
        predictor: compiled networks are compiled here, which can take minutes.
        batch_size: of the server; the first batch of another size compiles again if it must.
    """
    networks, team = predictor.networks, predictor.networks.required_team
    with torch.inference_mode(), autocast(networks.device, predictor.precision):
        for count in sorted(
            {1, min(2, batch_size)}
        ):  # of one image compilers make a case of its own
            prepared = networks.prepare(_blank(predictor, count).to(networks.device))
            try:
                handed = team.for_experts(team.hand_over(prepared))
            except Exception:
                log.exception("the delegator fails")
                return
            for j, expert in enumerate(team.experts):
                try:
                    expert(handed)
                except Exception:  # its images will fail, others not
                    log.exception("expert %d fails", j)


def serving_threads(predictor: Predictor, batch_size: int) -> Threads:
    """The number of threads with which the server's batches are predicted fastest, see `choose_threads`.

    Args:
        predictor: of the server.
        batch_size: images in its largest batch.
    """
    count = min(_IMAGES, batch_size)
    pixels = _blank(predictor, count)
    macs = count * (predictor.macs.delegator + max(predictor.macs.experts))

    def predict() -> None:
        predictor.predict_pixels(pixels, [_NO_EXITS] * count)

    try:
        return choose_threads(predict, macs, f"a batch of {count} images")
    except Exception:  # told above
        return Threads(torch.get_num_threads())


def _blank(predictor: Predictor, count: int) -> torch.Tensor:
    """Grey pictures, as the networks take them."""
    preprocess = predictor.networks.preprocess
    size = (count, preprocess.channels, preprocess.size, preprocess.size)
    return torch.full(size, 127, dtype=torch.uint8)
