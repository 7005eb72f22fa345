"""The report of benchmarks/inference.py, on times made by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks/inference.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_inference", PATH)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # the script finds what stands beside it
        patch.syspath_prepend(PATH.parent)
        spec.loader.exec_module(module)
    return module


def test_report_by_hand(benchmark):
    def system(name, macs, accuracy, parts=None):
        return benchmark.System(name, macs, None, parts, accuracy)

    systems = [
        system("plain small", 1e6, 0.8),
        system("plain large", 4e6, 0.9),
        system("CoE", 2e6, 0.85, parts=len),
        system("CoE, best", 3e6, 0.95),
    ]
    times = {
        "plain small": [0.2, 0.2, 0.2],
        "plain large": [0.8, 0.4, 0.4],
        "CoE": [0.1, 0.3, 0.2],
        "CoE / parts": [0.1, 0.2, 0.2],
        "CoE, best": [0.4, 0.4, 0.4],
    }
    rows = {row["system"]: row for row in benchmark.report(systems, times, "eager", 8)}
    assert rows["CoE"]["median_ms"] == 200
    assert rows["CoE"]["p95_ms"] == 300
    assert rows["CoE"]["images_per_s"] == pytest.approx(40)
    # large: 0.4 s for 8 x 4e6; CoE: 0.2 s for 8 x 2e6; small: 0.2 s for 8 x 1e6
    assert rows["plain large"]["efficiency"] == 1
    assert rows["CoE"]["efficiency"] == pytest.approx(1)
    assert rows["plain small"]["efficiency"] == pytest.approx(0.5)
    assert rows["CoE"]["overhead"] == pytest.approx(1)  # median of 1, 1.5, 1
    assert rows["CoE"]["times_as_fast"] == pytest.approx(2)  # as plain large: small is not enough
    assert rows["plain small"]["times_as_fast"] == 1
    assert rows["CoE, best"]["times_as_fast"] is None  # no plain network is as accurate
    assert rows["CoE, best"]["overhead"] is None


def test_single_images_are_averaged_over_a_round(benchmark):
    width = benchmark.SINGLES
    systems = [benchmark.System("plain", 1e6, None)]
    times = {"plain": [0.1] * (width // 2) + [0.3] * (width // 2)}
    row = benchmark.report(systems, times, "eager", 1)[0]
    assert row["images_per_s"] == pytest.approx(5)
    assert row["calls"] == width


def test_every_system_runs_in_turns_and_its_parts_beside_it(benchmark):
    seen = []

    def predict(batch, rows):
        seen.append((len(batch), rows.start))

    def parts(batch, rows):
        return lambda: seen.append(("parts", rows.start))

    systems = [
        benchmark.System("a", 1.0, predict, parts),
        benchmark.System("b", 1.0, lambda batch, _: len(batch)),
    ]
    ticks = iter(range(1000))
    times = benchmark.measure(systems, torch.zeros(16, 1, 2, 2), 4, 3, lambda: next(ticks), "eager")
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "a / parts": 3, "b": 3}
    assert len(seen) == 2 * 4  # one round is not counted
    assert {what for what, _ in seen} == {4, "parts"}
    assert [start for what, start in seen if what == 4] == [0, 0, 4, 8]
