"""WGM, weight generation: from the delegator's scores to portions, from portions to weights."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from coe_core._checks import num_unfinite, whole
from coe_core.distributed import gather_rows
from coe_core.transport import balanced_assignment, even_demand

_EXACT = 2**40  # from so many samples on, float64 has too few digits for the remainders
Scope = Literal["batch", "queue", "dataset"]


def demand_from_shares(num_samples: int, shares: Float[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Whole numbers of samples per expert that sum to ``num_samples`` and follow ``shares``.

    Largest remainders are rounded up; equal remainders go to the lower-numbered expert.

    Args:
        num_samples: n, the samples to hand out.
        shares: non-negative, not all zero; only their ratios matter.

    Raises:
        ValueError: a share is negative or not finite, or all are zero; num_samples below 0, above
            2**63 - 1, or no whole number.

    Example:
        >>> demand_from_shares(10, torch.tensor([1.0, 1.0, 2.0])).tolist()
        [3, 2, 5]
    """
    if num_samples < 0:
        raise ValueError(f"cannot hand out {num_samples} samples; num_samples must be at least 0")
    num_samples = whole("num_samples", num_samples)
    shares = shares.detach().double().cpu()
    if shares.ndim != 1:
        raise ValueError(f"shares must be [k], one per expert, got shape {tuple(shares.shape)}")
    if not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()) or shares.sum() == 0:
        raise ValueError(
            f"shares must be finite, non-negative and not all zero, got {shares.tolist()}; "
            "give each expert the relative size of its portion"
        )
    if num_samples >= _EXACT:
        return torch.tensor(_exact_demand(num_samples, shares.tolist()))
    shares = shares / shares.max()  # their sum cannot overflow
    ideal = num_samples * (shares / shares.sum())
    demand = ideal.floor().long()
    order = torch.argsort(-(ideal - demand), stable=True)
    demand[order[: num_samples - int(demand.sum())]] += 1
    return demand


