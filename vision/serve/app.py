"""A run over HTTP: predictions at any budget, health, metrics, and a page to try it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from coe_core import AimNotReachableError
from vision.data.preprocess import UnreadableImageError
from vision.errors import RunError
from vision.prediction.budgets import ResolvedBudget
from vision.prediction.predictor import Prediction, Predictor
from vision.serve.answers import (
    IMAGE_BODY,
    REFUSALS,
    Answer,
    Problem,
    answer_of,
    check_parameters,
    client_text,
    finite,
    image_of,
    or_its_error,
    plain_budget,
    text,
)
from vision.serve.batching import (
    Batcher,
    PredictionTimeoutError,
    QueueFullError,
    UnavailableError,
)
from vision.serve.decoding import ImageDecoder
from vision.serve.guard import Guard, LastResort
from vision.serve.health import Health
from vision.serve.limits import Limits, printable_text
from vision.serve.memory import BusyMemoryError, TooMuchMemoryError
from vision.serve.metrics import LiveMetrics
from vision.serve.pages import read_page

CLIENT_GONE = 499
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Args:
        max_batch: images predicted together.
        window: seconds the first image of a batch waits for others.
        max_requests: in work at a time; further ones get 429.
        max_bytes: of a request's body.
        body_seconds: for a body to arrive.
        max_memory: bytes for decoding images, all requests together.
        predict_seconds: for a batch to be predicted, and for memory to become free.
        host_names: that requests may be for, besides addresses and localhost; None: any.
    """

    max_batch: int = 32
    window: float = 0.002
    max_requests: int = 64
    max_bytes: int = 10 * 2**20
    body_seconds: float = 20.0
    max_memory: int = 2**30
    predict_seconds: float = 60.0
    host_names: tuple[str, ...] | None = None


