"""Requests that arrive within a moment of each other are predicted in one batch; the queue is bounded.

Items go in, a result or an error comes out for each. What goes wrong stays where it belongs: an item that
fails fails alone, a call that never returns costs its own callers, and callers are told at once where
nothing can be predicted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from coe_core.errors import CoEError
from coe_core.serving.fair_queue import FairQueue

log = logging.getLogger("coe-serve")
Item = TypeVar("Item")
Result = TypeVar("Result")
State = Literal["ok", "hung", "dead"]
STOP_SECONDS = 5.0  # that a call in work has when the server stops


class QueueFullError(CoEError):
    """As many requests wait as may wait; try again later."""


class UnavailableError(CoEError):
    """Nothing can be predicted at present: an earlier call has not returned, or the batcher has stopped."""


class PredictionTimeoutError(CoEError):
    """The prediction did not end in time."""


class _Waiting(NamedTuple):
    """An item, and what its caller waits for."""

    item: Any
    result: asyncio.Future[Any]

    @property
    def wanted(self) -> bool:
        """Not of a caller that gave up, which has cancelled it."""
        return not self.result.done()


class Batcher(Generic[Item, Result]):
    """Collects items into batches for a function that runs in a thread of its own.

    A batch begins with the first item that waits and leaves when it is full or the window is over;
    while one batch runs the next one collects. Items of one owner, such as the sentences of a long text,
    take turns with those of others. An item whose caller gave up is left out. A batch that
    fails is tried again in parts, down to single items, so that only those fail that fail by themselves.

    A call that does not return within ``seconds`` fails its batch (`PredictionTimeoutError`) and all
    that wait; until it returns, new items are refused (`UnavailableError`) and ``state`` is "hung".
    A thread cannot be stopped, so nothing else runs beside it.

    Args:
        predict: items -> results, as many and in the same order; an exception in a result's place
            fails that item alone.
        max_batch: size of a batch: so many items, unless ``size`` says otherwise.
        window: seconds that the first item waits for others.
        max_waiting: items that may wait; further ones are refused.
        seconds: that a batch may take, its repetitions in parts included.
        size: of an item, such as its tokens; one that is larger than a batch runs alone.
    """

    def __init__(
        self,
        predict: Callable[[list[Item]], Sequence[Result | Exception]],
        max_batch: int,
        window: float,
        max_waiting: int,
        seconds: float = 60.0,
        size: Callable[[Item], int] = lambda item: 1,
    ):
        self.max_batch, self.window = max_batch, window
        self.max_waiting, self.seconds = max_waiting, seconds
        self.hung_since: float | None = None  # by the event loop's clock
        self._waiting = FairQueue[_Waiting](lambda waiting: size(waiting.item))
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self._worker = _Worker(predict)
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def state(self) -> State:
        """ "ok", "hung" (a call has not returned in time) or "dead" (nothing collects batches)."""
        if self._task is None or self._task.done():
            return "dead"
        return "ok" if self.hung_since is None else "hung"

    async def __aenter__(self) -> Batcher[Item, Result]:
        self._task = asyncio.create_task(self._serve())
        self._task.add_done_callback(self._died)
        return self

    async def __aexit__(self, *reason: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for waiting in self._waiting.clear():
            waiting.result.cancel()
        self._worker.close(STOP_SECONDS if self.hung_since is None else 0)

    async def submit(self, item: Item, owner: object = None) -> Result:
        """The result of one item.

        Args:
            item: for ``predict``.
            owner: whose it is; None: of nobody who has others.

        Raises:
            QueueFullError: ``max_waiting`` items wait already.
            UnavailableError: an earlier call has not returned, or the batcher has stopped.
            PredictionTimeoutError: the item's batch took longer than ``seconds``.
            Exception: whatever ``predict`` raised for this item.
        """
        if self.state != "ok":
            raise self._unavailable()
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} requests wait already; try again later")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put(_Waiting(item, future), owner)
        self._arrived.set()
        if self._waiting.total >= self.max_batch:
            self._full.set()
        return await future

    def _unavailable(self) -> UnavailableError:
        if self.state == "dead":
            return UnavailableError("nothing is predicted any more: the server must be restarted")
        return UnavailableError(
            f"an earlier prediction has not returned within {self.seconds:g} s; try again later"
        )

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            if self.window and self._waiting.total < self.max_batch:
                with suppress(TimeoutError):  # the window is over: the batch leaves as it is
                    await asyncio.wait_for(self._full.wait(), self.window)
            batch = self._take()
            if batch:
                await self._run(batch)

    def _died(self, task: asyncio.Task[None]) -> None:
        """Nobody may wait for what no longer comes."""
        if task.cancelled():
            return
        log.critical("the batcher stopped: restart the server", exc_info=task.exception())
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        error = self._unavailable()
        for waiting in self._waiting.clear():
            _settle(waiting.result, error)
        self._arrived.clear()
        self._full.clear()

    def _take(self) -> list[_Waiting]:
        batch = self._waiting.take(self.max_batch, lambda waiting: waiting.wanted)
        if not len(self._waiting):
            self._arrived.clear()
        if self._waiting.total < self.max_batch:
            self._full.clear()
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        """Predict a batch; every future is done afterwards, and no call is in work."""
        loop = asyncio.get_running_loop()
        call: asyncio.Future[list[Any]] | None = None
        try:
            deadline = loop.time() + self.seconds
            parts = deque([batch])
            while parts:
                part = parts.popleft()
                call = self._worker.call([waiting.item for waiting in part])
                await asyncio.wait({call}, timeout=max(0.0, deadline - loop.time()))
                if not call.done():
                    await self._hung(batch, call)
                    return
                parts.extendleft(reversed(self._settled(part, call)))
        finally:
            for waiting in batch:
                waiting.result.cancel()

    def _settled(
        self, part: list[_Waiting], call: asyncio.Future[list[Any]]
    ) -> list[list[_Waiting]]:
        """Give every caller its outcome; or, of a part that failed, the smaller ones to try."""
        error = call.exception()
        if error is None:
            for waiting, outcome in zip(part, call.result(), strict=True):
                _settle(waiting.result, outcome)
            return []
        if len(part) == 1:
            log.error("a prediction failed", exc_info=error)
            _settle(part[0].result, error)
            return []
        log.warning("%d together failed (%s); in parts", len(part), type(error).__name__)
        part = [waiting for waiting in part if waiting.wanted]
        step = max(1, math.isqrt(len(part)))
        return [part[start : start + step] for start in range(0, len(part), step)]

    async def _hung(self, batch: list[_Waiting], call: asyncio.Future[list[Any]]) -> None:
        """Fail those that wait, and wait for the call itself: nothing runs beside it."""
        loop = asyncio.get_running_loop()
        self.hung_since = loop.time()
        log.error("a prediction has not returned within %g s", self.seconds)
        for waiting in batch:
            _settle(
                waiting.result, PredictionTimeoutError(f"no prediction within {self.seconds:g} s")
            )
        self._fail_waiting()
        await asyncio.wait({call})
        log.warning("it returned after %.0f s more", loop.time() - self.hung_since)
        self.hung_since = None


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if future.done():  # its caller gave up
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class _Worker:
    """One thread that calls a function. A daemon: a call that never returns does not keep the process."""

    def __init__(self, function: Callable[[list[Any]], Sequence[Any]]):
        self._function = function
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, items: list[Any]) -> asyncio.Future[list[Any]]:
        """The function's results for the items, as many; or its exception."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._calls.put((loop, future, items))
        return future

    def close(self, seconds: float) -> None:
        """End the thread after the call in work, if that is done within so many seconds."""
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, items = call
            outcome = self._outcome(items)
            with suppress(RuntimeError):  # the loop has closed meanwhile
                loop.call_soon_threadsafe(_settle, future, outcome)
            del call, items, outcome  # nothing is held while nothing is done

    def _outcome(self, items: list[Any]) -> list[Any] | Exception:
        try:
            results = list(self._function(items))
        except Exception as error:
            return error
        except BaseException as error:  # such as SystemExit: not the event loop's to obey
            return RuntimeError(f"the prediction ended with {type(error).__name__}: {error}")
        if len(results) != len(items):
            return RuntimeError(f"{len(results)} results for {len(items)} items")
        return results
