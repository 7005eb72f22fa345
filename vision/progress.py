"""Progress of a long loop on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
QUIET_SECONDS = 2.0  # a loop that ends sooner shows nothing
LINE_SECONDS = 10.0  # between plain lines


def progress(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """The items, one by one; after two seconds their count, rate and time left are shown.

    Example:
        >>> list(progress("ab", 2, "predicting"))
        ['a', 'b']
    """
    console = Console(stderr=True)
    bar: Progress | None = None
    start = time.monotonic()
    due = start + QUIET_SECONDS
    try:
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now < due:
                continue
            rate = done / (now - start)
            if not console.is_terminal:
                due = now + LINE_SECONDS
                left = (total - done) / rate
                console.print(
                    f"{what}: {done}/{total}, {rate:.0f} {unit}/s, {left:.0f} s left",
                    highlight=False,
                )
                continue
            due = now + 0.1
            if bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
                bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
                task = bar.add_task(what, total=total)
                bar.start()
            bar.update(task, completed=done, description=f"{what}, {rate:.0f} {unit}/s")
    finally:
        if bar is not None:
            bar.stop()
