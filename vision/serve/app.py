"""A run over HTTP: predictions at any budget, health, metrics, and a page to try it."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import torch
from fastapi import FastAPI, HTTPException, Request, Response

import coe_core.serving.app
from coe_core import AimNotReachableError
from coe_core.serving.answers import Problem, client_text, plain, text
from coe_core.serving.app import base_app, unless_gone
from coe_core.serving.memory import BusyMemoryError, TooMuchMemoryError
from coe_core.serving.metrics import LiveMetrics
from vision.budgets import ResolvedBudget
from vision.data.preprocess import UnreadableImageError
from vision.errors import RunError
from vision.prediction.predictor import Prediction, Predictor
from vision.serve.answers import (
    IMAGE_REFUSALS,
    IMAGE_REQUEST,
    Answer,
    answer_of,
    image_of,
    or_its_error,
    parameters_of,
    plain_budget,
)
from vision.serve.decoding import ImageDecoder
from vision.systems import COE

_PAGE = Path(__file__).parent / "web" / "index.html"
_Item = tuple[torch.Tensor, ResolvedBudget]


@dataclasses.dataclass(frozen=True)
class ServerSettings(coe_core.serving.app.ServerSettings):
    """Limits of a server.

    Args:
        max_memory: bytes for decoding images, all requests together.

    The others are those of `coe_core.serving.app.ServerSettings`; a batch is counted in images.
    """

    max_memory: int = 2**30


class Service(coe_core.serving.app.Service[_Item, Prediction]):
    """What the endpoints share: decoding, batches, metrics and health of one server.

    Args:
        predictor: of a run.
        settings: limits.

    Raises:
        RunError: the predictor's own budget cannot be resolved.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings):
        self.predictor = predictor
        self.decoder = ImageDecoder(
            predictor.networks.preprocess,
            predictor.max_pixels,
            settings.max_memory,
            settings.predict_seconds,
        )
        super().__init__(
            self._predict,
            settings,
            LiveMetrics(max(len(s.expert_macs) for s in predictor.systems.values())),
            _run_facts(predictor),
            memory=self.decoder.budget,
        )

    def _predict(
        self, items: list[tuple[torch.Tensor, ResolvedBudget]]
    ) -> list[Prediction | Exception]:
        self.metrics.batch.observe(len(items))
        pixels, budgets = zip(*items, strict=True)
        predictions = self.predictor.predict_pixels(torch.stack(pixels), budgets)
        return [or_its_error(prediction) for prediction in predictions]

    def resolve(self, budget: str | None, threshold: float | None) -> ResolvedBudget:
        """See `Predictor.resolve`; what is wrong with it is the client's to know, not where the run lies.

        Raises:
            HTTPException: 400.
        """
        try:
            return self.predictor.resolve(budget, threshold)
        except (ValueError, RunError, AimNotReachableError, OverflowError) as error:
            raise HTTPException(400, client_text(error, self.predictor.run.folder)) from error

    async def predict(self, content: bytes, name: str, budget: ResolvedBudget) -> Prediction:
        """The prediction of one upload.

        Raises:
            HTTPException: why there is none.
        """
        return await self.submit((await self._decode(content, name), budget))

    async def _decode(self, content: bytes, name: str) -> torch.Tensor:
        try:
            return await self.decoder.decode(content, name)
        except (UnreadableImageError, ValueError) as error:
            raise HTTPException(422, client_text(error, self.predictor.run.folder)) from error
        except TooMuchMemoryError as error:
            raise HTTPException(413, f"the image is too large for this server: {error}") from error
        except BusyMemoryError as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except MemoryError as error:
            raise HTTPException(503, "no memory for the image; try again later") from error

    def close(self) -> None:
        """End the threads that decode."""
        self.decoder.close()

    def count(self, prediction: Prediction, budget: ResolvedBudget, seconds: float) -> None:
        """One answered prediction, for the metrics and the drift."""
        route: int | str | None = prediction.expert
        if prediction.exited is None:
            route = "whole"
        self.metrics.predicted(route, prediction.macs, seconds)
        if budget.exit_rate is not None and prediction.exited is not None:
            self.metrics.exited(prediction.exited, budget.exit_rate, budget.num_samples or 0)


def create_app(predictor: Predictor, settings: ServerSettings | None = None) -> FastAPI:
    """The application for any ASGI server.

    Args:
        predictor: of a run.
        settings: limits.

    Raises:
        RunError: the predictor's own budget cannot be resolved.
    """
    service = Service(predictor, settings or ServerSettings())
    description = "Image classification with early termination and one expert per image."
    app = base_app(service, "coe-vision", description, _PAGE)
    _add_prediction(app, service)
    return app


def _add_prediction(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        openapi_extra=IMAGE_REQUEST,
        response_model=Answer,
        responses={
            code: {"model": Problem, "description": why} for code, why in IMAGE_REFUSALS.items()
        },
    )
    async def predict_image(request: Request) -> Response:
        """Predict one image: the body is the image file itself, or a form with a file `image`."""
        start = time.perf_counter()
        resolved = service.resolve(*parameters_of(request))
        content, name = await image_of(request)
        prediction = await unless_gone(request, service.predict(content, name, resolved))
        seconds = time.perf_counter() - start
        service.count(prediction, resolved, seconds)
        answer = answer_of(prediction, service.predictor.classes, resolved, seconds)
        return Response(answer.model_dump_json(), media_type="application/json")


def _run_facts(predictor: Predictor) -> bytes:
    """What /run answers: as the run was when it was loaded."""
    run, default = predictor.run, predictor.resolve()
    # Thresholds, and so the slider, are of one system.
    of_thresholds = predictor.named_system or (COE if COE in predictor.systems else default.system)
    system, curve = predictor.systems[of_thresholds], run.curves.get(of_thresholds)
    points, named = run.operating_points, predictor.named_system
    if named is not None:
        points = run.stored.named(named)
    facts = {
        "name": text(run.folder.resolve().name),
        "classes": [text(name) for name in predictor.classes],
        "macs": {"delegator": system.first_macs, "experts": system.expert_macs},
        "operating_points": {
            name: {**point.to_dict(), "system": named or run.stored.deployed(name)}
            for name, point in points.items()
        },
        "curve": curve.to_dict() if curve is not None and system.team is not None else None,
        "default": plain_budget(default),
    }
    return json.dumps(plain(facts), allow_nan=False).encode()
