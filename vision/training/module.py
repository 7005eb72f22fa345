"""The Lightning module: team, controls and ensembles, trained together on the same batches."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coe_core import CoTrainingObjective, Drawn, FamilyLabels, confidence
from coe_core.agreement import AGREEMENTS
from coe_core.shared_start import start_as_one
from vision.networks.pwlu.layer import start_learning
from vision.networks.side_by_side import Together
from vision.networks.teacher import Teacher
from vision.networks.team import HandedOver, TeamOutput
from vision.recipe_networks import Networks
from vision.training.optimizer import build_optimizer
from vision.training.portions import Groups, TeamPortions
from vision.training.schedule import learning_rate_schedule

if TYPE_CHECKING:
    from vision.networks.pretrained import Weights

COMPILER = "inductor"  # of torch.compile
GAIN = (
    "val/specialist_gain"  # of the selected expert over the mean one, in probability of the truth
)
_EQUAL_ON_ALL_RANKS = ("objective.", "families.", "portions.")  # buffers


class _ExpertLosses(NamedTuple):
    """What experts made of a batch; zeros where one did not run."""

    loss: Tensor  # [n, k]
    evidence: Tensor  # [n, k]
    logits: Tensor | None  # [n, k, c], where every expert ran


class CoETraining(LightningModule):
    """One step trains every network; no two networks share a parameter, so none affects another's
    gradients but through the objective's weights and labels.

    Args:
        recipe, classes, preprocess: see `Networks`.
        num_samples: size of the training set.
        groups: of the training images, where the recipe tells some; no part of the checkpoint.
        weights: of the classes in the loss, see `vision.training.class_weights`; None: all alike.
        start: loads what pretrained networks start from; None: they come with a checkpoint.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        recipe: dict[str, Any],
        classes: list[str],
        preprocess: dict[str, Any],
        num_samples: int,
        groups: Groups | None = None,
        weights: Tensor | None = None,
        start: Weights | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["groups", "weights", "start"])
        self.register_buffer("class_weights", weights, persistent=False)
        self.networks = Networks(recipe, classes, preprocess, weights=start)
        if self.networks.ensembles:
            self.hparams["divisions"] = self.networks.divisions()
        self.recipe = self.networks.recipe
        # Not the trainer's estimate: asking for it sets up the loader before its state is restored.
        train = self.recipe.train
        self.num_steps = train.epochs * (num_samples // train.images_per_step)
        self.split_step = round(self.recipe.shared_start * self.num_steps)
        self._teacher: Teacher | None = None  # a plain attribute: no part of the checkpoint
        if train.teacher is not None:
            self._teacher = Teacher(train.teacher, train.teacher_weight, classes)
        if not self.recipe.has_team:
            return
        settings = dict(vars(self.recipe.objective))
        self._agreement = AGREEMENTS.get(settings.pop("agreement"))
        shares = settings.pop("shares")
        # Until this step the experts are one network: expert 0 trains, the others are its copies.
        del settings["shared_start"]
        # From this step on the experts specialise.
        self.start_step = self.split_step
        self.families: FamilyLabels | None = None
        settling = settings.pop("settling")
        if settings["labels"] == "families":
            del settings["labels"]
            self.families = FamilyLabels(len(classes), self.recipe.num_experts)
        team = self.networks.required_team
        self.portions = TeamPortions(self.recipe, team, len(classes), num_samples, groups)
        if self.families is not None or self.portions.clusters is not None:
            self.start_step = self.split_step or max(1, round(settling * self.num_steps))
        self.objective = CoTrainingObjective(
            self.recipe.num_experts,
            **settings,
            shares=None if shares is None else torch.tensor(shares),
            num_samples=num_samples,
        )
        image = self.networks.preprocess.shape
        self._experts = Together(team.experts, team.feature_shape(image))
        if self.networks.started.parts:
            self._experts.wide = None  # there what is frozen would not be
        # Queue, table and confusion are equal on all ranks already: nothing to broadcast at every step.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name.startswith(_EQUAL_ON_ALL_RANKS)
        ]

    def compile_networks(self) -> None:
        """torch.compile every network where it stands: parameters keep their names, averages see them."""
        team = [] if self.networks.team is None else [self.networks.team]
        networks: list[nn.Module] = [network for t in team for network in t.networks]
        networks += self.networks.controls.values()
        if self.networks.cascade is not None:
            networks += self.networks.cascade.networks
        for ensemble in self.networks.ensembles.values():
            networks += ensemble.members
            ensemble.run_in_loop()
        if team:
            self._experts.wide = None  # side by side none of them would be called
        for network in networks:
            network.compile(backend=COMPILER)

    @property
    def main_metric(self) -> str:
        """Validation accuracy by which the best checkpoint is chosen."""
        if self.recipe.has_team:
            return "val/selected_accuracy"
        return f"val/ensemble {next(iter(self.recipe.ensembles))}_accuracy"

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, truth = self.networks.prepare(batch["image"]), batch["target"]
        target = truth if self._teacher is None else self._teacher.mix(batch["image"], truth)
        total = torch.zeros((), device=images.device)
        if self.recipe.has_team:
            part = batch_idx % self.recipe.train.accumulate
            total = total + self._collaboration_step(images, target, truth, batch["index"], part)
        for control in self.networks.controls.values():
            total = total + self._loss(control(images), target).mean()
        if self.networks.cascade is not None:
            rough_logits, _, expert_logits = self.networks.cascade(images)
            total = total + self._loss(rough_logits, target).mean()
            total = total + self._loss(expert_logits[:, 0], target).mean()
        views = [images]
        if self.recipe.num_views > 1:
            views += [self.networks.prepare(view) for view in batch["views"].unbind(1)[1:]]
        for name in self.recipe.ensembles:
            total = total + self._ensemble_step(name, views, target)
        return total

    def _collaboration_step(
        self, images: Tensor, target: Tensor, truth: Tensor, index: Tensor, part: int
    ) -> Tensor:
        """The loss on a part of a step's batch, the whole of it where gradients are not accumulated."""
        if self.split_step and self.global_step <= self.split_step:
            self._copy_first_expert(with_optimizer=self.global_step == self.split_step)
        if self.global_step == self.start_step and part == 0:
            self.portions.settle()
            if self.families is not None:
                self.families.settle()
        if self.global_step < self.split_step:
            return self._shared_step(images, target)
        return self._team_step(images, target, truth, index, part)

    def _ensemble_step(self, name: str, views: list[Tensor], target: Tensor) -> Tensor:
        """Sum of the networks' losses and the agreement between them; one view for each, or for all."""
        ensemble = self.recipe.ensembles[name]
        inputs = views[: ensemble.s] if ensemble.own_views else views[0]
        logits = self.networks.ensembles[name](inputs).float()
        n, s, _ = logits.shape
        losses = self._loss(logits.flatten(0, 1), target.repeat_interleave(s, 0)).sum() / n
        consent = ensemble.agreement_term(logits, self.global_step / self.num_steps)
        parts = {"loss": losses / s, "agreement": consent}
        self._log({f"ensemble {name}_{part}": value for part, value in parts.items()}, n)
        return losses + consent

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss per sample; with targets per class (MixUp) or labels."""
        return cross_entropy(
            logits.float(),
            target,
            weight=self.class_weights,
            reduction="none",
            label_smoothing=self.recipe.train.label_smoothing,
        )

    def _shared_step(self, images: Tensor, target: Tensor) -> Tensor:
        """Delegator's rough prediction and the one network that the experts still are."""
        team = self.networks.required_team
        handed = team.hand_over(images)
        rough_logits = handed.rough_logits
        self._observe(rough_logits, target)
        rough_loss = self._loss(rough_logits, target).mean()
        expert_logits = team.answers(team.experts[0](team.for_experts(handed)), rough_logits)
        expert_loss = self._loss(expert_logits, target).mean()
        self._log({"rough_loss": rough_loss, "expert_loss": expert_loss}, len(target))
        return rough_loss + expert_loss

    def _team_step(
        self, images: Tensor, target: Tensor, truth: Tensor, index: Tensor, part: int
    ) -> Tensor:
        """All experts; ``truth`` is the target without a teacher's part, for the evidence."""
        team = self.networks.required_team
        handed = team.hand_over(images)
        _, rough_logits, selection_logits = handed
        self._observe(rough_logits, target)
        done, todo = self.global_step - self.start_step, self.num_steps - self.start_step
        progress = max(0, done) / max(1, todo)
        known = self.portions.known(index, progress)
        # Of seed and step alone: a training that is resumed draws as it would have.
        number = (self.recipe.seed % 2**16 * 2**32 + self.global_step) * 2**15 + self.global_rank
        chance = torch.Generator().manual_seed(number + (part << 60))
        drawn = self.objective.draw(selection_logits, progress, index, known, chance)
        experts = self._run_experts(handed, target, truth, drawn)
        loss = self.objective(
            self._loss(rough_logits, target),
            experts.loss,
            experts.evidence,
            selection_logits,
            progress=progress,
            index=index,
            agreement=self._agreement_between(experts.logits),
            labels=self._labels(selection_logits, target),
            known_portion=known,
            drawn=drawn,
            stay=1 - confidence(rough_logits.detach()),
        )
        self.portions.record(loss.portion, truth, index)
        labelled = loss.labels.gather(1, selection_logits.argmax(1, keepdim=True))
        parts = {
            "rough_loss": loss.rough,
            "expert_loss": loss.experts,
            "selection_loss": loss.selection,
            "selection_accuracy": labelled.sum() / loss.labels.sum().clamp(min=1),
            "focus": loss.focus,
        }
        self._log(parts, len(target))
        return loss.total

    def _agreement_between(self, logits: Tensor | None) -> Tensor | None:
        return None if self._agreement is None or logits is None else self._agreement(logits)

    def _run_experts(
        self, handed: HandedOver, target: Tensor, truth: Tensor, drawn: Drawn | None
    ) -> _ExpertLosses:
        """Every expert on every image, or on those that it is to see."""
        team = self.networks.required_team
        inputs, (n, k) = team.for_experts(handed), handed.selection_logits.shape
        if drawn is None:
            answers = team.answers(self._experts(inputs).float(), handed.rough_logits)
            logits, row = answers.flatten(0, 1), torch.arange(n).repeat_interleave(k)
        else:
            answers, rows = None, drawn.rows()
            outputs = self._experts.each([inputs[some] for some in rows])
            row = torch.cat(rows)
            logits = team.answers(torch.cat(outputs).float(), handed.rough_logits[row])
        row = row.to(target.device)
        loss = self._loss(logits, target[row])
        with torch.no_grad():
            evidence = -cross_entropy(logits, truth[row], reduction="none")
        if drawn is None:
            return _ExpertLosses(loss.reshape(n, k), evidence.reshape(n, k), answers)
        runs = drawn.runs.T.to(loss.device)  # expert by expert, as the rows are
        empty = loss.new_zeros(k, n)
        return _ExpertLosses(
            empty.masked_scatter(runs, loss).T, empty.masked_scatter(runs, evidence).T, None
        )

    def _observe(self, rough_logits: Tensor, target: Tensor) -> None:
        if self.global_step < self.start_step:
            self.portions.observe()
            if self.families is not None:
                self.families.observe(rough_logits, target)

    def _labels(self, selection_logits: Tensor, target: Tensor) -> Tensor | None:
        """Selection labels that are not made from the evidence."""
        if self.families is not None:
            return self.families(target)
        return self.portions.labels(selection_logits)

    def _log(self, parts: dict[str, Any], batch_size: int) -> None:
        named = {f"train/{name}": value for name, value in parts.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)

    @torch.no_grad()
    def _copy_first_expert(self, with_optimizer: bool) -> None:
        """Make every expert what expert 0 is; at the split with its momentum, to continue as it did.

        Not the core's `share_gradient`: copies that take no part in a step cost neither gradients nor
        momentum, and the experts take part in none until the split.
        """
        first, *others = self.networks.required_team.experts
        start_as_one([first, *others])
        if with_optimizer:
            state = self._optimizer_state()
            for expert in others:
                for source, copy in zip(first.parameters(), expert.parameters(), strict=True):
                    if source in state:  # what is frozen has none
                        state[copy] = deepcopy(state[source])

    def _optimizer_state(self) -> dict[Any, Any]:
        return cast(LightningOptimizer, self.optimizers()).optimizer.state

    def on_train_epoch_start(self) -> None:
        if self.current_epoch >= self.recipe.train.statistics_epochs:
            state = self._optimizer_state()
            for activation in start_learning(self.networks):
                for parameter in activation.parameters():
                    for value in state.get(parameter, {}).values():
                        if isinstance(value, Tensor):
                            value.zero_()  # moments and counts of the gradients that were 0
        if self.recipe.has_team:
            self.objective.partition.begin_epoch()
            self.portions.begin_epoch()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images, target = self.networks.prepare(batch["image"]), batch["target"]
        right = {}
        if self.networks.team is not None:
            out = self.networks.team(images)
            experts = out.expert_logits.argmax(2) == target[:, None]  # [n, k]
            right["rough"] = out.rough_logits.argmax(1) == target
            right["selected"] = experts.gather(1, out.selection_logits.argmax(1, keepdim=True))[
                :, 0
            ]
            right["expert"] = experts.float().mean(1)
            right["oracle"] = experts.any(1)
            self._log_gain(out, target)
        for name, control in self.networks.controls.items():
            right[f"control_{name}"] = control(images).argmax(1) == target
        for name, ensemble in self.networks.ensembles.items():
            logits = ensemble(images).float()
            right[f"ensemble {name}"] = logits.mean(1).argmax(1) == target
            right[f"ensemble {name}_member"] = (logits.argmax(2) == target[:, None]).float().mean(1)
        self.log_dict(
            {f"val/{name}_accuracy": value.float().mean() for name, value in right.items()},
            batch_size=len(target),
            sync_dist=True,
        )

    def _log_gain(self, out: TeamOutput, target: Tensor) -> None:
        """Probability that the selected expert gives the truth, over the mean expert's."""
        n, k, _ = out.expert_logits.shape
        truth = target[:, None, None].expand(n, k, 1)
        chance = out.expert_logits.float().softmax(2).gather(2, truth)[:, :, 0]
        selected = chance.gather(1, out.selection_logits.argmax(1, keepdim=True))[:, 0]
        gain = (selected - chance.mean(1)).mean()
        self.log(GAIN, gain, batch_size=n, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if self.recipe.has_team and not self.trainer.sanity_checking:
            for name, value in self.portions.follow().items():
                self.log(f"portions/{name}", value, sync_dist=True)  # the same on all

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that an earlier version began has counted no portions."""
        own = self.state_dict()
        for name in own.keys() - checkpoint["state_dict"].keys():
            if name.startswith("portions."):
                checkpoint["state_dict"][name] = own[name]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        train = self.recipe.train
        optimizer = build_optimizer(
            train,
            self,
            self._parts() if self.recipe.ensembles else None,
            self.networks.started.depth,
        )
        schedule = learning_rate_schedule(optimizer, train, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _parts(self) -> list[tuple[nn.Module, float]]:
        """The ensembles' networks with the weight decay that division leaves, the others as always."""
        networks, decay = self.networks, self.recipe.train.weight_decay
        parts: list[tuple[nn.Module, float]] = [(networks.controls, decay)]
        if networks.team is not None:
            parts.insert(0, (networks.team, decay))
        return parts + [(e, e.division.weight_decay or 0.0) for e in networks.ensembles.values()]
