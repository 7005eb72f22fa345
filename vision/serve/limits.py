"""What a server takes from a client: so many requests at a time, so many bytes, within so many seconds."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("coe-vision")


class Limits:
    """ASGI middleware: a POST body arrives whole, small and in time, or is answered with the reason.

    429: as many requests are in work as may be. 413: too many bytes. 408: too slow. Bodies are read
    here, so what comes after never waits for a client, and memory is bounded by
    ``max_requests * max_bytes``.

    Args:
        app: the application.
        max_requests: POST requests in work at a time, their upload included.
        max_bytes: of a body.
        body_seconds: for the whole body.
    """

    def __init__(self, app, *, max_requests: int, max_bytes: int, body_seconds: float):
        self.app, self.max_requests, self.max_bytes = app, max_requests, max_bytes
        self.body_seconds = body_seconds
        self.in_work = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self.in_work >= self.max_requests:
            detail = f"{self.max_requests} requests are in work already; try again later"
            await self._discard(receive)
            await _refuse(send, 429, detail, retry=True)
            return
        self.in_work += 1
        try:
            await self._with_body(scope, receive, send)
        finally:
            self.in_work -= 1

    async def _with_body(self, scope, receive, send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = f"the body may have {self.max_bytes:,} bytes"
        if length.isdigit() and int(length) > self.max_bytes:
            await self._discard(receive)
            await _refuse(send, 413, f"{too_large}, this one has {int(length):,}")
            return
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await self._read(receive)
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self.body_seconds:g} s")
            return
        if body is None:
            await self._discard(receive)
            await _refuse(send, 413, f"{too_large}, this one has more")
            return
        given = False

        async def replay():
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _discard(self, receive) -> None:
        """Take the rest of a body away: who still sends when the connection closes sees no answer."""
        left, more = 4 * self.max_bytes, True
        with suppress(TimeoutError):
            async with asyncio.timeout(min(1.0, self.body_seconds)):
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message.get("more_body", False)

    async def _read(self, receive) -> bytes | None:
        """The body; None if it is too large. Of a client that went away, what there is."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


async def _refuse(send, status: int, detail: str, retry: bool = False) -> None:
    log.warning("refused with %d: %s", status, detail)
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"retry-after", b"1")] * retry
    body = json.dumps({"detail": detail}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class CountStatus:
    """ASGI middleware: counts answers by their status.

    Args:
        app: the application.
        counter: of Prometheus, with one label.
    """

    def __init__(self, app, counter):
        self.app, self.counter = app, counter

    async def __call__(self, scope, receive, send) -> None:
        async def counted(message) -> None:
            if message["type"] == "http.response.start":
                self.counter.labels(str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


class ImpatientProtocol(H11Protocol):
    """uvicorn's protocol, which by itself would wait for ever for the first request's header."""

    header_seconds = 10.0

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(self.header_seconds, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
