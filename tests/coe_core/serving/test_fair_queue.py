"""Whose turn it is: a long text does not hold up short ones, and nothing waits for ever."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_core.serving.batching import Batcher
from coe_core.serving.fair_queue import FairQueue


def queue_of(*entries, size=lambda entry: entry[1]):
    queue = FairQueue(size)
    for owner, tokens in entries:
        queue.put((owner, tokens), owner)
    return queue


def test_a_long_text_takes_turns_with_short_ones():
    queue = queue_of(*[("long", 10)] * 100, ("short", 10), ("other", 10))
    assert queue.take(40) == [("long", 10), ("short", 10), ("other", 10), ("long", 10)]
    assert (len(queue), queue.total) == (98, 980)


def test_items_without_an_owner_come_in_their_order():
    queue = FairQueue(lambda entry: 1)
    for number in range(5):
        queue.put(number)
    assert [queue.take(2), queue.take(2), queue.take(2), queue.take(2)] == [[0, 1], [2, 3], [4], []]


def test_what_does_not_fit_is_first_of_the_next_batch():
    queue = queue_of(("a", 6), ("b", 50), ("c", 1))
    assert queue.take(10) == [("a", 6)]
    assert queue.take(10) == [("b", 50)]  # alone, as it is larger than a batch
    assert queue.take(10) == [("c", 1)]


def test_unwanted_entries_take_no_room():
    queue = queue_of(("a", 10), ("b", 10), ("c", 10))
    assert queue.take(10, wanted=lambda entry: entry[0] != "a") == [("b", 10)]
    assert (len(queue), queue.total) == (1, 10)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=30), st.integers(1, 20))
def test_everything_comes_once_in_batches_that_fit(entries, most):
    queue = queue_of(*entries)
    taken = []
    while batch := queue.take(most):
        assert sum(size for _, size in batch) <= most or len(batch) == 1
        taken += batch
    assert (len(queue), queue.total) == (0, 0)
    for owner in range(4):
        assert [e for e in taken if e[0] == owner] == [e for e in entries if e[0] == owner]


def test_clear_empties_it():
    queue = queue_of(("a", 1), ("a", 2), ("b", 3))
    assert queue.clear() == [("a", 1), ("a", 2), ("b", 3)]
    assert (len(queue), queue.total, queue.take(9)) == (0, 0, [])


def test_batches_are_counted_by_size_and_shared_fairly():
    batches = []

    def predict(items):
        batches.append(items)
        return items

    async def scenario():
        sizes = {"long": 4, "x": 1}
        async with Batcher(
            predict, max_batch=8, window=0.05, max_waiting=100, size=lambda item: sizes[item]
        ) as batcher:
            long = [batcher.submit("long", "a text") for _ in range(4)]
            await asyncio.gather(*long, batcher.submit("x", "another"))

    asyncio.run(scenario())
    assert batches == [["long", "x"], ["long", "long"], ["long"]]


def test_a_result_for_an_item_that_fails_among_others_of_its_owner():
    def predict(items):
        return [ValueError("bad") if item == 1 else item for item in items]

    async def scenario():
        async with Batcher(predict, max_batch=8, window=0, max_waiting=9) as batcher:
            return await asyncio.gather(
                *(batcher.submit(number, "a") for number in range(3)), return_exceptions=True
            )

    first, failed, last = asyncio.run(scenario())
    assert (first, last) == (0, 2)
    with pytest.raises(ValueError, match="bad"):
        raise failed
