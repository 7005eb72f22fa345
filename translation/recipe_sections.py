"""Sections of a recipe: networks, objective, training, generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coe_core.support.typed import check_ranges

_MANY, _PART, _BELOW_ONE = "[1, 1000000000]", "[0, 1]", "[0, 1)"
_WEIGHT, _RATE = "[0, 1000000]", "(0, 1000]"


@dataclass(frozen=True)
class Transformer:
    """Sizes of one network, by fairseq's names."""

    embed_dim: int
    ffn_embed_dim: int
    encoder_layers: int
    decoder_layers: int
    attention_heads: int

    def __post_init__(self) -> None:
        wide, deep = "[1, 65536]", "[1, 1024]"
        # fairseq's positions divide by embed_dim // 2 - 1
        ranges = {"embed_dim": "[4, 65536]", "ffn_embed_dim": wide, "attention_heads": wide}
        check_ranges(self, ranges | {"encoder_layers": deep, "decoder_layers": deep})
        if self.embed_dim % self.attention_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is no multiple of attention_heads {self.attention_heads}"
            )


@dataclass(frozen=True)
class Control(Transformer):
    """A plain network beside the team, trained on the same batches with the same optimiser.

    Args:
        one_per: direction: a network of this size for each direction, trained on its pairs alone, in batches
            as large as its part of the team's, and chosen by the known language; null: one network for all.
    """

    one_per: Literal["direction"] | None = None


@dataclass(frozen=True)
class Ensemble:
    """Plain networks that differ in their seeds, trained one by one; their probabilities are averaged."""

    network: Transformer
    size: int = 2

    def __post_init__(self) -> None:
        check_ranges(self, {"size": "[2, 100]"}, "ensembles.")


@dataclass(frozen=True)
class Objective:
    """How delegator and experts are trained together; see docs/method.md, section 3.

    The names are those of vision's recipes, the defaults those of the plugin's options.

    Args:
        shared_start: part of the training in which all experts are one network; null: 0.5 for equal
            experts, 0 for others.
        focus: how much each expert's loss is weighted towards its portion.
        focus_warmup: part of the training after the shared start over which the focus rises from 0.
        scope: over which samples portions are balanced.
        queue_size: samples kept for scope queue.
        scores: by what the data are partitioned.
        labels: kind of selection label.
        temperature: of the soft label kinds, in nats per token.
        variance_weighting: weight the selection loss by how much the choice matters.
        selection_weight: of the selection loss.
        groups: what the user knows of a sentence and each expert gets its own of, where there are several
            directions: source (its language), target or direction; null: portions are learned.
        groups_until: part of the training after the shared start after which groups are set aside.
        agreement: term between the experts.
        agreement_weight: its weight.
    """

    shared_start: float | None = None
    focus: float = 0.6
    focus_warmup: float = 0.3
    scope: Literal["batch", "queue", "dataset"] = "batch"
    queue_size: int = 0
    scores: Literal["selection", "evidence", "sum", "random"] = "selection"
    labels: Literal["balanced", "soft_balanced", "hard", "soft"] = "balanced"
    temperature: float = 1.0
    variance_weighting: bool = True
    selection_weight: float = 0.5
    groups: Literal["source", "target", "direction"] | None = None
    groups_until: float = 1.0
    agreement: Literal["none", "distil", "js", "mutual"] = "none"
    agreement_weight: float = 1.0

    def __post_init__(self) -> None:
        ranges = {"shared_start": _BELOW_ONE, "focus": _PART, "focus_warmup": _PART}
        ranges["groups_until"] = _PART
        ranges |= dict.fromkeys(("queue_size", "selection_weight", "agreement_weight"), _WEIGHT)
        check_ranges(self, ranges | {"temperature": "(0, 1000000]"}, "objective.")


@dataclass(frozen=True)
class HandOver:
    """What networks of the team share (OURS); by default nothing: whole networks.

    The name is that of vision's recipes: what the delegator computed and the experts go on from.

    Args:
        encoder_layers: first layers of the encoder, and its embeddings, that the delegator and all experts
            share: they run once a sentence. Embeddings of one dimension are needed, and the delegator's
            encoder layers have the experts' sizes.
        trunk_gradient: factor on the gradient of each expert that reaches them; null: 1 / num_experts.
        decoder: whether all experts have one decoder and one set of embeddings, each an encoder of its
            own: for several source languages and one target.
    """

    encoder_layers: int = 0
    trunk_gradient: float | None = None
    decoder: bool = False

    def __post_init__(self) -> None:
        check_ranges(
            self, {"encoder_layers": "[0, 1024]", "trunk_gradient": "[0, 1000]"}, "hand_over."
        )
        if self.trunk_gradient is not None and not self.encoder_layers:
            raise ValueError(
                "hand_over.trunk_gradient is of shared layers: give hand_over.encoder_layers too"
            )


