"""LGM, label generation: from the experts' evidence to labels of the selection; and VCM."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from coe_core._checks import num_unfinite, real_matrix
from coe_core.distributed import gather_rows
from coe_core.errors import NotConvergedError
from coe_core.transport import balanced_assignment

LARGEST_KERNEL = 1e300  # differences of larger values might overflow
MOST_SPREAD = 1e9  # temperatures that the evidence exceeds more than so many times change nothing
LabelKind = Literal["balanced", "soft_balanced", "hard", "soft"]


def check_label_options(kind: str, temperature: float) -> None:
    """Raise the ValueError of `selection_labels` for an unknown kind or a temperature not above 0."""
    if kind not in get_args(LabelKind):
        raise ValueError(
            f"unknown label kind {kind!r}; known: 'balanced', 'soft_balanced', 'hard', 'soft'"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def selection_labels(
    evidence: Real[Tensor, "n k"],
    kind: LabelKind = "balanced",
    *,
    temperature: float = 1.0,
    demand: Tensor | None = None,
) -> Float[Tensor, "n k"]:
    """What the delegator should have selected: (L1), RECONSTRUCTED.

    PAPER: the selection loss has a generated label. RECONSTRUCTED: it comes from how well each
    expert does, its log-likelihood of the truth, P.

    - ``"balanced"``: the balanced transportation problem (W1) with S = P; one-hot rows.
    - ``"soft_balanced"``: the entropic version, argmax_T <T, P> + temperature * H(T) with the same
      marginals (Sinkhorn's problem).
    - ``"hard"``: argmax of each row; ``"soft"``: softmax(P / temperature). Unbalanced: the controls.

    Under a process group the labels are balanced over the global batch.

    Args:
        evidence: log-likelihood that each expert gives the truth (any row constant is irrelevant).
        kind: see above.
        temperature: of the soft kinds, in the unit of the evidence (nats); above 0. The soft balanced plan
            is not computed at less than a billionth of the evidence's largest difference in a row, where
            it is that of the limit.
        demand: samples per expert over the (global) batch, for the balanced kinds; None means even.

    Returns:
        Distributions over the experts: rows sum to 1, of the evidence's dtype (float64 for integers). No
        gradient.

    Raises:
        ValueError: unknown kind, temperature not above 0, evidence that is not [n, k], real and finite, or
            a demand that does not sum to n.
        NotConvergedError: the soft balanced plan did not reach its tolerance.

    Example:
        >>> P = torch.tensor([[0.9, 0.8], [0.9, 0.1]]).log()
        >>> selection_labels(P, "balanced").argmax(1).tolist()
        [1, 0]
        >>> selection_labels(P, "hard").argmax(1).tolist()
        [0, 0]
    """
    check_label_options(kind, temperature)
    evidence = real_matrix("evidence", evidence)
    num_experts = evidence.shape[1]
    gathered, local = gather_rows(evidence)
    if bad := num_unfinite(gathered):
        raise ValueError(
            f"evidence holds {bad} values that are not finite of {gathered.numel()}; an expert has "
            "diverged or its log-likelihood needs a floor"
        )
    if kind == "hard":
        plan = nn.functional.one_hot(gathered.argmax(1), num_experts)
    elif kind == "soft":
        precise = gathered.to(torch.promote_types(gathered.dtype, torch.float32))
        scaled = precise / temperature
        if not bool(scaled.isfinite().all()):
            scaled = (
                _leads(gathered) / temperature
            )  # of a row's best it is 0, however small that is
        plan = scaled.softmax(1)
    elif kind == "balanced":
        expert = torch.from_numpy(balanced_assignment(gathered, demand).expert)
        plan = nn.functional.one_hot(expert.to(evidence.device), num_experts)
    else:
        leads = _leads(gathered)
        coldest = -float(leads.min()) / MOST_SPREAD if len(leads) else 0.0
        if not math.isfinite(coldest):
            raise ValueError("evidence spreads too far: the difference of two values overflows")
        scaled = gathered.double() / temperature
        if temperature < coldest:
            scaled = leads / coldest
        elif not bool(scaled.isfinite().all()):
            scaled = leads / temperature
        plan = sinkhorn(scaled, demand)
    return plan[local].to(evidence.dtype)


def _leads(evidence: Tensor) -> Tensor:
    """What each expert lacks to the best of its row: 0 or less."""
    precise = evidence.double()
    return precise - precise.amax(1, keepdim=True)


def sinkhorn(
    log_kernel: Real[Tensor, "n k"],
    demand: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Float[Tensor, "n k"]:
    """Entropic balanced plan with kernel exp(``log_kernel``), in log space (Sinkhorn's problem).

    Rows of the plan sum to 1 exactly up to rounding, columns to ``demand`` within ``tolerance``
    of the mean demand. RECONSTRUCTED (soft form of (L1)). Sinkhorn's iteration slows down as the
    temperature falls; Newton's steps on the k prices, from a high temperature down, do not.

    Args:
        log_kernel: scores divided by the temperature; finite.
        demand: samples per expert, each above 0, sum n (need not be whole); None means n / k each.
        tolerance: largest error of a column sum, relative to n / k.
        max_iterations: after which a plan that is not within tolerance is an error.

    Raises:
        ValueError: values not finite or too far apart, or demand that does not sum to n or is not above 0.
        NotConvergedError: tolerance not reached.

    Example:
        >>> sinkhorn(torch.tensor([[2.0, 0.0], [2.0, 0.0]])).round(decimals=6).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    log_kernel = real_matrix("log_kernel", log_kernel)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    n, k = log_kernel.shape
    bad = int((~torch.isfinite(log_kernel)).sum())
    if bad:
        raise ValueError(f"the kernel holds {bad} values that are not finite of {n * k}")
    log_kernel = log_kernel.double()
    if demand is None:
        columns = log_kernel.new_full((k,), n / k)
    else:
        columns = demand.to(log_kernel)
        if columns.shape != (k,) or not abs(float(columns.sum()) - n) <= 1e-6 * max(n, 1):
            raise ValueError(
                f"not balanced: demand sums to {float(columns.sum()):g} over {columns.numel()} experts, "
                f"but there are {n} samples and {k} experts; scale demand to match"
            )
        if n and bool((columns <= 0).any()):
            raise ValueError(f"soft portions need a demand above 0 each, got {columns.tolist()}")
    if n == 0:
        return log_kernel
    # Solved at a high temperature first, then at halves of it, each from the prices before.
    spread = float((log_kernel.amax(1) - log_kernel.amin(1)).max())
    if spread > LARGEST_KERNEL:
        raise ValueError(
            f"a row of the kernel spreads over {spread:.3g}, which is above {LARGEST_KERNEL:.0e}; raise the "
            "temperature"
        )
    halvings = max(0, math.ceil(math.log2(max(spread, 1.0) / 16)))
    state = _Prices(log_kernel * 0.5**halvings, log_kernel.new_zeros(k), columns)
    for _ in range(max_iterations):
        if halvings and state.error <= 1e-2:
            halvings -= 1
            state = _Prices(log_kernel * 0.5**halvings, 2 * state.prices, columns)
        elif state.error <= tolerance:
            return state.plan
        else:
            state = state.improved()
    raise NotConvergedError(
        f"Sinkhorn's problem was left with a column error of {state.error:.2g} of the mean demand "
        f"after {max_iterations} iterations (tolerance {tolerance:g}); raise the temperature, "
        "or use the hard balanced labels"
    )


class _Prices:
    """The plan at some prices of the experts; its rows are exact, its columns are to become so."""

    def __init__(self, log_kernel: Tensor, prices: Tensor, columns: Tensor):
        self.log_kernel, self.prices, self.columns = log_kernel, prices, columns
        self.log_plan = (log_kernel - prices).log_softmax(1)
        self.plan = self.log_plan.exp()
        self.surplus = self.plan.sum(0) - columns
        self.error = float(self.surplus.abs().max()) * log_kernel.shape[1] / len(log_kernel)

    def improved(self) -> _Prices:
        """Newton's step on the k prices, at most 16 long, shortened until it does not go too far.

        The problem is convex, so a step that still points downhill at its end went downhill.
        """
        n, k = self.log_kernel.shape
        damping = self.surplus.norm() / 16 * torch.eye(k).to(self.plan)
        hessian = torch.diag(self.plan.sum(0)) - self.plan.T @ self.plan
        hessian += n / k**2  # the prices' common part changes nothing: keep it still
        step = torch.linalg.solve(hessian + damping, self.surplus)
        for _ in range(60):
            tried = _Prices(self.log_kernel, self.prices + step, self.columns)
            if tried.surplus @ step >= 0 or tried.surplus.norm() < 0.9 * self.surplus.norm():
                break
            step = step / 2
        return tried


def choice_variance(evidence: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """How much the choice of the expert matters on each sample: VCM, (V1), RECONSTRUCTED.

    v_i = std_j exp(P_ij), normalised to mean 1 over the (global) batch. Weights the selection loss:
    where all experts do equally well the label means nothing. All ones where no choice matters
    anywhere (k = 1, or all experts alike). No gradient.

    Args:
        evidence: log-likelihood that each expert gives the truth.

    Raises:
        ValueError: evidence that holds NaN, or whose exponential overflows.

    Example:
        >>> choice_variance(torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()).tolist()
        [2.0, 0.0]
    """
    precise = evidence.detach().to(torch.promote_types(evidence.dtype, torch.float32))
    spread = precise.exp().std(1, correction=0) if precise.numel() else precise.sum(1)
    every = gather_rows(spread).rows  # also on a rank without samples: the others wait for it
    mean = float(every.mean()) if len(every) else 0.0
    if not math.isfinite(mean):
        raise ValueError(
            "evidence must be a log-likelihood, neither NaN nor so far above 0 that its exponential "
            f"overflows; {int((~every.isfinite()).sum())} of {len(every)} samples break this"
        )
    return spread / mean if mean > 0 else torch.ones_like(spread)


def stay_importance(stay: Float[Tensor, " n"] | None, n: int, weight: float) -> Float[Tensor, " n"]:
    """Weights of the selection loss by the chance that a sample stays for an expert. OURS.

    (1 - y) + y s_i / mean s: of mean 1 over the (global) batch. The selection of a sample that ends early
    is never used. No gradient.

    Args:
        stay: s, chance of each of n samples not to end early, in [0, 1].
        n: samples.
        weight: y, in [0, 1].

    Raises:
        ValueError: not one chance for each sample.

    Example:
        >>> stay_importance(torch.tensor([0.0, 0.5, 1.0]), n=3, weight=1.0).tolist()
        [0.0, 1.0, 2.0]
    """
    if stay is None or stay.shape != (n,):
        shape = None if stay is None else tuple(stay.shape)
        raise ValueError(
            f"stay_weight is {weight}, so each of {n} samples needs its chance to stay; got {shape}"
        )
    stay = stay.detach().to(torch.promote_types(stay.dtype, torch.float32))
    every = gather_rows(stay).rows
    mean = every.mean() if len(every) else every.sum()
    share = stay / mean if bool(mean > 0) else torch.ones_like(stay)
    return (1 - weight) + weight * share
