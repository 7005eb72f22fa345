"""Requests that arrive within a moment of each other are predicted in one batch; the queue is bounded.

Knows nothing of images: items go in, a result or an error comes out for each. What goes wrong stays
where it belongs: an item that fails fails alone, a call that never returns costs its own callers, and
callers are told at once where nothing can be predicted.
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
from typing import Generic, Literal, TypeVar

from coe_core.errors import CoEError

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


class Batcher(Generic[Item, Result]):
    """Collects items into batches for a function that runs in a thread of its own.

    A batch begins with the first item that waits and leaves when it is full or the window is over;
    while one batch runs the next one collects. An item whose caller gave up is left out. A batch that
    fails is tried again in parts, down to single items, so that only those fail that fail by themselves.

    A call that does not return within ``seconds`` fails its batch (`PredictionTimeoutError`) and all
    that wait; until it returns, new items are refused (`UnavailableError`) and ``state`` is "hung".
    A thread cannot be stopped, so nothing else runs beside it.

    Args:
        predict: items -> results, as many and in the same order; an exception in a result's place
            fails that item alone.
        max_batch: items in a batch.
        window: seconds that the first item waits for others.
        max_waiting: items that may wait; further ones are refused.
        seconds: that a batch may take, its repetitions in parts included.
    """

    def __init__(
        self,
        predict: Callable[[list[Item]], Sequence[Result | Exception]],
        max_batch: int,
        window: float,
        max_waiting: int,
        seconds: float = 60.0,
    ):
        self.max_batch, self.window = max_batch, window
        self.max_waiting, self.seconds = max_waiting, seconds
        self.hung_since: float | None = None  # by the event loop's clock
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
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
        for _, future in self._waiting:
            future.cancel()
        self._worker.close(STOP_SECONDS if self.hung_since is None else 0)

    async def submit(self, item: Item) -> Result:
        """The result of one item.

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
        self._waiting.append((item, future))
        self._arrived.set()
        if len(self._waiting) >= self.max_batch:
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
            if self.window and len(self._waiting) < self.max_batch:
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
        while self._waiting:
            _, future = self._waiting.popleft()
            _settle(future, error)
        self._arrived.clear()
        self._full.clear()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self.max_batch:
            item, future = self._waiting.popleft()
            if not future.done():  # a caller that gave up has cancelled it
                batch.append((item, future))
        if not self._waiting:
            self._arrived.clear()
        if len(self._waiting) < self.max_batch:
            self._full.clear()
        return batch

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Predict a batch; every future is done afterwards, and no call is in work."""
        loop = asyncio.get_running_loop()
        call: asyncio.Future | None = None
        try:
            deadline = loop.time() + self.seconds
            parts = deque([batch])
            while parts:
                part = parts.popleft()
                call = self._worker.call([item for item, _ in part])
                await asyncio.wait({call}, timeout=max(0.0, deadline - loop.time()))
                if not call.done():
                    await self._hung(batch, call)
                    return
                parts.extendleft(reversed(self._settled(part, call)))
        finally:
            for _, future in batch:
                future.cancel()

    def _settled(self, part, call: asyncio.Future) -> list:
        """Give every caller its outcome; or, of a part that failed, the smaller ones to try."""
        error = call.exception()
        if error is None:
            for (_, future), outcome in zip(part, call.result(), strict=True):
                _settle(future, outcome)
            return []
        if len(part) == 1:
            log.error("a prediction failed", exc_info=error)
            _settle(part[0][1], error)
            return []
        log.warning("%d together failed (%s); in parts", len(part), type(error).__name__)
        part = [(item, future) for item, future in part if not future.done()]
        step = max(1, math.isqrt(len(part)))
        return [part[start : start + step] for start in range(0, len(part), step)]

    async def _hung(self, batch, call: asyncio.Future) -> None:
        """Fail those that wait, and wait for the call itself: nothing runs beside it."""
        loop = asyncio.get_running_loop()
        self.hung_since = loop.time()
        log.error("a prediction has not returned within %g s", self.seconds)
        for _, future in batch:
            _settle(future, PredictionTimeoutError(f"no prediction within {self.seconds:g} s"))
        self._fail_waiting()
        await asyncio.wait({call})
        log.warning("it returned after %.0f s more", loop.time() - self.hung_since)
        self.hung_since = None


def _settle(future: asyncio.Future, outcome: object) -> None:
    if future.done():  # its caller gave up
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class _Worker:
    """One thread that calls a function. A daemon: a call that never returns does not keep the process."""

    def __init__(self, function: Callable[[list], Sequence]):
        self._function = function
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, items: list) -> asyncio.Future:
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

    def _outcome(self, items: list) -> list | Exception:
        try:
            results = list(self._function(items))
        except Exception as error:
            return error
        except BaseException as error:  # such as SystemExit: not the event loop's to obey
            return RuntimeError(f"the prediction ended with {type(error).__name__}: {error}")
        if len(results) != len(items):
            return RuntimeError(f"{len(results)} results for {len(items)} items")
        return results
