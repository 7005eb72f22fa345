"""Whether a network can be trained as a classifier: tried on a copy, in training and in evaluation."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from vision.networks.network import OwnView


def check_outputs(network: nn.Module, images: Tensor, num_outputs: int, part: str) -> None:
    """Refuse a network that does not return one row of logits for each image, or cannot be trained on them.

    A copy is run; the caller's random numbers stay as they are.

    Args:
        network: on the device of the images.
        images: one batch, or the features that stand for it; as small as that of a training step.
        num_outputs: of the network.
        part: what the network is, for messages.

    Raises:
        ValueError: see above; a batch of one image where batch normalisation sees one value per channel.

    Example:
        >>> norm = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> check_outputs(norm, torch.zeros(2, 1, 2, 2), 3, "expert 0")
        >>> check_outputs(norm, torch.zeros(1, 1, 2, 2), 3, "expert 0")
        Traceback (most recent call last):
        ...
        ValueError: expert 0 cannot be trained on batches of one image, which batch normalisation cannot \
normalise: raise train.batch_size to 2 per process or more
    """
    copy = deepcopy(network)
    for training in (True, False):
        copy.train(training)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                outputs = copy(images)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if len(images) == 1 and "more than 1 value per channel" in reason:
                raise ValueError(
                    f"{part} cannot be trained on batches of one image, which batch normalisation "
                    "cannot normalise: raise train.batch_size to 2 per process or more"
                ) from error
            shape, key = list(images.shape[1:]), "data.size"
            if isinstance(network, OwnView) and network.size is not None:
                shape, key = [shape[0], network.size, network.size], "its size"
            raise ValueError(
                f"{part} cannot be trained on images of {' x '.join(map(str, shape))}: "
                f"{reason}; change {key}, or the network's options"
            ) from error
        expected = (len(images), num_outputs)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
            raise ValueError(
                f"{part} returns {_shown(outputs)} for {expected[0]} images, not one row of "
                f"{num_outputs} logits each: an option of it asks for other outputs"
            )


def _shown(outputs: object) -> str:
    if isinstance(outputs, Tensor):
        return f"an array of {' x '.join(map(str, outputs.shape))}"
    count = f" of {len(outputs)}" if isinstance(outputs, tuple | list | dict) else ""
    return f"a {type(outputs).__name__}{count}"
