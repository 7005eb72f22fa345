"""Requests that arrive within a moment of each other are predicted in one batch; the queue is bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from coe_core import CoEError

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(CoEError):
    """As many requests wait as may wait; try again later."""


class Batcher(Generic[Item, Result]):
    """Collects items into batches for a function that runs in a thread of its own.

    A batch begins with the first item that waits and leaves when it is full or the window is over;
    while one batch runs the next one collects. An item whose caller gave up is left out.

    Args:
        predict: items -> results, as many and in the same order.
        max_batch: items in a batch.
        window: seconds that the first item waits for others.
        max_waiting: items that may wait; further ones are refused.
    """

    def __init__(
        self,
        predict: Callable[[list[Item]], Sequence[Result]],
        max_batch: int,
        window: float,
        max_waiting: int,
    ):
        self.predict, self.max_batch, self.window = predict, max_batch, window
        self.max_waiting = max_waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._task: asyncio.Task | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def __aenter__(self) -> Batcher[Item, Result]:
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()
        self._thread.shutdown(wait=True)

    async def submit(self, item: Item) -> Result:
        """The result of one item.

        Raises:
            QueueFullError: ``max_waiting`` items wait already.
        """
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} images wait already; try again later")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._arrived.set()
        if len(self._waiting) >= self.max_batch:
            self._full.set()
        return await future

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            if self.window and len(self._waiting) < self.max_batch:
                with suppress(TimeoutError):  # the window is over: the batch leaves as it is
                    await asyncio.wait_for(self._full.wait(), self.window)
            batch = self._take()
            if batch:
                await self._run(batch)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch = []
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
        loop = asyncio.get_running_loop()
        items = [item for item, _ in batch]
        try:
            results = await loop.run_in_executor(self._thread, self.predict, items)
        except Exception as error:  # told to every caller; the next batch is none the worse
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
