"""benchmarks/divide.py through the shell: every way is timed, in both modes, in the table it writes."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_every_way_is_timed(warm, tmp_path):
    table = tmp_path / "table.md"
    options = ["small_resnet", "width=8", "stages=2", "--s", "2", "--tolerance", "0.2"]
    options += ["--size", "8", "--batch", "1", "4", "--seconds", "0.01", "--processes"]
    options += ["--cores", "2", "--out", str(table)]
    done = subprocess.run(
        [warm("vision") / "python", "benchmarks/divide.py", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in table.read_text().splitlines()[2:]]
    ways = [(row[1], row[2], row[3]) for row in rows]
    modes = [("1", "inference"), ("4", "inference"), ("4", "training")]  # no training on one image
    named = ("wide", "loop", "side by side", "vmap", "threads", "processes")
    named = (*named, "wide, one thread")
    assert ways == [(*mode, way) for mode in modes for way in named]
    assert all(0 < float(row[4]) <= float(row[5]) for row in rows)
    for mode in modes:  # beside the faster of both
        wide = [row for row in rows if (row[1], row[2]) == mode and row[3].startswith("wide")]
        assert min(float(row[6]) for row in wide) == 1.0
    assert "multiply-adds together" in done.stdout
