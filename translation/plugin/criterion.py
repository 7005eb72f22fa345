"""The co-training loss as a fairseq criterion; all of WGM and LGM is `coe_core.CoTrainingObjective`."""

# No "from __future__ import annotations": fairseq reads the types of dataclass fields.
import logging
import math
from dataclasses import dataclass, field
from typing import Any, Optional, cast, get_args

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from fairseq.utils import get_perplexity
from omegaconf import II
from torch import Tensor

from coe_core import CoTrainingObjective, start_as_one
from coe_core.agreement import AGREEMENTS, Agreement
from coe_core.labels import LabelKind
from coe_core.objective import Scores
from coe_core.weights import Scope, ramped_focus
from translation.plugin.groups import COUNT, KnownGroups, follow, read_groups, to_own_mean
from translation.plugin.losses import num_tokens, sentence_loss, sentence_mean
from translation.plugin.model import TeamOutput

logger = logging.getLogger(__name__)


@dataclass
class CoELabelSmoothedCrossEntropyConfig(FairseqDataclass):
    """Options of the co-training loss; see docs/method.md section 3."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon for label smoothing, 0 means no label smoothing"}
    )
    shared_start: Optional[float] = field(
        default=None,
        metadata={
            "help": "part of the training, in [0, 1), in which all experts are one network; then each is "
            "a copy that specialises. Default: 0.5 for equal experts, 0 for others"
        },
    )
    focus: float = field(
        default=0.6,
        metadata={
            "help": "how much each expert's loss is concentrated on its portion, r of (W2) in [0, 1]; "
            "0 trains an ordinary ensemble"
        },
    )
    focus_warmup: float = field(
        default=0.3,
        metadata={
            "help": "part of the training after the shared start over which the focus rises from 0, in [0, 1]"
        },
    )
    portion_scope: ChoiceEnum(get_args(Scope)) = field(  # type: ignore[valid-type]  # made here
        default="batch",
        metadata={
            "help": "portions are balanced over the batch (of all processes), over it and a queue of recent "
            "scores, or over the whole training set, once an epoch"
        },
    )
    portion_queue_size: int = field(
        default=0, metadata={"help": "sentences in the queue of --portion-scope queue"}
    )
    portion_scores: ChoiceEnum(get_args(Scores)) = field(  # type: ignore[valid-type]  # made here
        default="selection",
        metadata={
            "help": "scores that portions are cut by: the delegator's selection, the experts' "
            "log-likelihood of the reference, both, or random ones (a control)"
        },
    )
    portion_groups: Optional[str] = field(
        default=None,
        metadata={
            "help": "text of the group of every training sentence (a language, a domain), one name a line, "
            "empty where it is not known: groups are portions, which the delegator learns to tell"
        },
    )
    portion_of: Optional[str] = field(
        default=None,
        metadata={
            "help": "expert of each group of --portion-groups, such as de=0,fr=1; default: in alphabetical "
            "order"
        },
    )
    portion_groups_until: float = field(
        default=1.0,
        metadata={
            "help": "part of the training after the shared start, in [0, 1], for which --portion-groups "
            "holds; then portions follow the scores, and labels the evidence"
        },
    )
    selection_labels: ChoiceEnum(get_args(LabelKind)) = field(  # type: ignore[valid-type]  # made here
        default="balanced",
        metadata={"help": "kind of the generated selection labels; hard and soft are controls"},
    )
    label_temperature: float = field(
        default=1.0,
        metadata={"help": "temperature of the soft label kinds, in nats per token"},
    )
    selection_weight: float = field(
        default=0.5, metadata={"help": "weight of the selection loss, beta of (D1)"}
    )
    no_choice_variance: bool = field(
        default=False,
        metadata={"help": "do not weight the selection loss by how much the choice matters, (V1)"},
    )
    agreement: ChoiceEnum(get_args(Agreement)) = field(  # type: ignore[valid-type]  # made here
        default="none",
        metadata={
            "help": "term between the experts: distillation from their mean, Jensen-Shannon, mutual "
            "learning"
        },
    )
    agreement_weight: float = field(default=1.0, metadata={"help": "weight of the agreement term"})
    sentence_avg: bool = II("optimization.sentence_avg")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")


@register_criterion(
    "coe_label_smoothed_cross_entropy", dataclass=CoELabelSmoothedCrossEntropyConfig
)
class CoELabelSmoothedCrossEntropy(FairseqCriterion):
    """Loss of a delegator and its experts on a batch of sentences.

    Each sentence is one sample of the method: its losses are averaged over its tokens (method
    section 7). How sentences weigh against each other is fairseq's own rule: by their tokens, or
    equally with ``--sentence-avg``. So with one expert, and the selection's weight at 0, the expert's
    gradient is that of ``label_smoothed_cross_entropy``.

    In validation, ``loss`` and ``nll_loss`` are those of the expert that the task's router names
    (every sentence, no early termination), so the best checkpoint is the best collaboration.
    """

    def __init__(self, cfg: CoELabelSmoothedCrossEntropyConfig, task):
        super().__init__(task)
        num_experts = getattr(task, "num_experts", None)
        if num_experts is None:
            raise ValueError(
                "criterion coe_label_smoothed_cross_entropy trains a delegator and experts: "
                "it needs --task coe_translation and an architecture coe_transformer..."
            )
        if not 0 <= cfg.label_smoothing < 1:
            raise ValueError(f"--label-smoothing must be in [0, 1), got {cfg.label_smoothing}")
        self.label_smoothing = cfg.label_smoothing
        self.sentence_avg = cfg.sentence_avg
        self.max_update = cfg.max_update
        self.max_epoch = cfg.max_epoch
        equal = bool(getattr(task, "equal_experts", False)) and num_experts > 1
        given = cfg.shared_start
        self.shared_start = (0.5 if equal else 0.0) if given is None else given
        if not 0 <= self.shared_start < 1:
            raise ValueError(f"--shared-start must be in [0, 1), got {self.shared_start}")
        if self.shared_start > 0 and not equal and num_experts > 1:
            raise ValueError(
                "--shared-start needs equal experts, as they start as one network: "
                "leave it out, or --expert-encoder-layers and --expert-decoder-layers"
            )
        self.agreement = AGREEMENTS.get(str(cfg.agreement))
        new_team, scope = getattr(task, "new_team", None), str(cfg.portion_scope)
        if new_team is None:  # nothing is trained, so nothing is partitioned
            scope = "batch"
        self.objective = CoTrainingObjective(
            num_experts,
            focus=cfg.focus,
            focus_warmup=cfg.focus_warmup,
            scope=cast(Scope, scope),
            queue_size=cfg.portion_queue_size,
            num_samples=(
                task.num_training_sentences("--portion-scope dataset") if scope == "dataset" else 0
            ),
            scores=cast(Scores, str(cfg.portion_scores)),
            labels=cast(LabelKind, str(cfg.selection_labels)),
            temperature=cfg.label_temperature,
            variance_weighting=not cfg.no_choice_variance,
            selection_weight=cfg.selection_weight,
            agreement_weight=0.0 if self.agreement is None else cfg.agreement_weight,
            known_until=cfg.portion_groups_until,
        )
        self.groups = None if new_team is None else self._read_groups(cfg)
        self.progress()  # a training without an end is an error now, not at the first step
        if scope != "batch" and new_team is not None:
            new_team.keep(self.objective.partition)
        if self.shared_start > 0 and new_team is not None:
            start_as_one(new_team.experts)

    def _read_groups(self, cfg) -> KnownGroups | None:
        if cfg.portion_groups is None:
            if cfg.portion_of is not None:
                raise ValueError(
                    "--portion-of gives experts to the groups of --portion-groups: give both"
                )
            return None
        sentences = self.task.num_training_sentences("--portion-groups", all_come_up=False)
        groups = read_groups(
            cfg.portion_groups, cfg.portion_of, self.objective.num_experts, sentences
        )
        logger.info("portions of known groups: %s", groups)
        return groups

    def progress(self) -> float:
        """Part of the training done, from --max-update or, failing that, whole epochs of --max-epoch.

        Raises:
            ValueError: the training has no end, but something is to last for a part of it.
        """
        parts = []
        if 0 < self.max_update < math.inf:
            parts.append(self.task.num_updates / self.max_update)
        if 0 < self.max_epoch < math.inf:
            parts.append((self.task.epoch - 1) / self.max_epoch)
        if parts:
            return min(1.0, max(parts))
        if self.shared_start > 0:
            raise ValueError(
                f"the experts are one network for {self.shared_start:.0%} of the training, but the "
                "training has no end: give --max-update (or --max-epoch), or --shared-start 0"
            )
        if self.objective.focus > 0 and self.objective.focus_warmup > 0:
            raise ValueError(
                f"the focus rises over the first {self.objective.focus_warmup:.0%} of the training, but "
                "the training has no end: give --max-update (or --max-epoch), or --focus-warmup 0"
            )
        return 1.0

    @property
    def specialised(self) -> float:
        """Part of the training after the shared start done."""
        return (self.progress() - self.shared_start) / (1 - self.shared_start)

    @property
    def experts_are_one(self) -> bool:
        """Whether training is in the shared start now."""
        return self.progress() < self.shared_start

    def _experts_apart(self) -> bool:
        """Whether every sentence is known to teach one expert alone, so that no other needs to see it."""
        objective = self.objective
        focus = ramped_focus(objective.focus, self.specialised, objective.focus_warmup)
        holds = objective.known_until == 1 or self.specialised < objective.known_until
        complete = self.groups is not None and self.groups.complete
        return complete and holds and focus == 1 and self.agreement is None

    def forward(self, model, sample, reduce=True):
        """Loss, the number it is to be divided by, and what to log; as every fairseq criterion."""
        shared = model.training and self.experts_are_one
        known = None if self.groups is None or not model.training else self.groups.of(sample["id"])
        apart = known if known is not None and not shared and self._experts_apart() else None
        output: TeamOutput = model(**sample["net_input"], one_expert=shared, portion=apart)
        target, pad, eps = sample["target"], self.padding_idx, self.label_smoothing
        rough = sentence_loss(output.rough, target, pad, eps)
        experts = [sentence_loss(logits, target, pad, eps) for logits in output.experts]
        if (
            len(experts) == 1
        ):  # one network that all are, or each sentence's own, which alone learns
            experts *= self.objective.num_experts
        expert_loss = torch.stack([losses.smoothed for losses in experts], 1)  # [n, k]
        evidence = torch.stack([losses.log_likelihood for losses in experts], 1).detach()  # [n, k]
        tokens = num_tokens(target, pad)
        n, ntokens = len(target), int(tokens.sum())
        sample_size = n if self.sentence_avg else ntokens
        # Weights of mean 1, so that the objective's mean over sentences is fairseq's average.
        weight = (
            torch.ones_like(rough.smoothed) if self.sentence_avg else tokens * (n / max(1, ntokens))
        )
        log: dict[str, Any] = {"ntokens": ntokens, "nsentences": n, "sample_size": sample_size}
        parts = self._train if model.training else self._validate
        parts = self._train_as_one if shared else parts
        loss, more = parts(output, sample, rough, expert_loss, evidence, weight, known)
        loss = loss * sample_size

        selected = output.selection_logits.argmax(1)
        load = torch.bincount(selected, minlength=self.objective.num_experts)
        log |= {f"load_{j}": count for j, count in enumerate(load.unbind())}
        log |= {
            "loss": loss.detach(),
            "rough_nll": -(rough.log_likelihood.detach() * tokens).sum(),
            "expert_nll": -(evidence.mean(1) * tokens).sum(),
            "oracle_nll": -(evidence.amax(1) * tokens).sum(),
            **more,
        }
        return loss, sample_size, log

    def _train(self, output, sample, rough, expert_loss, evidence, weight, known):
        rows = (
            slice(0, 0) if self.task.dummy_batch else slice(None)
        )  # none of a batch that is filler
        agreement = None
        if self.agreement is not None:
            kept = sample["target"].ne(self.padding_idx)
            logits = torch.stack([logits[kept] for logits in output.experts], 1)  # [tokens, k, c]
            agreement = sentence_mean(self.agreement(logits), sample["target"], self.padding_idx)
            agreement = (agreement * weight)[rows]
        factor = torch.ones_like(weight[rows])
        if known is not None and self._experts_apart():
            factor = to_own_mean(weight[rows], known[rows], self.objective.num_experts)
        loss = self.objective(
            (rough.smoothed * weight)[rows],
            (expert_loss * weight[:, None])[rows] * factor[:, None],
            evidence[rows],
            output.selection_logits[rows],
            progress=self.specialised,
            index=sample["id"][rows],
            agreement=agreement,
            known_portion=None if known is None else known[rows],
        )
        n = len(loss.labels)
        chosen = output.selection_logits[rows].argmax(1, keepdim=True)
        tokens = num_tokens(sample["target"], self.padding_idx)
        by_selected = evidence.gather(1, output.selection_logits.argmax(1, keepdim=True))[:, 0]
        counts = {}
        if self.groups is not None:
            counts = self.groups.counts(
                sample["id"][rows], loss.portion, self.objective.num_experts
            )
        return loss.total, counts | {
            "nll_loss": -(by_selected * tokens).sum(),
            "selection_loss": loss.selection.detach() * n,
            "selection_correct": loss.labels.gather(1, chosen).sum(),
            "focus": loss.focus * n,
        }

    def _train_as_one(self, output, sample, rough, expert_loss, evidence, weight, known):
        """The delegator's rough prediction and the one network that the experts still are."""
        loss = ((rough.smoothed + expert_loss[:, 0]) * weight).mean()
        # Data-parallel wrappers wait for a gradient of every parameter; see `share_gradient`.
        idle = [
            parameter.sum()
            for expert in self.task.new_team.experts[1:]
            for parameter in expert.parameters()
        ]
        loss = loss + 0 * sum(idle, start=output.selection_logits.sum())
        tokens = num_tokens(sample["target"], self.padding_idx)
        return loss, {"nll_loss": -(evidence[:, 0] * tokens).sum()}

    def _validate(self, output, sample, rough, expert_loss, evidence, weight, known):
        tokens = num_tokens(sample["target"], self.padding_idx)
        router = self.task.router
        if router.kind == "ensemble":
            mixed = torch.stack([logits.float().log_softmax(-1) for logits in output.experts])
            routed = sentence_loss(
                mixed.logsumexp(0), sample["target"], self.padding_idx, self.label_smoothing
            )
            smoothed, log_likelihood = routed.smoothed, routed.log_likelihood
        else:
            chosen = router.select(
                output.selection_logits,
                sample["net_input"]["src_tokens"],
                self.task.source_dictionary.pad(),
                evidence,
            )[:, None]
            smoothed = expert_loss.gather(1, chosen)[:, 0]
            log_likelihood = evidence.gather(1, chosen)[:, 0]
        right = output.selection_logits.argmax(1) == evidence.argmax(1)
        return (smoothed * weight).mean(), {
            "nll_loss": -(log_likelihood * tokens).sum(),
            "selection_correct": right.sum(),
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Losses in bits, per token or sentence as fairseq has them; shares of sentences in percent."""

        def total(key: str) -> float:
            value = sum(log.get(key, 0) for log in logging_outputs)
            return value.item() if isinstance(value, Tensor) else value

        sentences, tokens, size = total("nsentences"), total("ntokens"), total("sample_size")
        metrics.log_scalar("loss", total("loss") / size / math.log(2), size, round=3)
        for key in ("nll_loss", "rough_nll", "expert_nll", "oracle_nll"):
            metrics.log_scalar(key, total(key) / tokens / math.log(2), tokens, round=3)
        metrics.log_derived("ppl", lambda meters: get_perplexity(meters["nll_loss"].avg))
        if any("selection_loss" in log for log in logging_outputs):
            value = total("selection_loss") / sentences / math.log(2)
            metrics.log_scalar("selection_loss", value, sentences, round=3)
            metrics.log_scalar("focus", total("focus") / sentences, sentences, round=3)
        if any("selection_correct" in log for log in logging_outputs):
            right = total("selection_correct")
            metrics.log_scalar("selection_accuracy", 100 * right / sentences, sentences, round=1)
        counted = [key for key in logging_outputs[0] if key.startswith(COUNT)]
        if counted:
            followed = follow({key: total(key) for key in counted})
            metrics.log_scalar("follow_groups", followed, sentences, round=3)
        loads = [key for key in logging_outputs[0] if key.startswith("load_")]
        for key in loads:
            metrics.log_scalar(key, 100 * total(key) / sentences, sentences, round=1)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They are all sums over sentences or tokens."""
        return True
