"""Memory and time of portions over a whole data set (scope "dataset"), on the processes of one node.

    python benchmarks/partition_memory.py --processes 8

Every process gathers the scores of all, keeps the table and solves the same problem, as in training.
Memory is the growth of the peak resident size after the process has loaded everything and solved a small
problem. Linux.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from coe_core import Partitioner, even_demand

IMAGENET = 1_281_167


def peak_bytes() -> int:
    """Largest resident size of this process so far; getrusage's starts with that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run(rank: int, folder: str, arguments: argparse.Namespace) -> None:
    """One process: an epoch of scores in batches, then the portions of all samples."""
    torch.set_num_threads(1)
    n, k, count = arguments.samples, arguments.experts, arguments.processes
    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    small = Partitioner(2, "dataset", num_samples=2 * count)
    small(torch.randn(2, 2), torch.arange(2) + 2 * rank)
    small.begin_epoch()
    base = peak_bytes()

    partition = Partitioner(k, "dataset", num_samples=n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + rank)
    start = time.monotonic()
    for batch in order.split(arguments.batch):
        indices = batch.chunk(count)[rank] if len(batch) >= count else batch[rank : rank + 1]
        partition(torch.randn(len(indices), k, generator=generator).log_softmax(1), indices)
    epoch = time.monotonic() - start
    start = time.monotonic()
    partition.begin_epoch()
    solved = time.monotonic() - start
    load = partition.table_portion.bincount(minlength=k)
    assert load.tolist() == even_demand(n, k).tolist(), load.tolist()
    figures = torch.tensor([peak_bytes() - base, base, 1000 * epoch, 1000 * solved]).long()
    parts = [torch.zeros_like(figures) for _ in range(count)]
    dist.all_gather(parts, figures)
    if rank == 0:
        grown, bases, epochs, solves = torch.stack(parts).T.tolist()
        print(f"{n:,} samples, {k} experts, {count} processes, batches of {arguments.batch:,}")
        print(f"growth of a process: {min(grown) / 2**20:.0f} to {max(grown) / 2**20:.0f} MiB")
        print(f"growth of the node:  {sum(grown) / 2**30:.2f} GiB (2 GiB allowed)")
        print(f"a process without it: {max(bases) / 2**20:.0f} MiB resident, most of it shared")
        print(
            f"an epoch of scores: {max(epochs) / 1000:.1f} s; portions: {max(solves) / 1000:.2f} s"
        )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=IMAGENET)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8192, help="over all processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (folder, arguments), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
