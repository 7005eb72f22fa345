"""The exit rate beside the calibrated one, by hand and by chance."""

import numpy as np
import pytest

from coe_core.serving.metrics import ExitRateDrift


def drifted(rate, expected, n=1000, num_calibration=1000):
    drift = ExitRateDrift()
    random = np.random.default_rng(0)
    for exited in random.random(n) < rate:
        drift.add(bool(exited), expected, num_calibration)
    return drift.report()


def test_drift_by_hand():
    drift = ExitRateDrift()
    for i in range(100):
        drift.add(i < 70, 0.5, 100)
    report = drift.report()
    assert (report.live, report.expected) == (0.7, 0.5)
    # sqrt(.25 (1/100 + 1/100)) = 0.0707
    assert report.standard_errors == pytest.approx(0.2 / 0.0707, rel=1e-3)
    assert not report.drifted


def test_drift_is_told_and_chance_is_not():
    assert drifted(0.5, 0.3).drifted
    assert drifted(0.1, 0.3).drifted
    assert not drifted(0.3, 0.3).drifted
    assert not drifted(0.5, 0.3, n=50).drifted  # too few to judge
    assert drifted(0.1, 0.0).drifted
    assert not drifted(0.0, 0.0).drifted
    assert ExitRateDrift().report().live is None


def test_drift_forgets():
    drift = ExitRateDrift(window=200)
    for exited in [True] * 500 + [False] * 200:
        drift.add(exited, 0.0, 100)
    assert drift.report().live == 0
