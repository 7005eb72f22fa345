"""Sections of a recipe: the objective, the optimisation, the budget that it promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from coe_core.agreement import Agreement
from coe_core.labels import LabelKind
from coe_core.objective import Scores
from coe_core.support.typed import check_ranges
from coe_core.weights import Scope
from vision.networks.network import Network
from vision.networks.teacher import check_teacher

_MANY = "[1, 1000000]"
_PART, _BELOW_ONE = "[0, 1]", "[0, 1)"
_WEIGHT, _RATE = "[0, 1000000]", "(0, 1000]"


@dataclass(frozen=True)
class Objective:
    """How delegator and experts are trained together; see docs/method.md, section 3.

    Args:
        shared_start: part of the training, in [0, 1), in which all experts are one network; then
            each is a copy that specialises (OURS). Needs equal expert networks; 0 is off. Off by default:
            where experts are small for the task it costs accuracy, elsewhere it is level; what it
            saves is training time (docs/results.md).
        focus: r in [0, 1]: how much each expert's loss is weighted towards its portion; 0 trains
            an ordinary ensemble.
        focus_warmup: part of the training after the shared start over which the focus rises from 0.
        scope: over which samples portions are balanced: batch, queue or dataset.
        queue_size: samples kept for scope queue.
        scores: by what the data are partitioned: selection, evidence, their sum, or random (a control).
        labels: kind of selection label: families, of classes that the delegator confuses (OURS); or by
            the experts' evidence: balanced, soft_balanced, hard or soft.
        settling: for labels families and portions of clusters: part of the training after which they are
            fixed, where there is no shared start (else at its end); until then the focus is 0.
        temperature: of the soft label kinds, in nats.
        variance_weighting: weight the selection loss by how much the choice matters (VCM).
        selection_weight: beta, weight of the selection loss.
        agreement: term between the experts: none, distil, js or mutual.
        agreement_weight: its weight.
        held_out: part of the training images, in [0, 1), on which no expert learns and which alone teach
            the selection (OURS).
        sample_rest: part of each portion, in (0, 1], that all experts see once the focus has risen; the
            other images are seen by one expert each, so a step costs (1 + (k - 1) sample_rest) / k (OURS).
        stay_weight: in [0, 1]: how far the selection learns from a sample by the chance that it stays for an
            expert, 1 - the confidence of its rough prediction (OURS).
        shares: relative size of each expert's portion; null means equal.
    """

    shared_start: float = 0.0
    focus: float = 0.6
    focus_warmup: float = 0.3
    scope: Scope = "batch"
    queue_size: int = 0
    scores: Scores = "selection"
    labels: Literal["families"] | LabelKind = "balanced"
    settling: float = 0.1
    temperature: float = 1.0
    variance_weighting: bool = True
    selection_weight: float = 0.5
    agreement: Agreement = "none"
    agreement_weight: float = 0.0
    held_out: float = 0.0
    sample_rest: float = 1.0
    stay_weight: float = 0.0
    shares: list[float] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, _OBJECTIVE_RANGES, "objective.")


_OBJECTIVE_RANGES = {
    **dict.fromkeys(("focus", "focus_warmup", "stay_weight"), _PART),
    **dict.fromkeys(("queue_size", "selection_weight", "agreement_weight", "shares"), _WEIGHT),
    "temperature": "(0, 1000000]",
    "held_out": _BELOW_ONE,
    "sample_rest": "(0, 1]",
}


@dataclass(frozen=True)
class Portions:
    """Where the experts' portions come from (OURS); by default the selection's first noise.

    Args:
        follow: selection; clusters, balanced ones of the delegator's features at the moment the experts
            begin to differ; or known, the groups that are told below. Clusters and known groups are a
            sample's portion and what the selection is taught.
        takeover: part of the training after the experts begin to differ, in (0, 1], over which evidence
            takes over from clusters or known groups, sample by sample; null: 0.5 for clusters, never
            for known groups.
        groups: what a training image's group is: class, told by of_class; folder, the one that it lies in
            below its class's; source, its data set of several that are joined; or column, what a column of
            the table of labels says of it; null: there are none. The log of the training says how far
            portions follow the classes and the groups. More groups than experts are put together.
        of_class: class -> name of its group; a class without one goes by the selection.
        column: of the table of labels, such as camera; an image whose cell is empty goes by the selection.
        starts: trainings that begin with other initial weights; the one goes on whose specialists gain
            most on the validation images after the trial.
        trial: part of the training, in (0, 1), after which one of several starts is kept.
    """

    follow: Literal["selection", "clusters", "known"] = "selection"
    takeover: float | None = None
    groups: Literal["class", "folder", "source", "column"] | None = None
    of_class: dict[str, str] = field(default_factory=dict)
    column: str | None = None
    starts: int = 1
    trial: float = 0.2

    def __post_init__(self) -> None:
        ranges = {"takeover": "(0, 1]", "starts": "[1, 100]", "trial": "(0, 1)"}
        check_ranges(self, ranges, "portions.")
        if self.follow == "known" and self.groups is None:
            raise ValueError(
                "portions.follow is known, but no groups are: set portions.groups to class, folder, source "
                "or column"
            )
        if (self.groups == "class") != bool(self.of_class):
            raise ValueError(
                "portions.groups: class and portions.of_class, the group of each class, go together"
            )
        if (self.groups == "column") != (self.column is not None):
            raise ValueError(
                "portions.groups: column and portions.column, its name in the table of labels, go together"
            )
        if self.follow == "selection" and self.takeover is not None:
            raise ValueError(
                "portions.takeover is of clusters or known groups; portions.follow is selection"
            )

    @property
    def evidence_over(self) -> float | None:
        """Part of the training over which evidence takes over; None: it never does."""
        if self.takeover is None and self.follow == "clusters":
            return 0.5
        return self.takeover


@dataclass(frozen=True)
class HandOver:
    """What the delegator computed and the experts go on from (OURS); by default nothing: whole networks.

    Args:
        trunk: dotted name of a module of the experts' network, such as layer1 or blocks.0: the network up
            to its output is shared by the delegator and all experts. The delegator is the rest of its own
            network from there.
        branch: name of the module behind which the delegator's own network is cut; null: as trunk.
        rough_logits: every expert is trained and run on its own logits plus the delegator's rough ones.
        trunk_gradient: factor on the gradient of each expert that reaches the trunk; null: 1 / num_experts.
    """

    trunk: str | None = None
    branch: str | None = None
    rough_logits: bool = False
    trunk_gradient: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, {"trunk_gradient": "[0, 1000]"}, "hand_over.")
        if self.trunk is None and (self.branch is not None or self.trunk_gradient is not None):
            raise ValueError(
                "hand_over.branch and hand_over.trunk_gradient are of a shared trunk: name hand_over.trunk"
            )

    @property
    def anything(self) -> bool:
        """Whether the experts are no whole networks."""
        return self.trunk is not None or self.rough_logits


@dataclass(frozen=True)
class Train:
    """Optimisation: the same for the team and its controls.

    Args:
        epochs: over the training set.
        batch_size: of the whole step, over all processes; auto: as memory and the number of images allow,
            chosen when a training begins and kept in its run; see `vision.training.batch_size`.
        accumulate: parts that a step's batch is computed in, one after the other, so that it needs the memory
            of one part. Gradients are averaged over the parts; batch normalisation and balanced portions
            are of each part.
        optimizer: any name of timm.optim.create_optimizer_v2, such as sgd, adamw, lamb, rmsprop.
        lr: peak learning rate.
        momentum: for optimizers that have one.
        weight_decay: on weights, not on biases and normalisation.
        warmup: part of the steps over which the learning rate rises; a cosine afterwards.
        start_lr: from which it rises; null: lr / 25.
        final_lr: to which the cosine falls; null: start_lr / 10,000.
        decay: instead of the cosine, multiply the learning rate by this every decay_epochs.
        decay_epochs: see decay.
        label_smoothing: in [0, 1).
        class_weights: in [0, 1]: how far rare classes weigh more in every network's loss: as
            n^-class_weights for n training images, 1 on average over the images; 0: all alike. One of it and
            of data.balance, which draws them more often, is enough.
        ema_decay: keep an exponential moving average of the weights and use it; 0 is off.
        head_epochs: of pretrained networks: so many epochs at first train the classifier alone.
        layer_decay: of pretrained networks, in (0, 1]: the learning rate of every layer is that of the next
            one times this, up to the classifier, which has the whole rate; timm's layers.
        batch_norm: statistics of pretrained networks: train, as in any training; frozen, as they are loaded;
            or recalibrated, estimated anew on 32 training batches before the first step, and frozen then.
        statistics_epochs: of PWLU activations: ReLU until then, to see what reaches them; then learned.
        patience: end after so many epochs in which the accuracy that the best checkpoint is chosen by has not
            risen; 0: train all epochs.
        logger: a further logger of Lightning's, in the run's folder: csv, tensorboard, mlflow, or wandb
            (offline); every run has metrics/metrics.csv and TensorBoard's events anyway.
        teacher: a timm network from whose probabilities all networks learn too, see
            `vision.networks.teacher`: its name alone stands for its published weights.
        teacher_weight: part of the targets, in (0, 1], that the teacher's probabilities make up.
        compile: torch.compile each network; needs a C++ compiler on a CPU, and a minute at the start.
        precision: auto takes bf16 where the processor multiplies it fast (AMX, AVX512-BF16, a GPU),
            else fp32; or any precision Lightning knows, such as 32-true, bf16-mixed, 16-mixed.
    """

    epochs: int = 20
    batch_size: int | Literal["auto"] = 128
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    start_lr: float | None = None
    final_lr: float | None = None
    decay: float | None = None
    decay_epochs: float = 1.0
    label_smoothing: float = 0.0
    class_weights: float = 0.0
    ema_decay: float = 0.0
    head_epochs: int = 0
    layer_decay: float = 1.0
    batch_norm: Literal["train", "frozen", "recalibrated"] = "train"
    statistics_epochs: int = 5
    patience: int = 0
    logger: Literal["csv", "tensorboard", "mlflow", "wandb"] | None = None
    teacher: Network | None = None
    teacher_weight: float = 0.5
    compile: bool = False
    precision: str = "auto"

    def __post_init__(self) -> None:
        auto = self.batch_size == "auto"
        if isinstance(self.batch_size, str) and not auto:
            raise ValueError(f"train.batch_size must be a number or auto, got {self.batch_size!r}")
        if self.epochs < 1 or (not auto and self.images_per_step < 1):
            raise ValueError(
                "train.epochs and train.batch_size must be at least 1, got "
                f"{self.epochs} and {self.batch_size}"
            )
        if not auto and self.accumulate >= 1 and self.images_per_step % self.accumulate:
            raise ValueError(
                f"train.batch_size={self.batch_size} does not divide into train.accumulate={self.accumulate} "
                "equal parts"
            )
        if self.statistics_epochs < 0:
            raise ValueError(
                f"train.statistics_epochs must be at least 0, got {self.statistics_epochs}"
            )
        for name in ("lr", "start_lr", "final_lr", "decay", "decay_epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"train.{name} must be above 0, got {value}")
        if self.decay is not None and self.final_lr is not None:
            raise ValueError("train.decay replaces the cosine that train.final_lr is for: give one")
        check_ranges(self, _TRAIN_RANGES, "train.")
        check_teacher(self.teacher, self.teacher_weight)

    @property
    def images_per_step(self) -> int:
        """The batch size, where it is known.

        Raises:
            ValueError: it is auto, and no training has begun.
        """
        if isinstance(self.batch_size, str):
            raise ValueError(
                "train.batch_size is auto, which is chosen when a training begins: give a number"
            )
        return self.batch_size

    @property
    def images_at_once(self) -> int:
        """Images of all processes that are computed together: a part of the step's batch."""
        return self.images_per_step // self.accumulate


