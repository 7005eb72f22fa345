"""What a server tells of itself: Prometheus metrics, and the exit rate beside the calibrated one."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

WINDOW = 1000  # items that the drift is judged by
LEAST = 100  # items before it is judged at all
ALARM = 4.0  # standard errors
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass(frozen=True)
class Drift:
    """Exit rate of the last items beside what calibration promises at their thresholds."""

    num_items: int
    live: float | None
    expected: float | None
    standard_errors: float | None  # live - expected, in its standard errors
    drifted: bool  # too far for chance: the items are no longer like the calibration data


class ExitRateDrift:
    """Compares exits with the calibrated exit rate of each item's own threshold.

    Each item exits with its expected probability p, known from m calibration samples. The standard
    error of the difference of means has a share of the n live items and one of the calibration:
    sqrt(mean p (1 - p) (1/n + 1/m)).

    Example:
        >>> drift = ExitRateDrift()
        >>> for _ in range(200):
        ...     drift.add(True, 0.5, 1000)
        >>> drift.report().drifted
        True
    """

    def __init__(self, window: int = WINDOW):
        self._items: deque[tuple[bool, float, int]] = deque(maxlen=window)

    def add(self, exited: bool, expected: float, num_calibration: int) -> None:
        """One item whose threshold lets a share ``expected`` exit, by so many calibration samples."""
        if num_calibration > 0:
            self._items.append((exited, expected, num_calibration))

    def report(self) -> Drift:
        """What the last items say; nothing is judged before there are `LEAST`."""
        items = list(self._items)
        n = len(items)
        if n == 0:
            return Drift(0, None, None, None, False)
        live = sum(exited for exited, _, _ in items) / n
        expected = sum(p for _, p, _ in items) / n
        variance = sum(p * (1 - p) * (1 / n + 1 / m) for _, p, m in items) / n
        # Where all or nothing should exit, one item in the calibration data is the resolution.
        error = max(math.sqrt(variance), min(1 / m for _, _, m in items))
        distance = (live - expected) / error
        return Drift(n, live, expected, distance, n >= LEAST and abs(distance) > ALARM)


class LiveMetrics:
    """Counters of one server, in a registry of its own.

    Args:
        num_experts: k.
        unit: what is predicted, in the names of the metrics.
    """

    def __init__(self, num_experts: int, unit: str = "images"):
        self.unit = unit
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("coe_requests", "by status", ["status"], registry=registry)
        for status in (200, 429, 503):  # a rate needs its zero
            self.requests.labels(str(status))
        self.items = Counter(f"coe_{unit}", "by route", ["route"], registry=registry)
        for route in ("exit", *(f"expert_{j}" for j in range(num_experts))):
            self.items.labels(route)
        self.failed = Counter(
            "coe_failed_predictions", "by kind of error", ["error"], registry=registry
        )
        self.closed = Counter(
            "coe_connections_closed", "by the server", ["reason"], registry=registry
        )
        self.macs = Counter("coe_macs", "multiply-adds spent", registry=registry)
        self.seconds = Histogram(
            "coe_request_seconds", "of answered predictions", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            f"coe_batch_{unit}", "in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.queue = Gauge(f"coe_queue_{unit}", "that wait", registry=registry)
        self.memory = Gauge("coe_memory_bytes", "of the budget, in use", registry=registry)
        self.healthy = Gauge("coe_healthy", "1: /health answers 200", registry=registry)
        self.live = Gauge("coe_exit_rate_live", f"of the last {unit}", registry=registry)
        self.expected = Gauge("coe_exit_rate_expected", "by calibration", registry=registry)
        self.drift = Gauge(
            "coe_exit_rate_drift", "live - expected, in standard errors", registry=registry
        )
        self._exits = ExitRateDrift()
        self._lock = threading.Lock()

    def count_status(self, status: int) -> None:
        """Count one answer."""
        self.requests.labels(str(status)).inc()

    def count_closed(self, reason: str) -> None:
        """Count one connection that the server closed."""
        self.closed.labels(reason).inc()

    def predicted(self, expert: int | str | None, macs: float, seconds: float) -> None:
        """Count one answered request of one item.

        Args:
            expert: see `routed`.
            macs: spent.
            seconds: from request to answer.
        """
        self.routed(expert, macs)
        self.seconds.observe(seconds)

    def routed(self, expert: int | str | None, macs: float) -> None:
        """Count one answered item.

        Args:
            expert: that ran; None if the item ended early; or the name of another route.
            macs: spent.
        """
        route = expert if isinstance(expert, str) else f"expert_{expert}"
        self.items.labels("exit" if expert is None else route).inc()
        self.macs.inc(macs)

    def exited(self, exited: bool, expected: float, num_calibration: int) -> None:
        """Count one item for the drift, see `ExitRateDrift.add`."""
        with self._lock:
            self._exits.add(exited, expected, num_calibration)

    def drift_report(self) -> Drift:
        """See `ExitRateDrift`."""
        with self._lock:
            return self._exits.report()

    def drift_facts(self) -> dict[str, Any]:
        """The same for JSON, the number of items by the name of their unit."""
        facts = asdict(self.drift_report())
        return {f"num_{self.unit}": facts.pop("num_items"), **facts}

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        drift = self.drift_report()
        for gauge, value in (
            (self.live, drift.live),
            (self.expected, drift.expected),
            (self.drift, drift.standard_errors),
        ):
            gauge.set(math.nan if value is None else value)
        return generate_latest(self.registry)
