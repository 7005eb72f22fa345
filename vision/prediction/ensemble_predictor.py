"""An ensemble of a run as a function of images: the mean of its networks, no exits, no selection."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor

from coe_core import ExitRule
from vision.errors import RunError, nearest
from vision.precision import autocast
from vision.prediction.budgets import ResolvedBudget
from vision.prediction.predictor import Prediction, Predictor, diverged
from vision.run import Run, load_run


class EnsemblePredictor(Predictor):
    """Predicts images with an ensemble: every image costs the same, all its s networks.

    Args:
        run: a `Run`, its folder, or a checkpoint file; it needs no delegator and experts.
        ensemble: by name; None: the only one.
        batch_size: images decoded and predicted together.
        precision: see `Predictor`.
        max_pixels: see `Predictor`.

    Raises:
        RunError: no such run or ensemble, or several and none named.
    """

    def __init__(
        self,
        run: Run | str | PathLike[str],
        ensemble: str | None = None,
        *,
        batch_size: int = 64,
        precision: str = "auto",
        max_pixels: int | None = None,
    ):
        super().__init__(
            run if isinstance(run, Run) else load_run(run, team=False),
            batch_size=batch_size,
            precision=precision,
            max_pixels=max_pixels,
        )
        known = list(self.networks.ensembles)
        if ensemble is None and len(known) == 1:
            ensemble = known[0]
        if ensemble not in known:
            asked = "name one" if ensemble is None else f"there is no {ensemble!r}"
            raise RunError(
                f"{self.run.folder} has the ensembles {', '.join(known) or '(none)'}: {asked}"
                f"{nearest(ensemble or '', known)} (--ensemble)"
            )
        self.name, self.ensemble = ensemble, self.networks.ensembles[ensemble]
        self.cost = self.ensemble.division.s * self.macs.ensembles[ensemble]

    def resolve(
        self, budget: str | float | None = None, threshold: float | None = None
    ) -> ResolvedBudget:
        """There is nothing to choose.

        Raises:
            ValueError: a budget or a threshold.
        """
        if budget is not None or threshold is not None:
            raise ValueError("an ensemble always runs whole: it takes no --at and no --threshold")
        return ResolvedBudget("ensemble", 0.0, 0.0, 0.0, 0)

    @torch.inference_mode()
    def _predict(
        self,
        pixels: Tensor,
        threshold: float | Tensor,
        rough_weight: float | Tensor,
        rule: ExitRule | Sequence[ExitRule],
    ) -> list[Prediction]:
        with autocast(self.networks.device, self.precision):
            prepared = self.networks.prepare(pixels.to(self.networks.device))
            probabilities = self.ensemble.predict(prepared).softmax(1).cpu()
        if not bool(probabilities.isfinite().all()):
            raise diverged(self.run.folder, f"ensemble {self.name}")
        return [
            Prediction(
                self.classes[int(chances.argmax())],
                chances.numpy(),
                None,
                None,
                float(chances.max()),
                self.classes[int(chances.argmax())],
                self.cost,
            )
            for chances in probabilities
        ]
