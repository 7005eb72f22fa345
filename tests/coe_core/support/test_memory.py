"""What memory is left; memory that is freed stays with the process, unless the user set otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coe_core.support import memory
from coe_core.support.memory import available_memory

ROOT = Path(__file__).parents[3]
COUNT = """
import resource, sys
from coe_core.support.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults():
    block = bytes([1]) * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults()
print(kept, (faults() - first) / 2**26 * resource.getpagesize())
"""


def share_of_pages(how, **environment):
    """What `keep_freed_memory` said, and the share of a block's pages that are taken anew."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    said, share = done.stdout.split()
    return said, float(share)


@pytest.mark.process
def test_a_freed_block_is_taken_again_without_asking_the_kernel():
    said, share = share_of_pages("keep")
    if said == "False":
        pytest.skip("the C library is not glibc")
    assert share < 0.05
    assert share_of_pages("do not")[1] > 0.9  # or the test shows nothing


@pytest.mark.process
def test_what_the_user_set_stays():
    said, share = share_of_pages("keep", MALLOC_TOP_PAD_="0")
    assert said == "False"
    assert share > 0.9


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A /proc and a /sys/fs/cgroup: files by their path below either."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
        monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")

    return write


MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:  8000 kB\n"}


def limit(folder, most, used, files, names=("max", "current", "inactive_file")):
    texts = zip(names, (most, used), strict=False)
    limits = {f"cgroup/{folder}/memory.{name}": f"{text}\n" for name, text in texts}
    return {**limits, f"cgroup/{folder}/memory.stat": f"anon 7\n{names[2]} {files}\n"}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 8_192_000),
        # the lowest of the groups that the process is in; files kept in memory can be given back
        (
            {
                "proc/self/cgroup": "0::/all/mine\n",
                **limit("all/mine", 5_000_000, 2_000_000, 500_000),
                **limit("all", 9_000_000, 6_000_000, 100_000),
            },
            3_100_000,
        ),
        ({"proc/self/cgroup": "0::/mine\n", **limit("mine", "max", 1, 0)}, 8_192_000),
        # what a group uses beyond its limit is nothing
        ({"proc/self/cgroup": "0::/\n", **limit(".", 10, 20, 0)}, 0),
        # version 1: a container often sees its own group as the root
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory,pids:/elsewhere\n0::/\n",
                **limit(
                    "memory",
                    4_000_000,
                    1_000_000,
                    200_000,
                    ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
                ),
            },
            3_200_000,
        ),
    ],
)
def test_what_is_left(system, files, left):
    system({**MACHINE, **files})
    assert available_memory() == left


def test_a_system_that_tells_only_its_size(system, monkeypatch):
    system({})
    sizes = {"SC_PHYS_PAGES": 1_000, "SC_PAGE_SIZE": 4_096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert available_memory() == 4_096_000

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert available_memory() is None
