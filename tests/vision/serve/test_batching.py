"""The batching queue: who shares a batch, who is refused, and callers that give up."""

import asyncio
import threading

import pytest

from vision.serve.batching import Batcher, QueueFullError


def run(scenario):
    async def limited():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


def doubling(batches):
    def predict(items):
        batches.append(list(items))
        return [2 * item for item in items]

    return predict


def test_items_of_one_window_share_a_batch_and_get_their_own_results():
    batches = []

    async def scenario():
        async with Batcher(doubling(batches), max_batch=4, window=0.05, max_waiting=100) as batcher:
            assert await asyncio.gather(*map(batcher.submit, range(3))) == [0, 2, 4]
            assert batches == [[0, 1, 2]]
            assert await asyncio.gather(*map(batcher.submit, range(10))) == [
                2 * i for i in range(10)
            ]
            assert [len(batch) for batch in batches[1:]] == [4, 4, 2]
            assert len(batcher) == 0

    run(scenario)


def test_a_full_batch_does_not_wait_for_the_window():
    batches = []

    async def scenario():
        async with Batcher(doubling(batches), max_batch=2, window=1000, max_waiting=9) as batcher:
            assert await asyncio.gather(batcher.submit(1), batcher.submit(2)) == [2, 4]

    run(scenario)


def test_without_a_window_items_leave_at_once():
    async def scenario():
        async with Batcher(doubling([]), max_batch=8, window=0, max_waiting=9) as batcher:
            assert await batcher.submit(5) == 10

    run(scenario)


def test_a_full_queue_refuses_and_recovers():
    go, begun = threading.Event(), threading.Event()

    def predict(items):
        begun.set()
        assert go.wait(10)
        return items

    async def scenario():
        async with Batcher(predict, max_batch=1, window=0, max_waiting=2) as batcher:
            running = asyncio.create_task(batcher.submit(0))
            await asyncio.to_thread(begun.wait, 10)
            waiting = [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]
            await asyncio.sleep(0)
            assert len(batcher) == 2
            with pytest.raises(QueueFullError, match="2 images wait already; try again later"):
                await batcher.submit(3)
            go.set()
            assert await asyncio.gather(running, *waiting) == [0, 1, 2]
            assert await batcher.submit(4) == 4

    run(scenario)


def test_callers_that_gave_up_are_left_out():
    batches, go, begun = [], threading.Event(), threading.Event()

    def predict(items):
        begun.set()
        assert go.wait(10)
        batches.append(list(items))
        return items

    async def scenario():
        async with Batcher(predict, max_batch=4, window=0, max_waiting=9) as batcher:
            running = asyncio.create_task(batcher.submit(0))
            await asyncio.to_thread(begun.wait, 10)
            given_up, kept = (asyncio.create_task(batcher.submit(i)) for i in (1, 2))
            await asyncio.sleep(0)
            given_up.cancel()
            running.cancel()  # in the middle of its batch
            go.set()
            assert await kept == 2

    run(scenario)
    assert batches == [[0], [2]]


def test_an_error_is_told_to_its_batch_and_the_next_one_runs():
    def predict(items):
        if -1 in items:
            raise ValueError("no negative numbers")
        return items

    async def scenario():
        async with Batcher(predict, max_batch=2, window=0.01, max_waiting=9) as batcher:
            results = await asyncio.gather(
                batcher.submit(-1), batcher.submit(1), return_exceptions=True
            )
            assert [str(result) for result in results] == ["no negative numbers"] * 2
            assert await batcher.submit(7) == 7

    run(scenario)


def test_closing_cancels_those_that_wait():
    async def scenario():
        batcher = Batcher(doubling([]), max_batch=8, window=1000, max_waiting=9)
        async with batcher:
            waiting = asyncio.create_task(batcher.submit(1))
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(scenario)
