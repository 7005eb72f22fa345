"""Predict image files with a run: label, route and cost of each; unreadable files are reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from vision.budgets import ResolvedBudget
from vision.data.decode import num_processors
from vision.data.preprocess import UnreadableImageError
from vision.prediction.inputs import Input
from vision.prediction.predictor import Prediction, Predictor
from vision.systems import COE


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


def predict_files(
    predictor: Predictor, inputs: Sequence[Input], budget: ResolvedBudget
) -> Iterator[FilePrediction]:
    """Predictions in the order of the inputs; while one batch is predicted the next is decoded.

    Args:
        predictor: of a run.
        inputs: images, see `vision.prediction.inputs`.
        budget: see `Predictor.resolve`.
    """
    size = predictor.batch_size
    batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    with ThreadPoolExecutor(num_processors()) as decoders:

        def decoding(batch: Sequence[Input]) -> list[Future[Tensor]]:
            return [decoders.submit(_decode, predictor, one) for one in batch]

        ahead = decoding(batches[0]) if batches else []
        for number, batch in enumerate(batches):
            pending, ahead = ahead, decoding(batches[number + 1]) if batches[number + 1 :] else []
            yield from _predict_batch(predictor, batch, pending, budget)


def _decode(predictor: Predictor, one: Input) -> Tensor:
    try:
        content = one.content()
    except (OSError, ValueError) as error:  # of a shard or a table
        raise UnreadableImageError(one.name, str(error)) from error
    return predictor.decode(content, one.name)


def _predict_batch(
    predictor: Predictor,
    batch: Sequence[Input],
    pending: Sequence[Future[Tensor]],
    budget: ResolvedBudget,
) -> Iterator[FilePrediction]:
    images: list[Tensor] = []
    errors: dict[int, str] = {}
    for place, image in enumerate(pending):
        try:
            images.append(image.result())
        except UnreadableImageError as error:
            errors[place] = str(error)
    predictions: Iterator[Prediction] = iter(())
    if images:
        predictions = iter(predictor.predict_pixels(torch.stack(images), [budget] * len(images)))
    for place, one in enumerate(batch):
        if place in errors:
            yield FilePrediction(
                one.name, budget.threshold, error=errors[place], system=budget.system
            )
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
