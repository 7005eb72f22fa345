"""Whether a server can do its work: from what its latest predictions came to."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from coe_core.serving.batching import State

SECONDS = 60.0  # that an outcome counts
IN_A_ROW = 5  # failures after the last success, from which the server counts as failing
Status = Literal["ok", "degraded", "failing", "hung", "dead"]


@dataclass(frozen=True)
class HealthReport:
    """What /health says of the predictions of the last minute."""

    status: Status  # degraded: some fail; failing: the last ones all failed
    reason: str | None  # one line; none where all is well
    predicted: int
    failed: int

    @property
    def serving(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.status in ("ok", "degraded")


class Health:
    """Remembers how the latest predictions ended.

    Failures older than a minute are forgotten, so a server that was left alone because it failed is
    tried again.

    Args:
        clock: seconds, for tests.

    Example:
        >>> health = Health()
        >>> health.add(None)
        >>> health.add(RuntimeError("no memory"))
        >>> report = health.report("ok")
        >>> report.status, report.reason
        ('degraded', '1 of the last 2 predictions failed, at last with RuntimeError')
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._outcomes: deque[tuple[float, str | None]] = deque(maxlen=1000)

    def add(self, error: BaseException | None) -> None:
        """One prediction: its error, or None of one that went well."""
        self._outcomes.append((self._clock(), None if error is None else type(error).__name__))

    def report(self, batcher: State) -> HealthReport:
        """What happened in the last minute.

        Args:
            batcher: see `Batcher.state`.
        """
        oldest = self._clock() - SECONDS
        errors = [error for at, error in self._outcomes if at >= oldest]
        failed = [error for error in errors if error is not None]
        status, reason = self._judge(batcher, errors, failed)
        return HealthReport(status, reason, len(errors), len(failed))

    @staticmethod
    def _judge(
        batcher: State, errors: Sequence[str | None], failed: Sequence[str]
    ) -> tuple[Status, str | None]:
        if batcher == "dead":
            return "dead", "nothing is predicted any more: restart the server"
        if batcher == "hung":
            return "hung", "a prediction has not returned in time; nothing else runs beside it"
        if not failed:
            return "ok", None
        reason = (
            f"{len(failed)} of the last {len(errors)} predictions failed, at last with {failed[-1]}"
        )
        in_a_row = len(errors) >= IN_A_ROW and all(errors[-IN_A_ROW:])
        return ("failing" if in_a_row else "degraded"), reason
