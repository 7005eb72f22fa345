"""A trained run as a function of images, for programs and servers: any budget, any thread."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from coe_core import ExitRule
from vision.budgets import ResolvedBudget, resolve_budget
from vision.data.bands import bands_of, to_tensor
from vision.data.decode import num_processors
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.errors import CoEError, RunError
from vision.precision import PRECISIONS, autocast, choose_precision
from vision.recipe_networks import run_macs
from vision.run import Run, load_run
from vision.systems import System, build_system, find_system, systems_of

ImageSource = str | PathLike | bytes | Image.Image | np.ndarray
_SOURCES = "give a file's name or bytes, a Pillow image or an array of uint8, or several in a list"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says of one image, and how it came about."""

    label: str
    probabilities: Float[np.ndarray, " c"]  # of the classes, in the run's order
    exited: bool | None  # ended with the rough prediction; None: of a system that has none
    expert: int | None  # that ran; None if none did
    confidence: float  # of the rough prediction, where there is none of the prediction
    rough_label: str
    macs: int  # spent on this image

    @property
    def probability(self) -> float:
        """The probability of the label."""
        return float(self.probabilities.max())


class Predictor:
    """Predicts images with a run: with the system that `calibrate` chose for the budget, or the one named.

    May be called from several threads at once; at most ``concurrency`` batches are in work, each of
    at most ``batch_size`` images, so memory is bounded however many images or threads there are.

    Args:
        run: a `Run`, its folder, or a checkpoint file.
        budget: when a call gives none: an operating point's name, or multiply-adds such as "100M".
        system: that answers: "coe", "cascade", "single:NAME", "ensemble:NAME"; None: the one chosen for
            the budget, see `vision.budgets.resolve_budget`.
        batch_size: images decoded and predicted together.
        precision: of the arithmetic: "32-true", "bf16-mixed", "16-mixed"; "auto" is that of training.
        compiled: run every network through torch.compile (slow first calls; needs a C++ compiler);
            or the name of one of its backends.
        concurrency: batches in work at a time, over all threads.
        max_pixels: of one image before it is resized; None is Pillow's own limit.

    Raises:
        RunError: no such run, or no such budget.
        ValueError: a size below 1, or an unknown precision.

    Example:
        >>> predictor = Predictor("runs/digits")  # doctest: +SKIP
        >>> predictor(["photo.jpg", picture], budget="100M")[0].label  # doctest: +SKIP
        'cat'
    """

    def __init__(
        self,
        run: Run | str | PathLike[str],
        *,
        budget: str | float | None = None,
        system: str | None = None,
        batch_size: int = 64,
        precision: str = "auto",
        compiled: bool | str = False,
        concurrency: int = 2,
        max_pixels: int | None = None,
    ):
        sizes = {"batch_size": batch_size, "concurrency": concurrency, "max_pixels": max_pixels}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
        self.run = run if isinstance(run, Run) else load_run(run, team=False)
        self.budget, self.batch_size, self.max_pixels = budget, batch_size, max_pixels
        self.networks = self.run.networks.eval()
        self.classes = self.networks.classes
        self.macs = run_macs(self.networks)
        self.named_system = None if system is None else find_system(self.run.recipe, system)
        self.systems = {
            n: build_system(self.networks, self.macs, n) for n in self._systems_in_use()
        }
        settings = self.run.recipe.train
        self.precision = choose_precision(settings.precision if precision == "auto" else precision)
        self._turns = threading.BoundedSemaphore(concurrency)
        self._decoders = ThreadPoolExecutor(num_processors(), thread_name_prefix="decode")
        if compiled:
            backend = "inductor" if compiled is True else compiled
            for ensemble in self.networks.ensembles.values():
                ensemble.run_in_loop()
            networks = {id(n): n for system in self.systems.values() for n in system.networks}
            for network in networks.values():
                network.compile(dynamic=True, backend=backend)

    def resolve(
        self, budget: str | float | None = None, threshold: float | None = None
    ) -> ResolvedBudget:
        """System and threshold for a budget, see `resolve_budget`; the predictor's own if none is given."""
        if budget is None and threshold is None:
            budget = self.budget
        return resolve_budget(self.run, budget, threshold, self.named_system)

    @property
    def expected_systems(self) -> list[str]:
        """The systems that stored operating points lead to, the one of its own budget first."""
        try:
            first = [self.resolve().system]
        except (ValueError, CoEError):  # a run that was never calibrated; a request will say so
            first = []
        stored = {} if self.named_system else self.run.operating_points
        deployed = [self.run.stored.deployed(name) for name in stored]
        return list(dict.fromkeys([*first, *deployed])) or list(self.systems)[:1]

    def _systems_in_use(self) -> list[str]:
        """Those that a budget can lead to."""
        return systems_of(self.run.recipe) if self.named_system is None else [self.named_system]

    def __call__(
        self,
        images: Iterable[ImageSource] | ImageSource,
        budget: str | float | None = None,
        threshold: float | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the images; always a list, also for one image.

        Args:
            images: each a file name, the bytes of a file, a Pillow image (set upright by its EXIF data as a
                file is), or pixels (uint8; h x w, or h x w x 1, 3, 4 or as many channels as the run has).
            budget: an operating point's name, or mean multiply-adds per image such as "100M".
            threshold: instead of a budget: exit when confidence >= threshold.

        Raises:
            UnreadableImageError: a file that cannot be decoded, or an image of too many pixels.
            ValueError: an array that is not an image, or what is none of these; a budget and a threshold; a
                bad threshold.
            RunError: a budget that the run cannot resolve, or a network that has diverged.
        """
        several = _several(images)
        resolved = self.resolve(budget, threshold)
        predictions: list[Prediction] = []
        for start in range(0, len(several), self.batch_size):
            part = several[start : start + self.batch_size]
            with self._turns:
                pixels = torch.stack(list(self._decoders.map(self.decode, part)))
                predictions += self._predict(
                    pixels,
                    self.systems[resolved.system],
                    resolved.threshold,
                    resolved.rough_weight,
                    resolved.rule,
                )
        return predictions

    def decode(self, image: ImageSource, name: str | None = None) -> UInt8[Tensor, "ch h w"]:
        """One image as the networks take it, see `decode_image`."""
        return decode_image(self.networks.preprocess, image, name, self.max_pixels)

    def predict_pixels(
        self, pixels: UInt8[Tensor, "n ch h w"], budgets: Sequence[ResolvedBudget]
    ) -> list[Prediction]:
        """Predictions of decoded images, each with a budget of its own: for servers."""
        predictions: dict[int, Prediction] = {}
        with self._turns:
            for name in dict.fromkeys(budget.system for budget in budgets):
                rows = [row for row, budget in enumerate(budgets) if budget.system == name]
                thresholds = torch.tensor([budgets[row].threshold for row in rows])
                weights = torch.tensor([budgets[row].rough_weight for row in rows])
                rules = [budgets[row].rule for row in rows]
                seen = pixels if len(rows) == len(pixels) else pixels[rows]
                answers = self._predict(seen, self.systems[name], thresholds, weights, rules)
                predictions |= dict(zip(rows, answers, strict=True))
        return [predictions[row] for row in range(len(budgets))]

    def seen(self, system: System, pixels: UInt8[Tensor, "n ch h w"]) -> Tensor:
        """What a system's networks take of decoded images."""
        return pixels if system.sees_pixels else self.networks.prepare(pixels)

    @torch.inference_mode()
    def _predict(
        self,
        pixels: Tensor,
        system: System,
        threshold: float | Tensor,
        rough_weight: float | Tensor,
        rule: ExitRule | Sequence[ExitRule],
    ) -> list[Prediction]:
        device = self.networks.device
        if isinstance(rough_weight, Tensor):
            rough_weight = rough_weight.to(device)
        with autocast(device, self.precision):
            seen = self.seen(system, pixels.to(device))
            result = system.infer(seen, threshold, rule, rough_weight, streams=True)
        probabilities = result.prediction.softmax(1)
        columns = (
            probabilities.argmax(1),
            result.rough.argmax(1),
            result.exits,
            result.selected_expert,
            result.confidence,
        )
        rows = [_Answer(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
        return [
            self._prediction(system, chances, answer)
            for chances, answer in zip(probabilities.cpu().numpy(), rows, strict=True)
        ]

    def _prediction(self, system: System, chances: np.ndarray, answer: _Answer) -> Prediction:
        alone = system.team is None
        if not np.isfinite(chances).all():
            name = "the delegator" if answer.exited else f"expert {answer.expert}"
            raise diverged(self.run.folder, system.name if alone else name)
        by_expert = not (alone or answer.exited)
        return Prediction(
            self.classes[answer.label],
            chances,
            None if alone else answer.exited,
            answer.expert if by_expert else None,
            answer.confidence,
            self.classes[answer.rough_label],
            system.first_macs + (system.expert_macs[answer.expert] if by_expert else 0),
        )


class _Answer(NamedTuple):
    """What the networks answer to one image, classes and expert by their numbers."""

    label: int
    rough_label: int
    exited: bool
    expert: int
    confidence: float


def diverged(folder: Path, name: str) -> RunError:
    """The error of a network of a run whose answer is no number."""
    return RunError(
        f"{folder}: {name} gives values that are not finite; it has diverged: train it again with a lower "
        "train.lr"
    )


def decode_image(
    preprocess: Preprocess,
    image: ImageSource,
    name: str | None = None,
    max_pixels: int | None = None,
) -> UInt8[Tensor, "ch h w"]:
    """One image as the networks take it, before normalisation.

    Args:
        preprocess: of the run.
        image: see `Predictor`.
        name: of the image in messages.
        max_pixels: of a file before it is resized; None is Pillow's own limit.

    Raises:
        UnreadableImageError: cannot be decoded, or has too many pixels, or none.
        ValueError: an array that is not an image, or what is none of these.
    """
    if isinstance(image, np.ndarray):
        channels = preprocess.channels
        own = channels not in (1, 3) and image.shape[2:] == (channels,) and image.dtype == np.uint8
        if own and image.size:
            return to_tensor(preprocess.fit(bands_of(image), name or "in memory"))
        image = picture_of(image)
    file: io.BytesIO | Path | Image.Image
    if isinstance(image, Image.Image):
        file = image
    elif isinstance(image, str | PathLike | bytes):
        file = io.BytesIO(image) if isinstance(image, bytes) else Path(image)
    else:
        raise ValueError(f"an image cannot be of type {type(image).__name__}; {_SOURCES}")
    try:
        return preprocess.load(file, max_pixels)
    except UnreadableImageError as error:
        name = name or ("in memory" if isinstance(image, bytes) else error.path)
        reason = error.reason.replace(str(file), name)
        raise UnreadableImageError(name, reason) from error


def _several(
    images: Iterable[ImageSource] | ImageSource,
) -> Sequence[ImageSource] | np.ndarray:
    """Images in a row: one alone, a stack of pixels, or any number of them."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return images
    if isinstance(images, ImageSource):
        return [images]
    if isinstance(images, Sequence):
        return cast(Sequence[ImageSource], images)
    if isinstance(images, Iterable) and not hasattr(images, "dtype"):
        return list(images)
    raise ValueError(f"images cannot be of type {type(images).__name__}; {_SOURCES}")


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Pillow's form of uint8 pixels, h x w or h x w x 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Raises:
        ValueError: another type or shape, or no pixels.

    Example:
        >>> picture_of(np.zeros((4, 6, 3), np.uint8)).size
        (6, 4)
    """
    if pixels.size == 0:
        raise ValueError(f"an image of {' x '.join(map(str, pixels.shape))} has no pixels")
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f"an image is uint8 of h x w, or h x w x 1, 3 or 4 channels; got {pixels.dtype} of "
            f"shape {' x '.join(map(str, pixels.shape))}"
        )
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and channels == 1 else pixels)
