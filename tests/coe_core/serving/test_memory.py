"""A budget of bytes: who waits, who is refused, and that nothing is lost of it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from coe_core.serving.memory import (
    BusyMemoryError,
    MemoryBoundWork,
    MemoryBudget,
    TooMuchMemoryError,
    return_memory,
)


def run(scenario):
    async def limited():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


def test_who_fits_takes_and_who_does_not_waits_in_order():
    async def scenario():
        budget, order = MemoryBudget(10, 5), []

        async def work(name, amount):
            await budget.take(amount)
            order.append(name)

        await budget.take(8)
        waiting = [asyncio.create_task(work(*each)) for each in (("large", 9), ("small", 1))]
        await asyncio.sleep(0)
        assert order == []  # the small one would fit, but came later
        assert len(budget) == 2
        budget.give(8)
        await asyncio.gather(*waiting)
        assert order == ["large", "small"]
        assert budget.in_use == 10

    run(scenario)


def test_refused_where_it_never_fits_or_not_in_time():
    async def scenario():
        budget = MemoryBudget(10, 0.01)
        with pytest.raises(TooMuchMemoryError, match="needs about 11 bytes of memory, and 10 are"):
            await budget.take(11)
        await budget.take(10)
        with pytest.raises(BusyMemoryError, match=r"1 bytes were not free within 0\.01 s, of 10"):
            await budget.take(1)
        budget.give(10)
        await budget.take(10)

    run(scenario)


def test_callers_that_give_up_leave_nothing_taken():
    async def scenario():
        budget = MemoryBudget(10, 5)
        await budget.take(10)
        first, second = (asyncio.create_task(budget.take(amount)) for amount in (10, 5))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        budget.give(10)
        await second  # not held up by the one before it
        assert budget.in_use == 5
        late = asyncio.create_task(budget.take(10))
        await asyncio.sleep(0)
        budget.give(5)  # its turn comes, and at the same moment it is cancelled
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert budget.in_use == 0

    run(scenario)


def test_work_holds_its_share_until_it_ends_even_if_its_caller_gives_up():
    go = threading.Event()

    async def scenario():
        budget = MemoryBudget(10, 5)
        with ThreadPoolExecutor(2) as executor:
            work = MemoryBoundWork(budget, executor)
            assert await work.run(10, lambda: 3) == 3
            assert budget.in_use == 0
            with pytest.raises(ValueError, match="no"):
                await work.run(10, int, "no")
            assert budget.in_use == 0
            left = asyncio.create_task(work.run(7, go.wait, 10))
            await asyncio.sleep(0.01)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            assert budget.in_use == 7
            go.set()
            while budget.in_use:
                await asyncio.sleep(0.01)

    run(scenario)


def test_memory_is_given_back_once_after_large_work(monkeypatch):
    trims = []
    monkeypatch.setattr("coe_core.serving.memory.return_memory", lambda: trims.append(1))

    async def scenario():
        with ThreadPoolExecutor(1) as executor:
            work = MemoryBoundWork(MemoryBudget(2**30, 5), executor)
            await work.run(1000, int)
            await asyncio.gather(*(work.run(2**28, int) for _ in range(4)))
            await work.run(1000, int)

    run(scenario)
    assert trims == [1]


def test_where_the_library_cannot_nothing_happens(monkeypatch):
    return_memory()
    monkeypatch.setattr("coe_core.serving.memory._library", lambda: None)
    assert return_memory() is False