@dataclass(frozen=True)
class Training:
    """Optimisation, the same for the team and its controls; names are those of fairseq-train's options.

    Args:
        updates: length of the training.
        max_tokens: of a batch.
        update_freq: batches whose gradients make one update.
        lr: peak learning rate of Adam.
        adam_betas: its two decay rates.
        lr_scheduler: inverse_sqrt, or polynomial_decay to 0 at the end.
        warmup_updates: over which the learning rate rises.
        warmup_init_lr: from which it rises, of inverse_sqrt; null: 0.
        weight_decay: on all weights.
        clip_norm: of the gradient; 0 is off.
        label_smoothing: in [0, 1).
        dropout: of all networks.
        normalize_before: layer norm before each block, not after it.
        max_positions: longest sentence in pieces.
        batch_multiple: fairseq's --required-batch-size-multiple.
        skip_long: leave out validation and test sentences over max_positions, instead of an error.
        save_interval: updates between saved states, of which a stop loses at most one interval; null: a
            tenth of the training.
        average: saved states whose mean is the result; 1: the last.
        validate: at every saved state the loss on the validation text, or loss and bleu of the routed team.
        select: what the result is: average (of the last states), last, or best: the state of the best
            validation, by bleu where that is measured, else by the loss.
        patience: validations without a better one after which a training ends early; null: never.
        init: checkpoint of a plain transformer of an expert's sizes and this vocabulary, copied into every
            expert of the team at the start; null: random weights.
        subword_sampling: cut every training sentence anew in each epoch, the same way for the team and its
            controls: of a unigram vocabulary the exponent of the probabilities of its segmentations, of bpe
            the probability of leaving out a merge; null: as the data are cut.
        subword_sides: which sides that is of.
        fp16: numbers of 16 bits, on a GPU.
        device: auto: a GPU where there is one; cpu.
        workers: processes that load batches.
    """

    updates: int
    max_tokens: int
    lr: float
    update_freq: int = 1
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    lr_scheduler: Literal["inverse_sqrt", "polynomial_decay"] = "inverse_sqrt"
    warmup_updates: int = 4000
    warmup_init_lr: float | None = None
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.1
    dropout: float = 0.1
    normalize_before: bool = False
    max_positions: int = 1024
    batch_multiple: int = 8
    skip_long: bool = False
    save_interval: int | None = None
    average: int = 3
    validate: Literal["none", "loss", "bleu"] = "loss"
    select: Literal["average", "last", "best"] = "average"
    patience: int | None = None
    init: str | None = None
    subword_sampling: float | None = None
    subword_sides: Literal["both", "source"] = "both"
    fp16: bool = False
    device: Literal["auto", "cpu"] = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        counts = ("updates", "max_tokens", "update_freq", "max_positions", "batch_multiple")
        ranges = dict.fromkeys((*counts, "save_interval", "average", "patience"), _MANY)
        ranges |= {"lr": _RATE, "warmup_init_lr": "[0, 1000]", "warmup_updates": "[0, 1000000000]"}
        ranges |= dict.fromkeys(("adam_betas", "label_smoothing", "dropout"), _BELOW_ONE)
        ranges |= {"subword_sampling": "(0, 1]"}
        ranges |= {"weight_decay": "[0, 1000]", "clip_norm": _WEIGHT, "workers": "[0, 1024]"}
        check_ranges(self, ranges, "training.")
        if len(self.adam_betas) != 2:
            raise ValueError(f"training.adam_betas must be two numbers, got {self.adam_betas}")
        if self.validate == "none" and (self.select == "best" or self.patience is not None):
            raise ValueError(
                "training.select=best and training.patience go by validations: set "
                "training.validate=loss, or bleu"
            )

    @property
    def interval(self) -> int:
        """Updates between saved states."""
        return self.save_interval or max(1, self.updates // 10)


@dataclass(frozen=True)
class Generation:
    """How every system translates; names are those of fairseq-generate's options.

    Args:
        beam: hypotheses kept.
        lenpen: exponent of the length by which log-probabilities are divided.
        max_len: longest translation in pieces.
        batch_size: sentences.
        timed: those of the aims at which fairseq-generate itself translates the tests, timed whole.
    """

    beam: int = 5
    lenpen: float = 1.0
    max_len: int = 200
    batch_size: int = 64
    timed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ranges = {"beam": "[1, 1000]", "lenpen": "[-100, 100]"}
        ranges |= {"max_len": "[1, 100000]", "batch_size": "[1, 1000000]"}
        check_ranges(self, ranges, "generation.")
