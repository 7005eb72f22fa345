"""The co-training step: losses [n], [n, k] and selection logits in, one loss and its parts out."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from coe_core.distributed import gather_rows
from coe_core.labels import (
    LabelKind,
    check_label_options,
    choice_variance,
    selection_labels,
    stay_importance,
)
from coe_core.sample_rest import Drawn, check_sample_rest, draw_rest
from coe_core.weights import (
    Partitioner,
    Scope,
    check_known,
    demand_from_shares,
    ramped_focus,
    sample_weights,
)

Scores = Literal["selection", "evidence", "sum", "random"]
_GOLDEN = (math.sqrt(5) - 1) / 2


class CoTrainingLoss(NamedTuple):
    """One loss to call ``backward`` on, and what it was made of (scalars of this rank's batch)."""

    total: Tensor
    rough: Tensor  # mean rough loss of the delegator
    selection: Tensor  # selection loss, before beta
    experts: Tensor  # reweighted loss of the experts, (W3)
    agreement: Tensor  # agreement term, before its weight
    focus: float  # r used in this step
    portion: Int[Tensor, " n"]
    labels: Float[Tensor, "n k"]


class _Roles(NamedTuple):
    """Which samples of a batch teach whom."""

    teaching: Int[Tensor, " m"] | slice  # rows that teach the selection
    learning: Bool[Tensor, "n 1"] | None  # whether the experts learn from a sample; None: from all
    learners: int  # samples that the experts learn from, at least 1
    teachers: int  # samples that teach the selection, at least 1


def spread_out(index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """A number in [0, 1) for each sample, its own for good, evenly spread over consecutive indices.

    Multiples of the golden ratio, modulo 1.

    Example:
        >>> numbers = spread_out(torch.arange(1000))
        >>> int((numbers < 0.25).sum())
        251
    """
    return (index.double() * _GOLDEN) % 1


class CoTrainingObjective(nn.Module):
    """Loss of a delegator and its experts in one step: (W1)-(W3), (L1), (V1), (D1).

    total = mean_i sum_j w_ij L_ij + mean_i l0_i + beta mean_i v_i CE(q_i, t_i) [+ agreement]

    PAPER: one balanced transportation problem partitions the data, expert losses are reweighted
    by it (WGM), and generated labels train the selection (LGM). RECONSTRUCTED: the formulas.
    It sees arrays only; what a sample is, is the caller's business.

    Args:
        num_experts: k.
        focus: r of (W2) in [0, 1]; 0 trains an ordinary ensemble.
        focus_warmup: part of the training over which the focus rises from 0, in [0, 1].
        scope: over which samples portions are balanced, see `Partitioner`.
        scores: S of (W1): "selection" (log q, RECONSTRUCTED), "evidence" (P), their "sum" (OURS), or
            "random": each sample's portion is drawn once, by its index; the control.
        labels: kind of selection label, see `selection_labels`.
        temperature: of the soft label kinds.
        variance_weighting: whether (V1) weights the selection loss.
        selection_weight: beta of (D1), at least 0.
        agreement_weight: weight of the agreement term handed to `forward`.
        held_out: part of the training samples, fixed by their index, on which no expert learns and which
            alone teach the selection: what experts say of data they have not learnt (OURS). 0: off.
        stay_weight: in [0, 1]: how far the selection loss of a sample goes by the chance that it will stay
            for an expert, see `forward` (OURS): the selection of a sample that ends early is never used.
        known_until: part of the training, in [0, 1], for which known portions hold (OURS): then they are
            set aside, and evidence takes over. 1: to the end.
        sample_rest: part of each portion, in (0, 1], that all experts see once the focus has risen; each
            sample else is its own expert's alone, see `draw` (OURS). 1: every expert sees every sample.
        shares: relative size of each expert's portion; None means equal.
        queue_size: for scope "queue".
        num_samples: size of the training set, for scope "dataset".

    Raises:
        ValueError: an option that is unknown or out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> objective = CoTrainingObjective(num_experts=2, focus=0.5, focus_warmup=0.0)
        >>> selection_logits = torch.randn(4, 2, requires_grad=True)
        >>> expert_loss = torch.rand(4, 2, requires_grad=True)
        >>> loss = objective(torch.rand(4), expert_loss, -expert_loss, selection_logits, progress=0.1)
        >>> loss.total.backward()
        >>> expert_loss.grad.sum(1).tolist()  # every sample counts 1 per expert, over 4 samples
        [0.5, 0.5, 0.5, 0.5]
    """

    def __init__(
        self,
        num_experts: int,
        *,
        focus: float = 0.6,
        focus_warmup: float = 0.3,
        scope: Scope = "batch",
        scores: Scores = "selection",
        labels: LabelKind = "balanced",
        temperature: float = 1.0,
        variance_weighting: bool = True,
        selection_weight: float = 0.5,
        agreement_weight: float = 0.0,
        held_out: float = 0.0,
        known_until: float = 1.0,
        stay_weight: float = 0.0,
        sample_rest: float = 1.0,
        shares: Float[Tensor, " k"] | None = None,
        queue_size: int = 0,
        num_samples: int = 0,
    ):
        super().__init__()
        if scores not in get_args(Scores):
            known = ", ".join(map(repr, get_args(Scores)))
            raise ValueError(f"unknown scores {scores!r}; known: {known}")
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {held_out}")
        for name, part in (("known_until", known_until), ("stay_weight", stay_weight)):
            if not 0 <= part <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {part}")
        weights = {"selection_weight": selection_weight, "agreement_weight": agreement_weight}
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        ramped_focus(focus, 0.0, focus_warmup)  # checks both ranges
        check_label_options(labels, temperature)
        check_sample_rest(sample_rest, scores, held_out, agreement_weight)
        self.num_experts = num_experts
        self.focus = focus
        self.focus_warmup = focus_warmup
        self.scores = scores
        self.labels = labels
        self.temperature = temperature
        self.variance_weighting = variance_weighting
        self.selection_weight = selection_weight
        self.agreement_weight = agreement_weight
        self.held_out = held_out
        self.known_until = known_until
        self.stay_weight = stay_weight
        self.sample_rest = sample_rest
        self.shares = shares
        self.partition = Partitioner(
            num_experts, scope, queue_size=queue_size, num_samples=num_samples, shares=shares
        )

    def forward(
        self,
        rough_loss: Float[Tensor, " n"],
        expert_loss: Float[Tensor, "n k"],
        evidence: Float[Tensor, "n k"],
        selection_logits: Float[Tensor, "n k"],
        progress: float,
        index: Int[Tensor, " n"] | None = None,
        agreement: Float[Tensor, " n"] | None = None,
        labels: Float[Tensor, "n k"] | None = None,
        known_portion: Int[Tensor, " n"] | None = None,
        drawn: Drawn | None = None,
        stay: Float[Tensor, " n"] | None = None,
    ) -> CoTrainingLoss:
        """Loss of one batch.

        Args:
            rough_loss: l0, the delegator's own loss per sample.
            expert_loss: L, the task's loss of every expert on every sample.
            evidence: P, log-likelihood that each expert gives the truth (no gradient is taken).
            selection_logits: a, the delegator's scores over the experts.
            progress: part of the training done, in [0, 1].
            index: which training sample each row is; needed by scope "dataset", scores "random" and
                ``held_out``.
            agreement: a term between the experts per sample, see `coe_core.agreement`.
            labels: selection labels made elsewhere, such as `FamilyLabels`, in place of the
                evidence's; (V1) does not weight them. A row of zeros is no label.
            known_portion: the expert of each sample that the user knows (a language, a camera), or -1
                (OURS). It is the sample's portion and its selection label, which (V1) does not weight;
                the others go as ever, balanced with what the known leave. Given on all ranks or on none.
            drawn: what `draw` said of this batch (OURS). Losses and evidence of experts that did not run
                are not looked at, and the samples that all experts saw alone teach the selection.
            stay: chance, in [0, 1], that each sample will not end early, such as 1 - the confidence of its
                rough prediction; needed by ``stay_weight``. No gradient is taken.

        Returns:
            CoTrainingLoss: losses are means over this rank's samples, 0 if it has none.

        Raises:
            ValueError: shapes that disagree, scores or evidence that are not finite, an agreement
                weight without an agreement term, no index where one is needed, known portions of
                experts that there are not.
        """
        n = rough_loss.numel()
        self._check(rough_loss, expert_loss, evidence, selection_logits, index, agreement, labels)
        precise = torch.promote_types(selection_logits.dtype, torch.float32)
        log_q = selection_logits.to(precise).log_softmax(1)
        evidence = evidence.detach().to(torch.promote_types(evidence.dtype, torch.float32))
        focus = ramped_focus(self.focus, progress, self.focus_warmup)
        known = self._known(known_portion, n, progress)
        roles = self._roles(n, index)
        if drawn is None:
            portion = self._portion(log_q, evidence, index, known)
        else:
            portion = drawn.portion
            if labels is None:  # they are made from what all experts say
                rows = drawn.by_all.nonzero()[:, 0]
                roles = roles._replace(teaching=rows, teachers=max(len(rows), 1))
            expert_loss = expert_loss.where(drawn.runs, 0.0)
            evidence = evidence.where(drawn.runs, 0.0)
        weights = sample_weights(portion, self.num_experts, focus).to(expert_loss.device)  # (W2)
        if drawn is not None:
            weights = weights * drawn.factor.to(weights)
        importance = log_q.new_ones(n)
        if labels is None:
            labels = self._labels(evidence, roles.teaching, log_q, known)
            if self.variance_weighting:  # (V1)
                importance = choice_variance(evidence).to(importance)
                importance = importance if known is None else importance.where(known < 0, 1.0)
        if self.stay_weight > 0:
            importance = importance * stay_importance(stay, n, self.stay_weight).to(importance)
        selection_loss = importance * -(labels * log_q).sum(1)  # v CE(q, t)

        size = max(n, 1)  # a rank without samples has losses and gradients of 0, not NaN
        if roles.learning is not None:
            weights = weights * roles.learning.to(weights.device)
        experts = (weights * expert_loss).sum() / roles.learners  # (W3)
        rough = rough_loss.sum() / size
        selection = selection_loss[roles.teaching].sum() / roles.teachers
        consent = rough.new_zeros(()) if agreement is None else agreement.sum() / size
        total = experts + rough + self.selection_weight * selection  # (D1)
        total = total + self.agreement_weight * consent
        return CoTrainingLoss(total, rough, selection, experts, consent, focus, portion, labels)

    def draw(
        self,
        selection_logits: Float[Tensor, "n k"],
        progress: float,
        index: Int[Tensor, " n"] | None = None,
        known_portion: Int[Tensor, " n"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Drawn | None:
        """Which experts are to run on which samples of a batch, before any of them has: OURS.

        Once a step, handed on to `forward`. None where all experts are to run on all samples: while the
        focus rises, or without ``sample_rest``.

        Args:
            selection_logits, progress, index, known_portion: as in `forward`.
            generator: of random numbers on the CPU.

        Raises:
            ValueError: no index where scores are "random", or what the partition does not take.
        """
        if self.scores == "random" and index is None:
            raise ValueError("scores 'random' go by each sample's index; hand it over")
        if self.sample_rest == 1 or progress < self.focus_warmup:
            return None
        log_q = selection_logits.double().log_softmax(1)
        known = self._known(known_portion, len(log_q), progress)
        portion = self._portion(log_q, None, index, known)
        return draw_rest(portion, self.num_experts, self.sample_rest, generator)

    def _check(
        self,
        rough_loss: Tensor,
        expert_loss: Tensor,
        evidence: Tensor,
        selection_logits: Tensor,
        index: Tensor | None,
        agreement: Tensor | None,
        labels: Tensor | None,
    ) -> None:
        """Raise the ValueErrors of `forward` for shapes that disagree and for what is missing."""
        n, k = rough_loss.numel(), self.num_experts
        for name, array, shape in (
            ("rough_loss", rough_loss, (n,)),
            ("expert_loss", expert_loss, (n, k)),
            ("evidence", evidence, (n, k)),
            ("selection_logits", selection_logits, (n, k)),
            ("agreement", agreement, (n,)),
            ("labels", labels, (n, k)),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(array.shape)}, but rough_loss has {n} samples "
                    f"and there are {k} experts: expected {shape}"
                )
        if agreement is None and self.agreement_weight > 0:
            raise ValueError(
                f"agreement_weight is {self.agreement_weight}, but no agreement term was given; "
                "hand one over or set the weight to 0"
            )
        if index is None and (self.held_out > 0 or self.scores == "random"):
            raise ValueError(
                "held_out and scores 'random' go by each sample's index in the training set; hand it over"
            )

    def _portion(
        self, log_q: Tensor, evidence: Tensor | None, index: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """(W1) by the scores S asked for; those of the experts' evidence need it."""
        scores = log_q
        if self.scores == "random":
            assert index is not None, "checked"
            place = (spread_out(index) * self.num_experts).long()
            scores = nn.functional.one_hot(place, self.num_experts).to(log_q)
        elif self.scores != "selection":
            assert evidence is not None, "checked"
            scores = evidence if self.scores == "evidence" else log_q + evidence
        portion: Tensor = self.partition(scores.detach(), index, known)
        return portion

    def _roles(self, n: int, index: Tensor | None) -> _Roles:
        """Which samples teach the experts and which the selection: all both, unless some are held out."""
        if self.held_out == 0:
            return _Roles(slice(None), None, max(n, 1), max(n, 1))
        assert index is not None, "checked"
        apart = spread_out(index) < self.held_out
        rows = apart.nonzero()[:, 0]
        return _Roles(rows, ~apart[:, None], max(n - len(rows), 1), max(len(rows), 1))

    def _known(self, known: Tensor | None, n: int, progress: float) -> Tensor | None:
        """The known portions while they hold; None where there are none."""
        if known is None:
            return None
        check_known(known, n, self.num_experts)
        return known.long() if self.known_until == 1 or progress < self.known_until else None

    def _labels(
        self, evidence: Tensor, teaching: Tensor | slice, log_q: Tensor, known: Tensor | None
    ) -> Tensor:
        """(L1): selection labels of the samples that teach the selection, rows of zeros elsewhere."""
        labels = torch.zeros_like(log_q)
        rows = torch.arange(len(labels), device=labels.device)[teaching]
        taken = None
        if known is not None:
            known = known.to(rows)[rows]
            here = known >= 0
            labels[rows[here], known[here]] = 1.0
            everywhere = gather_rows(known).rows
            taken = torch.bincount(everywhere[everywhere >= 0], minlength=self.num_experts)
            rows = rows[~here]
        demand = self._label_demand(rows, taken)
        open_to: Tensor | slice = slice(None)  # experts that the rest may be for
        if taken is not None and demand is not None:
            open_to = (demand > 0).nonzero()[:, 0]
            demand = demand[open_to]
            if len(demand) == 0:
                return labels
        of_rest = torch.zeros_like(labels[rows])
        of_rest[:, open_to] = selection_labels(
            evidence[rows][:, open_to], self.labels, temperature=self.temperature, demand=demand
        ).to(of_rest)
        labels[rows] = of_rest
        return labels

    def _label_demand(self, left: Tensor, taken: Tensor | None) -> Tensor | None:
        """Labels follow the same shares as the portions, less what is taken; None means even.

        Args:
            left: this rank's samples whose label is to be made.
            taken: samples of each expert whose label is known.
        """
        if self.labels not in ("balanced", "soft_balanced") or (
            taken is None and self.shares is None
        ):
            return None
        num_left = len(gather_rows(left).rows)  # of the global batch
        shares = torch.ones(self.num_experts) if self.shares is None else self.shares
        if taken is not None:
            total = num_left + int(taken.sum())
            shares = (total * shares / shares.sum() - taken.to(shares)).clamp(min=0)
        if num_left == 0:
            return torch.zeros_like(shares)
        if self.labels == "balanced":
            return demand_from_shares(num_left, shares)
        return num_left * shares / shares.sum()
