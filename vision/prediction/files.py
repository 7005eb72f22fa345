"""Predict image files with a run: label, route and cost of each; unreadable files are reported."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vision.budgets import ResolvedBudget
from vision.data.decode import num_processors
from vision.data.preprocess import UnreadableImageError
from vision.prediction.inputs import Input
from vision.prediction.predictor import Prediction, Predictor
from vision.systems import COE

_AHEAD = 2  # batches that are decoded before they are needed
_TOGETHER = 8  # images that one thread decodes at a time


@dataclass(frozen=True)
class FilePrediction:
    """Outcome for one file; ``error`` says why there is no prediction."""

    file: str
    threshold: float
    label: str | None = None
    probability: float | None = None  # of the label
    exited: bool | None = None  # ended with the rough prediction
    expert: int | None = None  # that ran; None if none did
    confidence: float | None = None  # of the rough prediction
    macs: int | None = None  # spent on this image
    error: str | None = None
    system: str = COE  # that answered


_Batch = tuple[Sequence[Input], list[Future[list[Tensor | str]]]]


def predict_files(
    predictor: Predictor, inputs: Sequence[Input], budget: ResolvedBudget
) -> Iterator[FilePrediction]:
    """Predictions in the order of the inputs; while one batch is predicted the next ones are decoded.

    Args:
        predictor: of a run.
        inputs: images, see `vision.prediction.inputs`.
        budget: see `Predictor.resolve`.
    """
    size = predictor.batch_size
    starts = iter(range(0, len(inputs), size))
    with ThreadPoolExecutor(num_processors()) as decoders:

        def decoding(start: int) -> _Batch:
            batch = inputs[start : start + size]
            parts = [batch[i : i + _TOGETHER] for i in range(0, len(batch), _TOGETHER)]
            return batch, [decoders.submit(_decode, predictor, part) for part in parts]

        ahead = deque(map(decoding, itertools.islice(starts, 1 + _AHEAD)))
        while ahead:
            batch, pending = ahead.popleft()
            decoded = [image for part in pending for image in part.result()]
            ahead.extend(map(decoding, itertools.islice(starts, 1)))
            yield from _predict_batch(predictor, batch, decoded, budget)


def _decode(predictor: Predictor, inputs: Sequence[Input]) -> list[Tensor | str]:
    """Pixels, or what is wrong, of a few images: threads that change hands at every one take longer."""
    decoded: list[Tensor | str] = []
    for one in inputs:
        try:
            decoded.append(predictor.decode(_content(one), one.name))
        except UnreadableImageError as error:
            decoded.append(str(error))
    return decoded


def _content(one: Input) -> Path | bytes:
    try:
        return one.content()
    except (OSError, ValueError) as error:  # of a shard or a table
        raise UnreadableImageError(one.name, str(error)) from error


def _predict_batch(
    predictor: Predictor,
    batch: Sequence[Input],
    decoded: Sequence[Tensor | str],
    budget: ResolvedBudget,
) -> Iterator[FilePrediction]:
    images = [image for image in decoded if isinstance(image, Tensor)]
    predictions: Iterator[Prediction] = iter(())
    if images:
        predictions = iter(predictor.predict_pixels(torch.stack(images), [budget] * len(images)))
    for one, image in zip(batch, decoded, strict=True):
        if isinstance(image, str):
            yield FilePrediction(one.name, budget.threshold, error=image, system=budget.system)
            continue
        prediction = next(predictions)
        yield FilePrediction(
            one.name,
            budget.threshold,
            prediction.label,
            prediction.probability,
            prediction.exited,
            prediction.expert,
            prediction.confidence,
            prediction.macs,
            system=budget.system,
        )
