"""What a server takes from a client: so many requests at a time, so many bytes, within so many seconds."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("coe-serve")
GRACE = 1.0  # seconds of an upload in which it does not give way to others
ALWAYS_ANSWERED = frozenset({"/health", "/metrics"})  # by path; neither reads a body nor waits


class Limits:
    """ASGI middleware: a POST body arrives whole, small and in time, or is answered with the reason.

    429: as many POST requests are in work as may be. 413: too many bytes. 408: too slow. 503: as many
    requests of any kind are in work as the server has places for. Bodies are read here, so what comes
    after never waits for a client, and memory is bounded by ``max_requests * max_bytes``.
    Where all places are taken, the slowest of the uploads that have had a second gives its place away
    (408), so that slow clients keep nobody out. `ALWAYS_ANSWERED` are never refused for what others do.

    Args:
        app: the application.
        max_requests: POST requests in work at a time, their upload included.
        max_bytes: of a body.
        body_seconds: for the whole body.
    """

    def __init__(self, app: ASGIApp, *, max_requests: int, max_bytes: int, body_seconds: float):
        self.app, self.max_requests, self.max_bytes = app, max_requests, max_bytes
        self.body_seconds = body_seconds
        self.max_any = places(max_requests)
        self.in_work = self.any_in_work = 0
        self.uploads: set[_Upload] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
            return
        if self.any_in_work >= self.max_any:
            await refuse(send, 503, "the server has no place left; try again later", retry=True)
            return
        self.any_in_work += 1
        try:
            if scope["method"] == "POST":
                await self._post(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            self.any_in_work -= 1

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.in_work >= self.max_requests and not self._slowest_gives_way():
            detail = f"{self.max_requests} requests are in work already; try again later"
            await self._refuse(receive, send, 429, detail, retry=True, seconds=1.0)
            return
        self.in_work += 1
        upload = _Upload(time.monotonic())
        try:
            await self._with_body(upload, scope, receive, send)
        finally:
            self.in_work -= not upload.gave_way

    def _slowest_gives_way(self) -> bool:
        """Whether an upload that has had its time gave its place away."""
        now = time.monotonic()
        late = [upload for upload in self.uploads if now - upload.began >= GRACE]
        if not late:
            return False
        slowest = min(late, key=lambda upload: upload.size / (now - upload.began))
        slowest.gave_way = True
        slowest.time.reschedule(0.0)  # over
        self.uploads.discard(slowest)
        self.in_work -= 1
        return True

    async def _with_body(self, upload: _Upload, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = f"the body may have {self.max_bytes:,} bytes"
        if length.isdigit() and int(length) > self.max_bytes:
            detail = f"{too_large}, this one has {int(length):,}"
            await self._refuse(receive, send, 413, detail)
            return
        try:
            async with asyncio.timeout(self.body_seconds) as upload.time:
                self.uploads.add(upload)
                body = await self._read(receive, upload)
        except TimeoutError:
            detail = f"the body did not arrive within {self.body_seconds:g} s"
            if upload.gave_way:
                detail = "the body came more slowly than others, and all places were taken"
            await refuse(send, 408, detail)
            return
        except _GoneError:
            return
        finally:
            self.uploads.discard(upload)
        if body is None:
            await self._refuse(receive, send, 413, f"{too_large}, this one has more")
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(
        self,
        receive: Receive,
        send: Send,
        status: int,
        detail: str,
        *,
        retry: bool = False,
        seconds: float = 5.0,
    ) -> None:
        """Answer at once, then take the rest of the body away for so many seconds: who still sends
        when the connection closes may never see the answer."""
        await refuse(send, status, detail, retry, last=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self.body_seconds)):
                while (message := await receive()).get("more_body", False):
                    del message
        await send({"type": "http.response.body", "body": b""})

    async def _read(self, receive: Receive, upload: _Upload) -> bytes | None:
        """The body; None if it is too large."""
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            upload.size += len(parts[-1])
            if upload.size > self.max_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


@dataclass(eq=False)
class _Upload:
    """A body that is on its way."""

    began: float
    size: int = 0  # bytes so far
    gave_way: bool = False  # its place is another request's
    time: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))


class _GoneError(Exception):
    """The client went away before its body had arrived."""


def places(max_requests: int) -> int:
    """Requests of any kind that may be in work where so many predictions may."""
    return 2 * max_requests + 32


async def refuse(
    send: Send, status: int, detail: str, retry: bool = False, *, last: bool = True
) -> None:
    """Answer with the reason, and close the connection.

    Args:
        send: of ASGI.
        status: of the answer.
        detail: one line.
        retry: say that it may go well a second later.
        last: whether the answer ends here.
    """
    refusals.told(status, detail)
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"content-length", str(len(body)).encode())]
    headers += [(b"retry-after", b"1")] * retry
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


class QuietLog:
    """Lines about what clients do wrong: of each status one a second, so that they cannot fill a disk.

    Args:
        seconds: between two lines of one status.
    """

    def __init__(self, seconds: float = 1.0):
        self.seconds = seconds
        self._last: dict[int, float] = {}
        self._left_out: dict[int, int] = {}

    def told(self, status: int, detail: str) -> None:
        """One line, or none if there was one just now."""
        now = time.monotonic()
        if now - self._last.get(status, -self.seconds) < self.seconds:
            self._left_out[status] = self._left_out.get(status, 0) + 1
            return
        self._last[status] = now
        others = self._left_out.pop(status, 0)
        more = f" (and {others} others since the last line)" if others else ""
        log.warning("refused with %d: %s%s", status, printable_text(detail, 300), more)


def printable_text(text: str, most: int = 200) -> str:
    """Text on one line, in characters that any terminal, log and JSON takes; cut where it is long.

    Example:
        >>> print(printable_text("a\\nb"), printable_text("é \\udcff"), printable_text("x" * 9, 5))
        a\\nb é \\udcff xxxx…
    """
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1]
    )
    return text if len(text) <= most else text[: most - 1] + "…"


refusals = QuietLog()