_TRAIN_RANGES = {
    "epochs": _MANY,
    "batch_size": _MANY,
    "accumulate": "[1, 4096]",
    **dict.fromkeys(("lr", "start_lr", "final_lr"), _RATE),
    **dict.fromkeys(("momentum", "warmup", "class_weights"), _PART),
    "weight_decay": "[0, 1000]",
    "decay": "(0, 10]",
    "decay_epochs": "(0, 1000000]",
    **dict.fromkeys(("label_smoothing", "ema_decay"), _BELOW_ONE),
    **dict.fromkeys(("statistics_epochs", "head_epochs", "patience"), "[0, 1000000]"),
    "layer_decay": "(0, 1]",
}


@dataclass(frozen=True)
class CostPromise:
    """What a recipe promises to cost per image: `coe-vision train RECIPE --dry-run` counts it.

    Args:
        mmacs: million multiply-adds, the mean of the collaboration, or of the first ensemble where
            there is none.
        exit_rate: part of the images, in [0, 1], that end early.
        tolerance: relative.
    """

    mmacs: float
    exit_rate: float = 0.0
    tolerance: float = 0.03

    def __post_init__(self) -> None:
        if not (self.mmacs > 0 and 0 <= self.exit_rate <= 1 and self.tolerance >= 0):
            raise ValueError(
                f"a budget has mmacs above 0, exit_rate in [0, 1], tolerance at least 0; got {self}"
            )
