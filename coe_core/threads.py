"""How many threads torch computes with: what is allowed, and what is measured to be fast.

Threads of one operation wait for each other. On processors that other work shares, two of them took twice
as long as one (a training step of cifar10: 249 ms with two on two busy cores, 118 ms with one).
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables by which a user chooses
WORTH_MEASURING = 1e9  # multiply-adds of a piece of work; below this one thread always does it
_FASTER = 0.9  # of the time with one thread: what more threads must at least reach
_ROUNDS = 3
_SECONDS = 2.0  # that measuring may take, but for its first round
_CGROUP = Path("/sys/fs/cgroup")


class Threads(NamedTuple):
    """A number of threads, and why it was chosen.

    Attributes:
        count: at least 1.
        reason: for one line of output; empty where the user or the caller chose it.
        measured: whether the work was timed.
    """

    count: int  # type: ignore[assignment]  # in place of tuple's method, which nobody calls
    reason: str = ""
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.count} thread{'s' * (self.count > 1)} ({self.reason})"


def allowed_processors() -> float:
    """Processors that this process may use: by its affinity, and by the quota of its control group.

    Example:
        >>> allowed_processors() > 0
        True
    """
    if hasattr(os, "sched_getaffinity"):
        count = float(len(os.sched_getaffinity(0)))
    else:
        count = float(os.cpu_count() or 1)
    return min(count, _quota())


def _quota() -> float:
    """The quota of the control group (version 2, else 1), in processors; infinite where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2].lstrip("/")
        for folder in (_CGROUP / group, _CGROUP):
            if (folder / "cpu.max").is_file():
                most, period = (folder / "cpu.max").read_text().split()
                return math.inf if most == "max" else int(most) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        if quota > 0:
            return quota / int((_CGROUP / "cpu/cpu.cfs_period_us").read_text())
    return math.inf


def choose_threads(
    work: Callable[[], object], macs: float, name: str = "a step", processes: int = 1
) -> Threads:
    """The number of threads with which a piece of work is done fastest; the current number stays as it is.

    Args:
        work: to be timed, such as a training step on copies; called a few times.
        macs: its multiply-adds; small work is not timed: one thread does it, on every machine.
        name: of the work, for the reason.
        processes: on this machine that work at once, each with threads of its own.

    Example:
        >>> choose_threads(lambda: None, macs=1e6, name="a batch").count
        1
    """
    fixed = [variable for variable in FIXED_BY if os.environ.get(variable)]
    if fixed or torch.cuda.is_available():
        return Threads(torch.get_num_threads())
    allowed = allowed_processors()
    # Not more than torch itself would take: one for each core, whatever it runs besides.
    most = min(int(allowed / processes), torch.get_num_threads())
    if most <= 1:
        return Threads(1, f"{allowed:.3g} processors for {processes} process(es)")
    if macs < WORTH_MEASURING:
        return Threads(1, f"{name} of {macs / 1e9:.2g} G multiply-adds is too short to be shared")
    seconds = _measure(work, (1, most))
    share = seconds[most] / seconds[1]
    reason = f"{name} takes {1000 * seconds[1]:.3g} ms with 1 and {1000 * seconds[most]:.3g} ms with {most}"
    return Threads(most if share < _FASTER else 1, reason, measured=True)


def _measure(work: Callable[[], object], counts: tuple[int, ...]) -> dict[int, float]:
    """Median seconds by number of threads; in turn, so that a burst of other work meets all alike."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    begun = time.perf_counter()
    with restored_threads():
        for turn in range(_ROUNDS + 1):
            if turn > 1 and time.perf_counter() - begun > _SECONDS:
                break
            for count in counts:
                torch.set_num_threads(count)
                start = time.perf_counter()
                work()
                if turn:  # the first also pays what is done only once
                    seconds[count].append(time.perf_counter() - start)
    return {count: statistics.median(measured) for count, measured in seconds.items()}


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Whatever number of threads is set inside, afterwards it is the caller's again."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