def _exact_demand(num_samples: int, shares: list[float]) -> list[int]:
    """As `demand_from_shares`, in whole numbers of any size: a share is one times a power of two."""
    ratios = [share.as_integer_ratio() for share in shares]
    largest = max(below for _, below in ratios)  # all are powers of two
    parts = [above * (largest // below) for above, below in ratios]
    total = sum(parts)
    demand = [num_samples * part // total for part in parts]
    remainders = [num_samples * part % total for part in parts]
    order = sorted(range(len(parts)), key=lambda j: -remainders[j])
    for j in order[: num_samples - sum(demand)]:
        demand[j] += 1
    return demand


def remaining_demand(
    demand: Int[Tensor, " k"], taken: Int[Tensor, " k"], num_left: int
) -> Int[Tensor, " k"]:
    """What is left of each expert's demand once some samples' portions are known: OURS.

    An expert whose known samples are more than its demand gets none of the rest, and the others share
    what this costs in the ratio of what they still lack.

    Args:
        demand: samples for each expert, over all samples.
        taken: known samples of each expert.
        num_left: samples to hand out, those that are not known.

    Example:
        >>> remaining_demand(torch.tensor([4, 4, 4]), torch.tensor([6, 1, 0]), num_left=5).tolist()
        [0, 2, 3]
    """
    if num_left == 0:
        return torch.zeros_like(demand)
    return demand_from_shares(num_left, (demand - taken).clamp(min=0).double())


def ramped_focus(focus: float, progress: float, warmup: float) -> float:
    """Focus r of (W2) at a point of the training: a straight line from 0 to ``focus``, then constant.

    OURS: the abstract does not say how the focus begins; at the start the delegator knows nothing,
    so portions would be noise.

    Args:
        focus: r in [0, 1], the final value; 0 is an ordinary ensemble.
        progress: part of the training done, in [0, 1].
        warmup: part of the training over which the focus rises, in [0, 1].

    Raises:
        ValueError: an argument outside [0, 1].

    Example:
        >>> [round(ramped_focus(0.6, p, warmup=0.5), 2) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.3, 0.6, 0.6]
    """
    for name, value in (("focus", focus), ("progress", progress), ("warmup", warmup)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    return focus if warmup == 0 else focus * min(1.0, progress / warmup)


def sample_weights(
    portion: Int[Tensor, " n"], num_experts: int, focus: float
) -> Float[Tensor, "n k"]:
    """Weight of every sample in every expert's loss: (W2), RECONSTRUCTED.

    w_ij = (1 - r) + r k T_ij, where T_ij = 1 if sample i is in the portion of expert j. Rows have
    mean 1, and so have columns when portions are equal, so the loss scale does not move with r.

    Args:
        portion: the expert that each sample is given to, in [0, k).
        num_experts: k.
        focus: r in [0, 1].

    Raises:
        ValueError: focus outside [0, 1], no experts, or a portion that names none of them.

    Example:
        >>> sample_weights(torch.tensor([0, 1]), num_experts=2, focus=0.5)
        tensor([[1.5000, 0.5000],
                [0.5000, 1.5000]])
    """
    if not 0 <= focus <= 1:
        raise ValueError(f"focus must be in [0, 1], got {focus}")
    whole("num_experts", num_experts, least=1)
    if portion.is_floating_point() or portion.is_complex():
        raise ValueError(f"portion must hold the numbers of experts, got {portion.dtype}")
    if portion.numel() and (int(portion.min()) < 0 or int(portion.max()) >= num_experts):
        raise ValueError(
            f"portion holds experts {int(portion.min())}..{int(portion.max())}, "
            f"but there are {num_experts} experts (0..{num_experts - 1})"
        )
    plan = nn.functional.one_hot(portion.long(), num_experts).to(torch.get_default_dtype())
    return (1 - focus) + focus * num_experts * plan


class Partitioner(nn.Module):
    """Partition training samples into the experts' portions: (W1), PAPER; its scopes RECONSTRUCTED.

    PAPER: the training data are partitioned, by the delegator's scores, by solving a balanced
    transportation problem. Over which samples the balance holds is the *scope*:

    - ``"batch"``: the samples of the (global) batch.
    - ``"queue"``: the batch and the last ``queue_size`` samples before it. Balances small batches.
    - ``"dataset"``: all training samples, once an epoch, by the scores each had when it was last
      seen; until every sample has been seen the batch decides. Call `begin_epoch` at each epoch.

    Under a process group the scores of all ranks are joined, every rank solves the same problem
    and takes its rows. State (queue, table of scores) lives in buffers: it is saved and resumed
    with the module that holds this one.

    Args:
        num_experts: k.
        scope: see above.
        queue_size: samples kept for scope "queue".
        num_samples: size of the training set, for scope "dataset".
        shares: relative size of each expert's portion; None means equal.

    Raises:
        ValueError: no experts, unknown scope, the size that the scope needs is missing, or shares
            that `demand_from_shares` does not take.

    Example:
        >>> partition = Partitioner(num_experts=2)
        >>> partition(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()).tolist()
        [0, 1]
    """

    # Scores of a sample whose portion is known are -inf for the other experts.
    queue: Tensor  # scores [queue_size, k] of the last samples, NaN where there are none yet
    table: Tensor  # scores [num_samples, k] of all samples as last seen, NaN before
    table_portion: Tensor  # [num_samples], -1 before the first partition

    def __init__(
        self,
        num_experts: int,
        scope: Scope = "batch",
        *,
        queue_size: int = 0,
        num_samples: int = 0,
        shares: Float[Tensor, " k"] | None = None,
    ):
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}")
        for name, size, least in (("num_experts", num_experts, 1), ("queue_size", queue_size, 0)):
            whole(name, size, least)
        if scope not in ("batch", "queue", "dataset"):
            raise ValueError(f"unknown scope {scope!r}; known: 'batch', 'queue', 'dataset'")
        if scope == "queue" and queue_size < 1:
            raise ValueError(f"scope 'queue' needs queue_size of at least 1, got {queue_size}")
        if scope == "dataset" and num_samples < 1:
            raise ValueError(f"scope 'dataset' needs num_samples of at least 1, got {num_samples}")
        if shares is not None:
            if len(shares) != num_experts:
                raise ValueError(f"{len(shares)} shares for {num_experts} experts; give one each")
            demand_from_shares(0, shares)  # checks their values
        self.num_experts = num_experts
        self.scope = scope
        self.shares = shares
        queue_rows = queue_size if scope == "queue" else 0
        table_rows = num_samples if scope == "dataset" else 0
        try:
            self.register_buffer("queue", torch.full((queue_rows, num_experts), torch.nan))
            self.register_buffer("table", torch.full((table_rows, num_experts), torch.nan))
            self.register_buffer("table_portion", torch.full((table_rows,), -1))
        except RuntimeError as error:  # torch's kind of a MemoryError
            raise ValueError(
                f"scores of {queue_rows or table_rows} samples over {num_experts} experts do not fit into "
                "memory"
            ) from error

    def begin_epoch(self) -> None:
        """Scope "dataset": partition all samples by their last scores; no effect in other scopes.

        As long as a sample has not been seen yet, the batch goes on to decide. The samples must
        therefore all come up: give ``num_samples`` as the size of the training set, not more.
        """
        if self.scope == "dataset" and not bool(self.table.isnan().any()):
            self.table_portion.copy_(self._solve(self.table))

    def forward(
        self,
        scores: Float[Tensor, "n k"],
        index: Int[Tensor, " n"] | None = None,
        known: Int[Tensor, " n"] | None = None,
    ) -> Int[Tensor, " n"]:
        """Portion of each sample: the expert it is given to.

        Args:
            scores: how well each expert suits each sample, higher is better; log q in (W1).
            index: which training sample each row is; needed by scope "dataset".
            known: the expert of each sample that the user knows, -1 of the others (OURS): those are
                balanced with what these leave of each expert's demand. Given on all ranks or on none.

        Raises:
            ValueError: scores that are not finite; known experts that there are not, or not one for each
                sample; in scope "dataset", an index that is missing, of another length, or not in the
                training set. The state is then as before the call.
        """
        gathered, local = gather_rows(scores.to(torch.promote_types(scores.dtype, torch.float32)))
        if bad := num_unfinite(gathered):
            raise ValueError(
                f"scores hold {bad} values that are not finite of {gathered.numel()}; an expert or the "
                "selection has diverged"
            )
        if known is not None:
            check_known(known, len(scores), self.num_experts)
            gathered = _pinned(gathered, gather_rows(known).rows)
        if self.scope == "queue":
            filled = self.queue[~self.queue.isnan().any(1)]
            portion = self._solve(torch.cat([gathered, filled]))
            self.queue.copy_(torch.cat([gathered, self.queue])[: len(self.queue)])
            return portion[local]
        if self.scope == "dataset":
            if index is None:
                raise ValueError("scope 'dataset' needs each sample's index in the training set")
            known = self._remember(gather_rows(index).rows, gathered)
            return (known if bool((known >= 0).all()) else self._solve(gathered))[local]
        return self._solve(gathered)[local]

    def _remember(self, index: Tensor, scores: Tensor) -> Tensor:
        """Enter scores into the table; the samples' portions of this epoch, -1 if there are none."""
        size = len(self.table)
        if len(index) != len(scores):
            raise ValueError(f"{len(index)} indices for {len(scores)} samples; give one each")
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
            raise ValueError(
                f"index holds samples {int(index.min())}..{int(index.max())}, but the training set "
                f"has {size} (0..{size - 1}); set num_samples to its size"
            )
        # Samplers repeat samples to fill up ranks. Of repeated ones the last counts, on every
        # device and rank: writing them all leaves to chance which one stays.
        order = torch.argsort(index, stable=True)
        ordered = index[order]
        last = torch.ones_like(ordered, dtype=torch.bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        self.table[ordered[last]] = scores[order[last]].to(self.table.dtype)
        return self.table_portion[index]

    def _solve(self, scores: Tensor) -> Tensor:
        if self.shares is None:
            demand = torch.from_numpy(even_demand(len(scores), self.num_experts))
        else:
            demand = demand_from_shares(len(scores), self.shares)
        if num_unfinite(scores) == 0:  # no portion is known
            return torch.from_numpy(balanced_assignment(scores, demand).expert).to(scores.device)
        known = scores.isinf().any(1)
        portion = scores.argmax(1)
        taken = torch.bincount(portion[known], minlength=self.num_experts)
        left = scores[~known]
        demand = (
            remaining_demand(demand, taken.to(demand), len(left)) if bool(known.any()) else demand
        )
        portion[~known] = torch.from_numpy(balanced_assignment(left, demand).expert).to(portion)
        return portion


def check_known(known: Tensor, n: int, num_experts: int) -> None:
    """Raise the ValueError of known portions that are not one expert, or -1, for each of n samples."""
    if known.shape != (n,):
        raise ValueError(
            f"known portions have shape {tuple(known.shape)}, but there are {n} samples: give each the "
            "number of its expert, or -1"
        )
    if known.is_floating_point() or known.is_complex() or known.dtype == torch.bool:
        raise ValueError(f"known portions must hold the numbers of experts, got {known.dtype}")
    if n and not -1 <= int(known.min()) <= int(known.max()) < num_experts:
        raise ValueError(
            f"known portions hold {int(known.min())}..{int(known.max())}, but there are {num_experts} "
            f"experts (0..{num_experts - 1}, or -1 where it is not known)"
        )


def _pinned(scores: Tensor, known: Tensor) -> Tensor:
    """The scores, with -inf for the experts that a sample of a known portion is not for."""
    known = known.long().to(scores.device)
    others = torch.arange(scores.shape[1]).to(known) != known[:, None]
    return scores.masked_fill(others & (known >= 0)[:, None], -torch.inf)
