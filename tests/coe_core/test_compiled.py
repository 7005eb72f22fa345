"""The compiled loops: kept for the next process, and working where nothing can be kept."""

import os
import subprocess
from pathlib import Path

import numpy as np

from coe_core.transport import (
    balanced_assignment,
)

ROOT = Path(__file__).parents[2]


USE = """
import sys
import numpy as np
from coe_core import transport
assert "numba" not in sys.modules, "imported before it is needed"
best = transport.balanced_assignment(np.eye(4, dtype=np.float32)[:, :2], [2, 2])
assert best.objective == 2.0, best
from coe_core import _transport_kernels
stats = _transport_kernels.solve.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


NO_CACHE = """
from numba.core import caching
caching.CacheImpl._locator_classes = []  # no folder will do
from coe_core import _transport_kernels
print(type(_transport_kernels.solve._cache).__name__)
"""


def run(python: Path, script: str) -> str:
    """What a process prints that has imported torch at most."""
    finished = subprocess.run(
        [python, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_second_process_compiles_nothing(warm):
    balanced_assignment(np.eye(4, dtype=np.float32)[:, :2])  # compiles, or finds it compiled
    assert run(warm("torch") / "python", USE) == "1 0"


def test_works_where_no_cache_can_be_written(warm):
    assert run(warm("torch") / "python", NO_CACHE) == "NullCache"
