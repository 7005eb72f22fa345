"""Progress of a long loop on stderr: one line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
QUIET_SECONDS = 2.0  # a loop that ends sooner shows nothing
LINE_SECONDS = 10.0  # between plain lines
REDRAW_SECONDS = 0.2  # between changes of the line on a terminal
_TO_START_OF_LINE, _CLEAR = "\r", "\x1b[K"


def progress(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """The items, one by one; after two seconds their count, rate and time left are shown.

    Args:
        items: of the loop.
        total: how many there are.
        what: is done, such as "predicting".
        unit: of the items.

    Example:
        >>> list(progress("ab", 2, "predicting"))
        ['a', 'b']
    """
    with ProgressLine(total, what, unit) as line:
        for item in items:
            yield item
            line.advance()


class ProgressLine:
    """The same for work that is no loop over items: say how much of it is done.

    Example:
        >>> with ProgressLine(2, "decoding") as line:
        ...     line.advance(2)
    """

    def __init__(self, total: int | None, what: str, unit: str = "images"):
        """
        Args:
            total: how much there is to do; None: that is not known.
            what: is done, such as "predicting".
            unit: of what is counted.
        """
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self._start = time.monotonic()
        self._due = self._start + QUIET_SECONDS
        self._is_drawn = False

    def advance(self, count: int = 1, detail: str = "") -> None:
        """So many more are done; ``detail`` stands at the end of the line."""
        self.done += count
        now = time.monotonic()
        if now < self._due or sys.stderr is None:
            return
        text = self.text(now) + (f", {detail}" if detail else "")
        if sys.stderr.isatty():
            self._due = now + REDRAW_SECONDS
            self._is_drawn = True
            sys.stderr.write(f"{_TO_START_OF_LINE}{_fitted(text)}{_CLEAR}")
            sys.stderr.flush()
        else:
            self._due = now + LINE_SECONDS
            print(text, file=sys.stderr, flush=True)

    def text(self, now: float) -> str:
        """Count, rate and time left."""
        rate = self.done / max(now - self._start, 1e-9)
        if self.total is None:
            return f"{self.what}: {self.done:,}, {rate:.3g} {self.unit}/s"
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        return (
            f"{self.what}: {self.done:,}/{self.total:,}, {rate:.3g} {self.unit}/s, "
            f"{duration(left)} left"
        )

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_drawn and sys.stderr is not None:
            sys.stderr.write(f"{_TO_START_OF_LINE}{_CLEAR}")
            sys.stderr.flush()


def _fitted(text: str) -> str:
    import shutil

    return text[: max(shutil.get_terminal_size().columns - 1, 20)]


def duration(seconds: float) -> str:
    """A time a person takes in at a glance.

    Example:
        >>> duration(8), duration(90), duration(7380)
        ('8 s', '1:30 min', '2:03 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"
