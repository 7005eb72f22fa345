"""What a server tells of itself: Prometheus metrics, and the exit rate beside the calibrated one."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vision.prediction.budgets import Budget
from vision.prediction.predictor import Prediction

WINDOW = 1000  # images that the drift is judged by
LEAST = 100  # images before it is judged at all
ALARM = 4.0  # standard errors
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass(frozen=True)
class Drift:
    """Exit rate of the last images beside what calibration promises at their thresholds."""

    num_images: int
    live: float | None
    expected: float | None
    standard_errors: float | None  # live - expected, in its standard errors
    drifted: bool  # too far for chance: the images are no longer like the calibration data


class ExitRateDrift:
    """Compares exits with the calibrated exit rate of each image's own threshold.

    Each image exits with its expected probability p, known from m calibration samples. The standard
    error of the difference of means has a share of the n live images and one of the calibration:
    sqrt(mean p (1 - p) (1/n + 1/m)).

    Example:
        >>> drift = ExitRateDrift()
        >>> for _ in range(200):
        ...     drift.add(True, 0.5, 1000)
        >>> drift.report().drifted
        True
    """

    def __init__(self, window: int = WINDOW):
        self._images: deque[tuple[bool, float, int]] = deque(maxlen=window)

    def add(self, exited: bool, expected: float, num_calibration: int) -> None:
        """One image whose threshold lets a share ``expected`` exit, by so many calibration samples."""
        self._images.append((exited, expected, num_calibration))

    def report(self) -> Drift:
        """Of the last images; nothing is judged before there are `LEAST`."""
        images = list(self._images)
        n = len(images)
        if n == 0:
            return Drift(0, None, None, None, False)
        live = sum(exited for exited, _, _ in images) / n
        expected = sum(p for _, p, _ in images) / n
        variance = sum(p * (1 - p) * (1 / n + 1 / m) for _, p, m in images) / n
        # Where all or nothing should exit, one image in the calibration data is the resolution.
        error = max(math.sqrt(variance), min(1 / m for _, _, m in images))
        distance = (live - expected) / error
        return Drift(n, live, expected, distance, n >= LEAST and abs(distance) > ALARM)


class LiveMetrics:
    """Counters of one server, in a registry of its own.

    Args:
        num_experts: k.
    """

    def __init__(self, num_experts: int):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("coe_requests", "by status", ["status"], registry=registry)
        self.images = Counter("coe_images", "by route", ["route"], registry=registry)
        for route in ("exit", *(f"expert_{j}" for j in range(num_experts))):
            self.images.labels(route)
        self.macs = Counter("coe_macs", "multiply-adds spent", registry=registry)
        self.seconds = Histogram(
            "coe_request_seconds", "of answered predictions", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "coe_batch_images", "in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.queue = Gauge("coe_queue_images", "that wait", registry=registry)
        self.live = Gauge("coe_exit_rate_live", "of the last images", registry=registry)
        self.expected = Gauge("coe_exit_rate_expected", "by calibration", registry=registry)
        self.drift = Gauge(
            "coe_exit_rate_drift", "live - expected, in standard errors", registry=registry
        )
        self._exits = ExitRateDrift()
        self._lock = threading.Lock()

    def predicted(self, prediction: Prediction, budget: Budget, seconds: float) -> None:
        """Count one answered prediction."""
        self.images.labels("exit" if prediction.exited else f"expert_{prediction.expert}").inc()
        self.macs.inc(prediction.macs)
        self.seconds.observe(seconds)
        if budget.exit_rate is not None:
            with self._lock:
                self._exits.add(prediction.exited, budget.exit_rate, budget.num_samples)

    def drift_report(self) -> Drift:
        """See `ExitRateDrift`."""
        with self._lock:
            return self._exits.report()

    def render(self) -> bytes:
        """In Prometheus' text format."""
        drift = self.drift_report()
        for gauge, value in (
            (self.live, drift.live),
            (self.expected, drift.expected),
            (self.drift, drift.standard_errors),
        ):
            gauge.set(math.nan if value is None else value)
        return generate_latest(self.registry)
