"""The batching queue: who shares a batch, who is refused, and callers that give up."""

import asyncio
import threading
import time

import pytest

from coe_core.serving.batching import (
    Batcher,
    PredictionTimeoutError,
    QueueFullError,
    UnavailableError,
)


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
            with pytest.raises(QueueFullError, match="2 requests wait already; try again later"):
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


def test_an_item_that_fails_fails_alone():
    batches = []

    def predict(items):
        batches.append(list(items))
        bad = [item for item in items if item % 10 == 3]
        if bad:
            raise ValueError(f"no {bad[0]}")
        return items

    async def scenario():
        async with Batcher(predict, max_batch=32, window=0.05, max_waiting=99) as batcher:
            work = [batcher.submit(i) for i in range(32)]
            results = await asyncio.gather(*work, return_exceptions=True)
            for i in range(32):
                if i % 10 == 3:
                    assert str(results[i]) == f"no {i}"
                else:
                    assert results[i] == i
            assert await batcher.submit(7) == 7

    run(scenario)
    assert batches[0] == list(range(32))
    assert max(map(len, batches[1:])) == 5  # parts of the square root, then single ones
    assert len(batches) <= 1 + 7 + 4 * 3 + 20 + 1


def test_an_exception_in_place_of_a_result_fails_that_item():
    def predict(items):
        return [ValueError("odd") if item % 2 else item for item in items]

    async def scenario():
        async with Batcher(predict, max_batch=4, window=0.05, max_waiting=9) as batcher:
            work = [batcher.submit(i) for i in range(4)]
            results = await asyncio.gather(*work, return_exceptions=True)
            assert [str(result) for result in results] == ["0", "odd", "2", "odd"]

    run(scenario)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda items: [], "0 results for 1 items"),
        (lambda items: None, "not iterable"),
        (lambda items: exit(3), "the prediction ended with SystemExit: 3"),
    ],
)
def test_what_is_no_list_of_results_is_an_error_and_the_batcher_lives(predict, message):
    async def scenario():
        async with Batcher(predict, max_batch=2, window=0, max_waiting=9) as batcher:
            for _ in range(2):
                with pytest.raises((RuntimeError, TypeError), match=message):
                    await batcher.submit(1)
            assert batcher.state == "ok"

    run(scenario)


def test_a_call_that_hangs_costs_its_callers_and_the_batcher_recovers():
    go = threading.Event()

    def predict(items):
        assert 0 not in items or go.wait(10)
        return items

    async def scenario():
        batcher = Batcher(predict, max_batch=1, window=0, max_waiting=9, seconds=0.1)
        async with batcher:
            hanging, waiting = (asyncio.create_task(batcher.submit(i)) for i in (0, 1))
            with pytest.raises(PredictionTimeoutError, match=r"no prediction within 0\.1 s"):
                await hanging
            with pytest.raises(UnavailableError, match="an earlier prediction has not returned"):
                await waiting
            assert batcher.state == "hung"
            for _ in range(3):  # at once
                with pytest.raises(UnavailableError, match=r"within 0\.1 s; try again later"):
                    await batcher.submit(2)
            assert len(batcher) == 0
            go.set()
            while batcher.state == "hung":
                await asyncio.sleep(0.01)
            assert await batcher.submit(3) == 3

    run(scenario)


def test_a_call_that_never_returns_does_not_keep_the_server():
    never = threading.Event()

    async def scenario():
        async with Batcher(lambda items: never.wait(60), 1, 0, 9, seconds=0.05) as batcher:
            with pytest.raises(PredictionTimeoutError):
                await batcher.submit(0)

    started = time.monotonic()
    run(scenario)
    assert time.monotonic() - started < 10
    never.set()


def test_a_dead_batcher_says_so_to_all(monkeypatch):
    async def scenario():
        async with Batcher(lambda items: items, 1, 0, 9) as batcher:
            monkeypatch.setattr(batcher, "_take", lambda: 1 / 0)
            work = asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
            for error in await work:
                assert isinstance(error, UnavailableError)
                assert str(error) == "nothing is predicted any more: the server must be restarted"
            assert batcher.state == "dead"
            with pytest.raises(UnavailableError):
                await batcher.submit(1)
        assert Batcher(list, 1, 0, 9).state == "dead"  # never begun

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
