"""The part of a server's application that both adapters share: limits, health, metrics, pages, batches."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from coe_core.serving.answers import complaints, text
from coe_core.serving.batching import (
    Batcher,
    PredictionTimeoutError,
    QueueFullError,
    UnavailableError,
)
from coe_core.serving.guard import Guard, LastResort
from coe_core.serving.health import Health
from coe_core.serving.limits import Limits
from coe_core.serving.memory import MemoryBudget
from coe_core.serving.metrics import LiveMetrics
from coe_core.serving.pages import read_page

CLIENT_GONE = 499
_DOCS = Path(__file__).parent / "web" / "docs.html"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Limits of a server.

    Args:
        max_batch: size of a batch: images, or tokens.
        window: seconds the first item of a batch waits for others.
        max_requests: in work at a time; further ones get 429.
        max_bytes: of a request's body.
        body_seconds: for a body to arrive.
        predict_seconds: for a batch to be predicted, and for memory to become free.
        host_names: that requests may be for, besides addresses and localhost; None: any.
    """

    max_batch: int = 32
    window: float = 0.002
    max_requests: int = 64
    max_bytes: int = 10 * 2**20
    body_seconds: float = 20.0
    predict_seconds: float = 60.0
    host_names: tuple[str, ...] | None = None


class Service(Generic[Item, Result]):
    """What the endpoints share: batches, metrics and health of one server.

    Args:
        predict: see `Batcher`.
        settings: limits.
        metrics: of the server.
        run_facts: what /run answers, JSON.
        size: of an item, see `Batcher`.
        max_items: of one request.
        memory: that /health and /metrics tell of.
    """

    def __init__(
        self,
        predict: Callable[[list[Item]], Sequence[Result | Exception]],
        settings: ServerSettings,
        metrics: LiveMetrics,
        run_facts: bytes,
        *,
        size: Callable[[Item], int] = lambda item: 1,
        max_items: int = 1,
        memory: MemoryBudget | None = None,
    ):
        self.settings, self.metrics, self.run_facts, self.memory = (
            settings,
            metrics,
            run_facts,
            memory,
        )
        self.health = Health()
        self.batcher = Batcher(
            predict,
            settings.max_batch,
            settings.window,
            settings.max_requests * max_items,
            settings.predict_seconds,
            size,
        )

    async def submit(self, item: Item, owner: object = None) -> Result:
        """The result of one item, see `Batcher.submit`.

        Raises:
            HTTPException: why there is none.
        """
        try:
            result = await self.batcher.submit(item, owner)
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
        return result

    def _failed(self, error: Exception) -> None:
        self.health.add(error)
        self.metrics.failed.labels(type(error).__name__).inc()

    def close(self) -> None:
        """Called when the server has stopped."""


def base_app(service: Service[Any, Any], title: str, description: str, page: Path) -> FastAPI:
    """An application with all but its predictions: limits, /run, /health, /metrics, the page, /docs.

    Args:
        service: what its endpoints share.
        title: of the program.
        description: one sentence.
        page: HTML file of /.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher:
            yield
        service.close()

    app = FastAPI(
        title=title, docs_url=None, redoc_url=None, lifespan=lifespan, description=description
    )
    app.state.service, app.state.metrics, app.state.batcher = (
        service,
        service.metrics,
        service.batcher,
    )
    _add_limits(app, service)
    _add_reports(app, service)
    _add_page(app, "/", page)
    _add_page(app, "/docs", _DOCS)
    return app


def _add_limits(app: FastAPI, service: Service[Any, Any]) -> None:
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
        return JSONResponse({"detail": complaints(error)}, 422)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        return JSONResponse({"detail": text(error.detail)}, error.status_code, error.headers)


def _add_reports(app: FastAPI, service: Service[Any, Any]) -> None:
    # Coroutines, all of them: no thread has to be free for an answer.
    @app.get("/run", response_class=Response)
    async def run() -> Response:
        """What is served: networks, multiply-adds, operating points and the trade-off curve of the run."""
        return Response(service.run_facts, media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether predictions succeed (503: no), how long the queue is, and whether the exit rate drifted."""
        report, memory = service.health.report(service.batcher.state), service.memory
        content = {
            **dataclasses.asdict(report),
            "queue": len(service.batcher),
            "drift": service.metrics.drift_facts(),
        }
        if memory is not None:
            content["memory"] = {"in_use": memory.in_use, "waiting": len(memory)}
        return JSONResponse(content, 200 if report.serving else 503)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus' text format."""
        metrics = service.metrics
        metrics.queue.set(len(service.batcher))
        if service.memory is not None:
            metrics.memory.set(service.memory.in_use)
        metrics.healthy.set(service.health.report(service.batcher.state).serving)
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/favicon.ico", include_in_schema=False)
    async def no_icon() -> Response:
        """Browsers ask for one."""
        return Response(status_code=204)


def _add_page(app: FastAPI, path: str, file: Path) -> None:
    page = read_page(file)

    @app.get(path, include_in_schema=False)
    async def show() -> HTMLResponse:
        return HTMLResponse(page.text, headers={"Content-Security-Policy": page.policy})


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of the work, which is dropped as soon as the client goes away.

    Raises:
        ClientGoneError: it went away.
    """

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
