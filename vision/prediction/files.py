"""Predict image files with a run: label, route and cost of each; unreadable files are reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vision.budgets import ResolvedBudget
from vision.data import files as image_files
from vision.data.decode import num_processors
from vision.data.preprocess import UnreadableImageError
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


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files as given, folders searched for images by the rule of training: `vision.data.files.find_images`.

    Raises:
        ValueError: a path that does not exist, or nothing to predict.
    """
    images = image_files.find_images(paths)
    if not images.paths:
        listed = ", ".join(map(image_files.printable, paths))
        endings = ", ".join(image_files.image_formats().endings)
        raise ValueError(f"no images in {listed}; known endings: {endings}")
    return [Path(path) for path in images.paths]


def predict_files(
    predictor: Predictor, files: Sequence[Path], budget: ResolvedBudget
) -> Iterator[FilePrediction]:
    """Predictions in the order of the files; while one batch is predicted the next is decoded.

    Args:
        predictor: of a run.
        files: images.
        budget: see `Predictor.resolve`.
    """
    size = predictor.batch_size
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(num_processors()) as decoders:

        def decoding(batch: Sequence[Path]) -> list[Future[Tensor]]:
            return [decoders.submit(predictor.decode, file) for file in batch]

        ahead = decoding(batches[0]) if batches else []
        for number, batch in enumerate(batches):
            pending, ahead = ahead, decoding(batches[number + 1]) if batches[number + 1 :] else []
            yield from _predict_batch(predictor, batch, pending, budget)


def _predict_batch(
    predictor: Predictor,
    batch: Sequence[Path],
    pending: Sequence[Future[Tensor]],
    budget: ResolvedBudget,
) -> Iterator[FilePrediction]:
    images: list[Tensor] = []
    errors: dict[Path, str] = {}
    for file, image in zip(batch, pending, strict=True):
        try:
            images.append(image.result())
        except UnreadableImageError as error:
            errors[file] = str(error)
    predictions: Iterator[Prediction] = iter(())
    if images:
        predictions = iter(predictor.predict_pixels(torch.stack(images), [budget] * len(images)))
    for file in batch:
        if file in errors:
            yield FilePrediction(
                str(file), budget.threshold, error=errors[file], system=budget.system
            )
            continue
        prediction = next(predictions)
        yield FilePrediction(
            str(file),
            budget.threshold,
            prediction.label,
            prediction.probability,
            prediction.exited,
            prediction.expert,
            prediction.confidence,
            prediction.macs,
            system=budget.system,
        )
