"""A run over HTTP: predictions at any budget, health, metrics, and a page to try it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import torch
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel

from coe_core import AimNotReachableError
from vision.data.preprocess import UnreadableImageError
from vision.errors import RunError
from vision.prediction.budgets import Budget
from vision.prediction.predictor import Prediction, Predictor
from vision.serve.batching import Batcher, QueueFullError
from vision.serve.limits import CountStatus, Limits
from vision.serve.metrics import LiveMetrics

WEB = Path(__file__).parent / "web"
log = logging.getLogger("coe-vision")
CLIENT_GONE = 499
TOP = 5
# Nothing from elsewhere: neither the page nor a picture in it may load from another host.
_POLICY = (
    "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Args:
        max_batch: images predicted together.
        window: seconds the first image of a batch waits for others.
        max_requests: in work at a time; further ones get 429.
        max_bytes: of a request's body.
        body_seconds: for a body to arrive.
    """

    max_batch: int = 32
    window: float = 0.002
    max_requests: int = 64
    max_bytes: int = 10 * 2**20
    body_seconds: float = 20.0


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """What the run says of an image, how it came about, and what it cost."""

    label: str
    probability: float
    top: list[ClassProbability]
    exited: bool
    expert: int | None
    confidence: float
    rough_label: str
    macs: int
    budget: str
    threshold: float | None  # none: infinite, nothing exits
    milliseconds: float


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


_IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_REFUSALS = {
    400: "unknown budget, bad threshold",
    408: "the body arrives too slowly",
    413: "the body is too large",
    422: "not an image, or too many pixels",
    429: "too many requests; try again later",
}


def create_app(predictor: Predictor, settings: ServerSettings | None = None) -> FastAPI:
    """The application for any ASGI server.

    Args:
        predictor: of a run.
        settings: limits.

    Raises:
        RunError: the predictor's own budget cannot be resolved.
    """
    settings = settings or ServerSettings()
    predictor.resolve()  # a run without calibration is refused here, not at the first request
    metrics = LiveMetrics(predictor.networks.team.num_experts)

    def predict(items: list[tuple[torch.Tensor, Budget]]) -> list[Prediction]:
        metrics.batch.observe(len(items))
        pixels, budgets = zip(*items, strict=True)
        return predictor.predict_pixels(torch.stack(pixels), budgets)

    batcher = Batcher(predict, settings.max_batch, settings.window, settings.max_requests)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPI(
        title="coe-vision", docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Image classification with early termination and one expert per image.",
    )  # fmt: skip
    app.add_middleware(
        Limits,
        max_requests=settings.max_requests,
        max_bytes=settings.max_bytes,
        body_seconds=settings.body_seconds,
    )
    app.add_middleware(CountStatus, counter=metrics.requests)  # outermost: counts refusals too
    app.state.metrics, app.state.batcher = metrics, batcher

    @app.post(
        "/predict",
        openapi_extra=_IMAGE_BODY,
        responses={code: {"model": Problem, "description": why} for code, why in _REFUSALS.items()},
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
        try:
            resolved = predictor.resolve(budget, threshold)
        except (ValueError, RunError, AimNotReachableError) as error:
            folder = predictor.run.folder  # where it lies is not the client's business
            raise HTTPException(400, str(error).replace(str(folder), folder.name)) from error
        content, name = await image_of(request)
        try:
            pixels = await asyncio.to_thread(predictor.decode, content, name)
        except (UnreadableImageError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        try:
            found = await _unless_gone(request, batcher.submit((pixels, resolved)))
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
        except ClientGoneError:
            raise
        except Exception as error:  # of the networks, such as no memory; the server goes on
            log.exception("a prediction failed")
            raise HTTPException(500, "the prediction failed; the server's log has why") from error
        seconds = time.perf_counter() - start
        metrics.predicted(found, resolved, seconds)
        return answer_of(found, predictor.classes, resolved, seconds)

    @app.get("/run")
    def run() -> dict:
        """Classes, multiply-adds, operating points and the trade-off curve of the run."""
        source = predictor.run
        points = {name: point.to_dict() for name, point in source.operating_points.items()}
        return {
            "name": source.folder.resolve().name,
            "classes": predictor.classes,
            "macs": {"delegator": predictor.macs.delegator, "experts": predictor.macs.experts},
            "operating_points": points,
            "curve": source.curve.to_dict() if source.curve is not None else None,
            "default": _plain_budget(predictor.resolve()),
        }

    @app.get("/health")
    def health() -> dict:
        """Whether the server answers, how long its queue is, and whether the exit rate has drifted."""
        return {
            "status": "ok",
            "queue": len(batcher),
            "drift": dataclasses.asdict(metrics.drift_report()),
        }

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        """Prometheus' text format."""
        metrics.queue.set(len(batcher))
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def page(path: str, file: str) -> None:
        text = (WEB / file).read_text(encoding="utf-8")

        @app.get(path, include_in_schema=False)
        def show() -> HTMLResponse:
            return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    page("/", "index.html")
    page("/docs", "docs.html")

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return JSONResponse({"detail": "the client went away"}, CLIENT_GONE)

    return app


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


async def _unless_gone(request: Request, work) -> Prediction:
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


async def image_of(request: Request) -> tuple[bytes, str]:
    """Bytes and name of the image in a request: its body, or the file `image` of its form.

    Raises:
        HTTPException: 422, there is none.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        body = await request.body()
        if not body:
            raise HTTPException(422, "the body is empty: send the image file in it")
        return body, "in the body"
    form = await request.form(max_files=1, max_fields=10)
    file = form.get("image")
    if file is None or isinstance(file, str):
        raise HTTPException(422, "the form has no file field `image`")
    return await file.read(), file.filename or "in the form"


def answer_of(found: Prediction, classes: list[str], budget: Budget, seconds: float) -> Answer:
    """A prediction as it is sent."""
    best = found.probabilities.argsort()[::-1][:TOP]
    return Answer(
        label=found.label,
        probability=found.probability,
        top=[
            ClassProbability(label=classes[i], probability=float(found.probabilities[i]))
            for i in best
        ],
        exited=found.exited,
        expert=found.expert,
        confidence=found.confidence,
        rough_label=found.rough_label,
        macs=found.macs,
        budget=budget.name,
        threshold=_finite(budget.threshold),
        milliseconds=1000 * seconds,
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _plain_budget(budget: Budget) -> dict:
    return {**dataclasses.asdict(budget), "threshold": _finite(budget.threshold)}
