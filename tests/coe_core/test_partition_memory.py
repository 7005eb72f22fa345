"""Portions over all of ImageNet stay within what eight processes of a node may take together, 2 GiB."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURE = """
import torch
from coe_core import Partitioner, even_demand
def peak():  # not getrusage's: a process starts with its parent's
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
torch.set_num_threads(1)
small = Partitioner(2, "dataset", num_samples=8)
small(torch.randn(8, 2), torch.arange(8))
small.begin_epoch()
base, n, k = peak(), 1_281_167, 16
partition = Partitioner(k, "dataset", num_samples=n)
for index in torch.arange(n).split(32768):
    partition(torch.randn(len(index), k), index)
partition.begin_epoch()
assert partition.table_portion.bincount(minlength=k).tolist() == even_demand(n, k).tolist()
print(4 * n * k, peak() - base)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_table_of_all_samples_and_its_solution(warm):
    python = warm("torch") / "python"
    done = subprocess.run(
        [python, "-c", MEASURE], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    table, grown = map(int, done.stdout.split())
    assert table <= grown  # it is there, so it was measured
    assert 8 * grown < 2 * 2**30
