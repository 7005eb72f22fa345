"""Memory that is freed stays with the process, unless the user set otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