class Service:
    """What the endpoints share: decoding, batches, metrics and health of one server.

    Args:
        predictor: of a run.
        settings: limits.

    Raises:
        RunError: the predictor's own budget cannot be resolved.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings):
        self.predictor, self.settings = predictor, settings
        self.run_facts = _run_facts(predictor)
        self.metrics = LiveMetrics(predictor.networks.required_team.num_experts)
        self.health = Health()
        self.decoder = ImageDecoder(
            predictor.networks.preprocess,
            predictor.max_pixels,
            settings.max_memory,
            settings.predict_seconds,
        )
        self.batcher = Batcher(
            self._predict,
            settings.max_batch,
            settings.window,
            settings.max_requests,
            settings.predict_seconds,
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
            raise HTTPException(400, client_text(error, self.predictor.run)) from error

    async def predict(self, content: bytes, name: str, budget: ResolvedBudget) -> Prediction:
        """The prediction of one upload.

        Raises:
            HTTPException: why there is none.
        """
        pixels = await self._decode(content, name)
        try:
            prediction = await self.batcher.submit((pixels, budget))
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
        except UnavailableError as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except PredictionTimeoutError as error:
            self._failed(error)
            raise HTTPException(504, str(error)) from error
        except Exception as error:  # of the networks, such as no memory; the server goes on
            self._failed(error)
            raise HTTPException(500, "the prediction failed; the server's log has why") from error
        self.health.add(None)
        return prediction

    async def _decode(self, content: bytes, name: str) -> torch.Tensor:
        try:
            return await self.decoder.decode(content, name)
        except (UnreadableImageError, ValueError) as error:
            raise HTTPException(422, client_text(error, self.predictor.run)) from error
        except TooMuchMemoryError as error:
            raise HTTPException(413, f"the image is too large for this server: {error}") from error
        except BusyMemoryError as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except MemoryError as error:
            raise HTTPException(503, "no memory for the image; try again later") from error

    def _failed(self, error: Exception) -> None:
        self.health.add(error)
        self.metrics.failed.labels(type(error).__name__).inc()

    def count(self, prediction: Prediction, budget: ResolvedBudget, seconds: float) -> None:
        """One answered prediction, for the metrics and the drift."""
        self.metrics.predicted(prediction.expert, prediction.macs, seconds)
        if budget.exit_rate is not None:
            exited = bool(prediction.exited)
            self.metrics.exited(exited, budget.exit_rate, budget.num_samples or 0)


def create_app(predictor: Predictor, settings: ServerSettings | None = None) -> FastAPI:
    """The application for any ASGI server.

    Args:
        predictor: of a run.
        settings: limits.

    Raises:
        RunError: the predictor's own budget cannot be resolved.
    """
    settings = settings or ServerSettings()
    service = Service(predictor, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher:
            yield
        service.decoder.close()

    app = FastAPI(
        title="coe-vision", docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Image classification with early termination and one expert per image.",
    )  # fmt: skip
    app.state.service, app.state.metrics, app.state.batcher = (
        service,
        service.metrics,
        service.batcher,
    )
    _add_limits(app, service)
    _add_prediction(app, service)
    _add_reports(app, service)
    _add_pages(app)
    return app


def _add_limits(app: FastAPI, service: Service) -> None:
    settings = service.settings
    app.add_middleware(
        Limits,
        max_requests=settings.max_requests,
        max_bytes=settings.max_bytes,
        body_seconds=settings.body_seconds,
    )
    app.add_middleware(Guard, host_names=settings.host_names)
    app.add_middleware(LastResort, count=service.metrics.count_status)  # outermost

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return JSONResponse({"detail": "the client went away"}, CLIENT_GONE)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [
            f"{problem['loc'][-1]}: {problem['msg']}, got {printable_text(repr(problem.get('input')), 80)}"
            for problem in error.errors()
        ]
        return JSONResponse({"detail": "; ".join(problems)}, 422)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        return JSONResponse({"detail": text(error.detail)}, error.status_code, error.headers)


def _add_prediction(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        openapi_extra=IMAGE_BODY,
        responses={code: {"model": Problem, "description": why} for code, why in REFUSALS.items()},
    )
    async def predict_image(
        request: Request,
        budget: Annotated[
            str | None, Query(description="operating point, or mean multiply-adds such as 100M")
        ] = None,
        threshold: Annotated[
            float | None, Query(description="exit when confidence >= this; instead of a budget")
        ] = None,
    ) -> Answer:
        """Predict one image: the body is the image file itself, or a form with a file `image`."""
        start = time.perf_counter()
        check_parameters(request)
        resolved = service.resolve(budget, threshold)
        content, name = await image_of(request)
        prediction = await _unless_gone(request, service.predict(content, name, resolved))
        seconds = time.perf_counter() - start
        service.count(prediction, resolved, seconds)
        return answer_of(prediction, service.predictor.classes, resolved, seconds)


def _add_reports(app: FastAPI, service: Service) -> None:
    # Coroutines, all of them: no thread has to be free for an answer.
    @app.get("/run", response_class=Response)
    async def run() -> Response:
        """Classes, multiply-adds, operating points and the trade-off curve of the run."""
        return Response(service.run_facts, media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether predictions succeed (503: no), how long the queue is, and whether the exit rate drifted."""
        report = service.health.report(service.batcher.state)
        content = {
            **dataclasses.asdict(report),
            "queue": len(service.batcher),
            "memory": {"in_use": service.decoder.budget.in_use, "waiting": len(service.decoder.budget)},
            "drift": dataclasses.asdict(service.metrics.drift_report()),
        }  # fmt: skip
        return JSONResponse(content, 200 if report.serving else 503)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus' text format."""
        metrics = service.metrics
        metrics.queue.set(len(service.batcher))
        metrics.memory.set(service.decoder.budget.in_use)
        metrics.healthy.set(service.health.report(service.batcher.state).serving)
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    def add(path: str, file: str) -> None:
        page = read_page(file)

        @app.get(path, include_in_schema=False)
        async def show() -> HTMLResponse:
            return HTMLResponse(page.text, headers={"Content-Security-Policy": page.policy})

    add("/", "index.html")
    add("/docs", "docs.html")


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


def _run_facts(predictor: Predictor) -> bytes:
    """What /run answers: as the run was when it was loaded."""
    run = predictor.run
    facts = {
        "name": text(run.folder.resolve().name),
        "classes": [text(name) for name in predictor.classes],
        "macs": {"delegator": predictor.macs.delegator, "experts": predictor.macs.experts},
        "operating_points": {name: point.to_dict() for name, point in run.operating_points.items()},
        "curve": run.curve.to_dict() if run.curve is not None else None,
        "default": plain_budget(predictor.resolve()),
    }
    return json.dumps(_plain(facts), allow_nan=False).encode()


def _plain(value: object) -> object:
    """Numbers that JSON has no form for become None."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return finite(value) if isinstance(value, float) else value


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of the work, which is dropped as soon as the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
