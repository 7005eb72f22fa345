"""Predict image files with a run: label, route and cost of each; unreadable files are reported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from vision.precision import autocast, choose_precision
from vision.predictions import run_macs
from vision.preprocess import UnreadableImageError
from vision.run import Run


@dataclass(frozen=True)
class FilePrediction:
    """Outcome for one file; ``error`` says why there is no prediction."""

    file: str
    label: str | None = None
    probability: float | None = None  # of the label
    exited: bool | None = None  # ended with the rough prediction
    expert: int | None = None  # that ran; None if none did
    confidence: float | None = None  # of the rough prediction
    macs: int | None = None  # spent on this image
    error: str | None = None


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files as given, folders searched for images, in a stable order.

    Raises:
        ValueError: a path that does not exist, or nothing to predict.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
            found += sorted(p for p in inside if p.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist")
    if not found:
        raise ValueError(
            f"no images in {', '.join(map(str, paths))}; known endings: {', '.join(IMG_EXTENSIONS)}"
        )
    return found


@torch.inference_mode()
def predict_files(
    run: Run,
    files: Sequence[Path],
    threshold: float,
    batch_size: int = 64,
    rough_weight: float = 0.0,
) -> Iterator[FilePrediction]:
    """Predictions in the order of the files, one batch at a time.

    Args:
        run: trained.
        files: images.
        threshold: exit when confidence >= threshold.
        batch_size: files decoded and predicted together.
        rough_weight: of the rough logits where an expert runs, see `coe_core.fit_rough_weight`.

    Raises:
        ValueError: threshold NaN or below 0, or batch_size below 1.
    """
    if math.isnan(threshold) or threshold < 0:
        raise ValueError(
            f"threshold must be at least 0, got {threshold}; 0 exits all, above 1 exits none"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    macs = run_macs(run.networks)
    precision = choose_precision(run.recipe.train.precision)
    for start in range(0, len(files), batch_size):
        outcomes: list[FilePrediction | None] = []
        images = []
        for file in files[start : start + batch_size]:
            try:
                images.append(run.networks.preprocess.load(file))
                outcomes.append(None)
            except UnreadableImageError as error:
                outcomes.append(FilePrediction(str(file), error=str(error)))
        rows = iter(())
        if images:
            with autocast(run.networks.device, precision):
                prepared = run.networks.prepare(torch.stack(images).to(run.networks.device))
                result = run.networks.team.infer(prepared, threshold, rough_weight=rough_weight)
            probability, label = result.prediction.softmax(1).max(1)
            rows = zip(
                label.tolist(),
                probability.tolist(),
                result.exits.tolist(),
                result.selected_expert.tolist(),
                result.confidence.tolist(),
                strict=True,
            )
        for file, outcome in zip(files[start : start + batch_size], outcomes, strict=True):
            if outcome is not None:
                yield outcome
                continue
            index, likelihood, exited, expert, sureness = next(rows)
            yield FilePrediction(
                str(file),
                run.networks.classes[index],
                likelihood,
                exited,
                None if exited else expert,
                sureness,
                macs.delegator + (0 if exited else macs.experts[expert]),
            )
