"""A queue in which requests take turns: one of many items holds up no other, whoever came first."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class FairQueue(Generic[Entry]):
    """Items of several owners; batches take one of each in turn, each owner's in its own order.

    Args:
        size: of an entry, such as its tokens; 1 of each where batches are counted in items.

    Example:
        >>> queue = FairQueue(size=len)
        >>> for owner, text in ((1, "aaaa"), (1, "bbbb"), (2, "cc"), (1, "dddd")):
        ...     queue.put(text, owner)
        >>> queue.take(10), queue.take(10), len(queue)
        (['aaaa', 'cc', 'bbbb'], ['dddd'], 0)
    """

    def __init__(self, size: Callable[[Entry], int]):
        self._size = size
        self._lanes: OrderedDict[object, deque[Entry]] = OrderedDict()
        self._count = 0
        self.total = 0  # sizes of all that waits

    def __len__(self) -> int:
        return self._count

    def put(self, entry: Entry, owner: object = None) -> None:
        """Add an entry.

        Args:
            entry: to wait.
            owner: of the entry; None: it has no other.
        """
        lane = self._lanes.setdefault(object() if owner is None else owner, deque())
        lane.append(entry)
        self._count += 1
        self.total += self._size(entry)

    def take(self, most: int, wanted: Callable[[Entry], bool] = lambda entry: True) -> list[Entry]:
        """The next batch: entries of a size of ``most`` together, or one that is larger.

        An entry that does not fit ends the batch, and is the first of the next: it is never passed over.

        Args:
            most: size of the batch.
            wanted: entries of which it is false are dropped.
        """
        batch: list[Entry] = []
        room = most
        while self._lanes:
            owner, lane = next(iter(self._lanes.items()))
            size = self._size(lane[0])
            is_wanted = wanted(lane[0])
            if is_wanted and batch and size > room:
                break
            entry = lane.popleft()
            self._count -= 1
            self.total -= size
            if not lane:
                del self._lanes[owner]
            if is_wanted:
                batch.append(entry)
                room -= size
                if lane:
                    self._lanes.move_to_end(owner)
        return batch

    def clear(self) -> list[Entry]:
        """Take out all that waits."""
        entries = [entry for lane in self._lanes.values() for entry in lane]
        self._lanes.clear()
        self._count = self.total = 0
        return entries
