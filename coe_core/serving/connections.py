"""Connections of an HTTP server: each phase of each is bounded in time, and all of them in number.

uvicorn waits for ever for the header of a connection's first request, and for the rest of a header
that a kept-alive connection has begun. Here every header, pause, left-over body and unread answer has
its time. Where the table is full, the connection that has done nothing for longest gives way, so a
flood of silent ones keeps nobody out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("coe-serve")
Phase = Literal["header", "work", "left over", "unread", "idle"]


@dataclass(frozen=True)
class ConnectionTimes:
    """Seconds that a phase of a connection may last.

    Args:
        header: from the connection's beginning, or from a later request's first byte, to the end of
            that request's header.
        left_over: for the rest of a body whose request is answered already.
        unread: for a client to take more of its answer.
        idle: between two requests.
    """

    header: float = 10.0
    left_over: float = 5.0
    unread: float = 10.0
    idle: float = 10.0

    def of(self, phase: Phase) -> float | None:
        """None of a request in work: its body and its prediction have bounds of their own."""
        return None if phase == "work" else getattr(self, phase.replace(" ", "_"))


class Connections:
    """The table of a server's connections.

    Args:
        most: at a time. A further one takes the place of the one that has been without a request in
            work for longest.
        reserve: places beyond ``most`` for when all have one; the application answers there what
            must always be answered, and refuses the rest.
        times: see `ConnectionTimes`.
        closed: told the reason of every connection closed here, for a counter.
    """

    def __init__(
        self,
        most: int,
        reserve: int = 32,
        times: ConnectionTimes | None = None,
        closed: Callable[[str], None] = lambda reason: None,
    ):
        self.most, self.reserve, self.times = most, reserve, times or ConnectionTimes()
        self.closed = closed
        self.quiet: dict[BoundedProtocol, None] = {}  # without a request in work, longest first
        self.num_open = 0

    @property
    def protocol(self) -> Any:
        """The protocol class for ``uvicorn.Config(http=...)``."""
        return partial(BoundedProtocol, table=self)

    def admit(self) -> bool:
        """Make room for one more connection; whether there is."""
        if self.num_open > self.most and self.quiet:
            next(iter(self.quiet)).cut("gave way")
        return self.num_open <= self.most + self.reserve


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with a time for every phase."""

    def __init__(self, *arguments: Any, table: Connections, **options: Any):
        super().__init__(*arguments, **options)
        self.table = table
        self._phase: Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._counted = self._cut = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.table.num_open += 1
        self._counted = True
        admitted = self.table.admit()
        self._enter("header")
        if not admitted:
            self.cut("too many")

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # no HTTP after the answer had begun
            self.cut("no HTTP")
            return
        self._look("header")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look("idle")

    def send_400_response(self, msg: str) -> None:
        self.table.closed("no HTTP")
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._enter("unread")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._counted:
            self._look("idle")

    def cut(self, reason: str) -> None:
        """Close the connection now, whatever it was about to send or to read."""
        if not self._cut:
            self._cut = True
            self._forget()
            self.table.closed(reason)
            self.transport.abort()

    def _should_upgrade(self) -> bool:
        return (
            False  # a request for a web socket is answered as plain HTTP, without a line in the log
        )

    def _look(self, otherwise: Phase) -> None:
        """Which phase this is now; time runs on where it is the same one."""
        if (
            self.flow.write_paused or self.transport.is_closing()
        ):  # the rest of an answer is on its way
            self._enter("unread")
        elif self.cycle is not None and not self.cycle.response_complete:
            self._enter("work")
        elif self.cycle is not None and self.conn.their_state is h11.SEND_BODY:
            self._enter("left over")
        else:
            self._enter(otherwise)

    def _enter(self, phase: Phase) -> None:
        if phase == self._phase or self._cut:
            return
        self._phase = phase
        self._stop_timer()
        self.table.quiet.pop(self, None)
        seconds = self.table.times.of(phase)
        if seconds is not None:
            self.table.quiet[self] = None
            self._timer = self.loop.call_later(seconds, self.cut, phase)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self) -> None:
        self._stop_timer()
        self.table.quiet.pop(self, None)
        if self._counted:
            self._counted = False
            self.table.num_open -= 1
