"""A budget of bytes that requests share: who needs more than is left waits for its turn."""

from __future__ import annotations

import asyncio
import ctypes
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from coe_core.errors import CoEError

log = logging.getLogger("coe-serve")
Result = TypeVar("Result")
LARGE = 16 * 2**20  # bytes of work from which memory is given back to the system afterwards


class TooMuchMemoryError(CoEError):
    """One request needs more than the whole budget."""


class BusyMemoryError(CoEError):
    """The budget was not free in time; try again later."""


class MemoryBudget:
    """Bytes that may be in use at a time; in the order of arrival, so that none waits for ever.

    Args:
        total: bytes.
        seconds: that a request waits for its share.

    Example:
        >>> budget = MemoryBudget(100, seconds=0.01)
        >>> async def scenario():
        ...     await budget.take(80)
        ...     try:
        ...         await budget.take(30)
        ...     except BusyMemoryError as error:
        ...         print(error)
        ...     budget.give(80)
        ...     await budget.take(30)
        ...     return budget.in_use
        >>> asyncio.run(scenario())
        30 bytes were not free within 0.01 s, of 100 for all requests; try again later
        30
    """

    def __init__(self, total: int, seconds: float):
        self.total, self.seconds = total, seconds
        self.in_use = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def take(self, amount: int) -> None:
        """Wait for so many bytes; `give` them back.

        Raises:
            TooMuchMemoryError: more than the whole budget.
            BusyMemoryError: not free within ``seconds``.
        """
        if amount > self.total:
            raise TooMuchMemoryError(
                f"it needs about {amount:,} bytes of memory, and {self.total:,} are for all requests"
            )
        if not self._waiting and self.in_use + amount <= self.total:
            self.in_use += amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        taken = False
        try:
            async with asyncio.timeout(self.seconds):
                await turn
            taken = True
        except TimeoutError:
            raise BusyMemoryError(
                f"{amount:,} bytes were not free within {self.seconds:g} s, of {self.total:,} for all "
                "requests; try again later"
            ) from None
        finally:
            if not taken:
                self._leave(amount, turn)

    def _leave(self, amount: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():  # its turn came as its caller gave up
            self.give(amount)
        else:
            turn.cancel()
            self._next()  # those behind may fit

    def give(self, amount: int) -> None:
        """Return bytes that were taken."""
        self.in_use -= amount
        self._next()

    def _next(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if self.in_use + amount > self.total:
                    return
                self.in_use += amount
                turn.set_result(None)
            self._waiting.popleft()


class MemoryBoundWork:
    """Runs functions in threads, each within its share of a budget; memory is given back afterwards.

    Args:
        budget: shared by all.
        executor: whose threads do the work.
    """

    def __init__(self, budget: MemoryBudget, executor: Executor):
        self.budget, self.executor = budget, executor
        self._large = False  # was there large work since memory was last given back

    async def run(self, amount: int, function: Callable[..., Result], *arguments: Any) -> Result:
        """The function's result. The share is held until it has ended, even if its caller gives up.

        Raises:
            TooMuchMemoryError: see `MemoryBudget.take`.
            BusyMemoryError: see `MemoryBudget.take`.
        """
        await self.budget.take(amount)
        loop = asyncio.get_running_loop()
        try:
            work = loop.run_in_executor(self.executor, partial(function, *arguments))
        except BaseException:
            self.budget.give(amount)
            raise
        work.add_done_callback(partial(self._ended, amount))
        return await asyncio.shield(work)

    def _ended(self, amount: int, work: asyncio.Future[Any]) -> None:
        if not work.cancelled():
            work.exception()  # of a caller that gave up: nobody asks for it
        self._large = self._large or amount >= LARGE
        self.budget.give(amount)
        if self._large and self.budget.in_use < LARGE:
            self._large = False
            with suppress(RuntimeError):  # the server stops
                asyncio.get_running_loop().run_in_executor(self.executor, return_memory)


def return_memory() -> bool:
    """Give freed memory back to the system, where the C library can (glibc); whether it did."""
    trim = getattr(_library(), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
