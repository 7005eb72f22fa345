"""The processes that train together: started by torchrun or by SLURM's srun, on one node or on several."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment


@dataclass(frozen=True)
class Processes:
    """How many there are, and which one this is.

    Attributes:
        count: over all nodes.
        nodes: machines they run on, equally many on each.
        rank: of this one, in [0, count).
        launcher: torchrun, srun, or None for a process that was started alone.
    """

    count: int = 1
    nodes: int = 1
    rank: int = 0
    launcher: str | None = None

    @property
    def per_node(self) -> int:
        """Processes on each node: one for each of its GPUs."""
        return self.count // self.nodes

    @property
    def plugins(self) -> list[SLURMEnvironment]:
        """What the trainer must be told: that a job stopped by SLURM is resumed by us, not by Lightning."""
        return [SLURMEnvironment(auto_requeue=False)] if self.launcher == "srun" else []


def processes() -> Processes:
    """Read them off the environment that the launcher sets.

    Raises:
        ValueError: processes that do not divide evenly over the nodes.

    Example:
        >>> processes().per_node
        1
    """
    if TorchElasticEnvironment.detect():
        names, launcher = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"), "torchrun"
        count, local, rank = (int(os.environ[name]) for name in names)
        nodes = count // local
    elif "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():  # not in a shell of salloc
        count, launcher = int(os.environ["SLURM_NTASKS"]), "srun"
        nodes, rank = int(os.environ.get("SLURM_NNODES", 1)), int(os.environ["SLURM_PROCID"])
    else:
        return Processes()
    if count % nodes:
        raise ValueError(
            f"{count} processes on {nodes} nodes: start equally many on each (--ntasks-per-node)"
        )
    return Processes(count, nodes, rank, launcher)
