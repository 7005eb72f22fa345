"""One rank of the process group of test_distributed: its part of the work, into a file.

Also run by the test itself, as the one process that holds the joined batch.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from coe_core import (
    CoTrainingObjective,
    Partitioner,
    choice_variance,
    demand_from_shares,
    gather_rows,
    selection_labels,
)

SAMPLES, EXPERTS = 24, 3
SHARES = torch.tensor([1.0, 2.0, 3.0])
# Rows of each rank, step by step; together they see every sample twice.
COUNTS = [(4, 4), (5, 3), (0, 8), (4, 4), (7, 1), (4, 4)]
SCOPES = {
    "batch": {"scope": "batch"},
    "queue": {"scope": "queue", "queue_size": 10},
    "dataset": {"scope": "dataset", "num_samples": SAMPLES},
    "shares": {"scope": "queue", "queue_size": 10, "shares": SHARES},
}
LABELS = ["balanced", "soft_balanced", "hard", "soft"]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]


def own_rows(step: int, rank: int | None) -> slice:
    """The rows of the joined batch that a rank holds; None holds them all."""
    first, second = COUNTS[step]
    return [slice(0, first), slice(first, first + second), slice(None)][2 if rank is None else rank]


def joined(step: int) -> dict[str, torch.Tensor]:
    """All inputs of one step."""
    generator = torch.manual_seed(step)
    shape = sum(COUNTS[step]), EXPERTS
    order = torch.randperm(SAMPLES, generator=torch.manual_seed(100 + step // 3))
    return {
        "scores": torch.randn(shape, generator=generator),
        "evidence": -torch.rand(shape, generator=generator),
        "expert_loss": torch.rand(shape, generator=generator),
        "rough_loss": torch.rand(shape[0], generator=generator),
        "index": order.split(8)[step % 3],
    }


def work(rank: int | None) -> dict:
    """Everything that is global under a process group, for the rows of one rank."""
    results = {}
    for name, options in SCOPES.items():
        partition = Partitioner(EXPERTS, **options)
        for step in range(len(COUNTS)):
            if step == 3:
                partition.begin_epoch()
            rows, batch = own_rows(step, rank), joined(step)
            portion = partition(batch["scores"][rows], batch["index"][rows])
            results[f"portion {name} {step}"] = portion
        results[f"state {name}"] = {key: value.clone() for key, value in partition.named_buffers()}

    for step in range(len(COUNTS)):
        rows, batch = own_rows(step, rank), joined(step)
        evidence = batch["evidence"][rows]
        results[f"variance {step}"] = choice_variance(evidence)
        for kind in LABELS:
            results[f"labels {kind} {step}"] = selection_labels(evidence, kind)
        shared = selection_labels(evidence, demand=demand_from_shares(sum(COUNTS[step]), SHARES))
        results[f"labels shares {step}"] = shared

    for scope in SCOPES:
        for labels in LABELS:
            objective = CoTrainingObjective(
                EXPERTS, focus=0.5, focus_warmup=0.0, labels=labels, **SCOPES[scope]
            )
            rows, batch = own_rows(0, rank), joined(0)
            leaves = {
                key: batch[key].clone().requires_grad_()
                for key in ("rough_loss", "expert_loss", "scores")
            }
            loss = objective(
                leaves["rough_loss"][rows],
                leaves["expert_loss"][rows],
                batch["evidence"][rows],
                leaves["scores"][rows],
                progress=1.0,
                index=batch["index"][rows],
            )
            loss.total.backward()
            results[f"gradient {scope} {labels}"] = {key: x.grad for key, x in leaves.items()}
            results[f"total {scope} {labels}"] = loss.total.detach()

    for dtype in DTYPES:
        rows, batch = own_rows(1, rank), joined(1)
        results[f"gather {dtype}"] = gather_rows((4 * batch["scores"][rows]).to(dtype)).rows
    return results


def errors(rank: int) -> list[str]:
    """Bad rows on the second rank alone: every rank says so, none is left waiting."""
    bad = torch.full((2, EXPERTS), torch.nan if rank else -1.0)
    index = torch.arange(2) + 2 * rank
    attempts = [lambda: choice_variance(bad)]
    attempts += [lambda kind=kind: selection_labels(bad, kind) for kind in LABELS]
    attempts += [
        lambda options=options: Partitioner(EXPERTS, **options)(bad, index)
        for options in SCOPES.values()
    ]
    messages = []
    for attempt in attempts:
        try:
            attempt()
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) == len(attempts)
    return messages


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2
    )
    results = {"errors": errors(rank), **work(rank)}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
