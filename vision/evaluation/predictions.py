"""What every network of a run says of every sample of a split: all tables are made from this."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core.support.progress import progress
from vision.data.images import ImageSet
from vision.data.loaders import default_workers, eval_loader
from vision.errors import RunError
from vision.networks.team import TeamOutput
from vision.precision import autocast
from vision.recipe_networks import Networks


def diverged_line(what: str, name: str, count: int, total: int) -> str:
    """What there is to say of a network that gives no finite logits.

    Example:
        >>> diverged_line("runs/a", "control small", 3, 360)
        'runs/a: control small gives no finite logits for 3 of 360 images; it has diverged: train it ...'
    """
    return (
        f"{what}: {name} gives no finite logits for {count} of {total} images; it has diverged: train it "
        "again with a lower train.lr"
    )


@dataclass(frozen=True)
class Predictions:
    """Logits of all networks of one run on one split, in the order of its samples.

    Without a delegator and experts their logits are None.
    """

    target: Int[Tensor, " n"]
    rough_logits: Float[Tensor, "n c"] | None
    selection_logits: Float[Tensor, "n k"] | None
    expert_logits: Float[Tensor, "n k c"] | None
    control_logits: dict[str, Tensor]  # each [n, c]
    ensemble_logits: dict[str, Tensor] = field(default_factory=dict)  # each [n, s, c]
    # Rough and final logits of a cascade with the team's hand-over, each [n, c].
    cascade_logits: tuple[Tensor, Tensor] | None = None

    @property
    def team(self) -> TeamOutput:
        """Logits of delegator and experts, where there must be some.

        Raises:
            RunError: the recipe trains ensembles only.
        """
        logits = self.rough_logits, self.selection_logits, self.expert_logits
        if logits[0] is None or logits[1] is None or logits[2] is None:
            raise RunError("there is no team: the recipe trains ensembles only")
        return TeamOutput(logits[0], logits[1], logits[2])

    @property
    def selected_expert(self) -> Int[Tensor, " n"]:
        return self.team.selection_logits.argmax(1)

    @property
    def selected_logits(self) -> Float[Tensor, "n c"]:
        """Logits of the selected expert."""
        rows = torch.arange(len(self.target))
        return self.team.expert_logits[rows, self.selected_expert]

    def select(self, rows: Int[Tensor, " m"]) -> Predictions:
        """The same networks on some of the samples."""

        def part(logits: Tensor | None) -> Tensor | None:
            return None if logits is None else logits[rows]

        cascade = self.cascade_logits
        return Predictions(
            self.target[rows],
            part(self.rough_logits),
            part(self.selection_logits),
            part(self.expert_logits),
            {name: logits[rows] for name, logits in self.control_logits.items()},
            {name: logits[rows] for name, logits in self.ensemble_logits.items()},
            None if cascade is None else (cascade[0][rows], cascade[1][rows]),
        )

    def diverged(self) -> dict[str, int]:
        """Networks whose logits are not finite, with the number of such samples; of a healthy run none."""
        logits = {}
        if self.rough_logits is not None:
            rough, selection, each_expert = self.team
            logits = {"the delegator": rough, "its selection": selection}
            experts = enumerate(each_expert.unbind(1))
            logits |= {f"expert {j}": answers for j, answers in experts}
        logits |= {f"control {name}": answers for name, answers in self.control_logits.items()}
        for name, members in self.ensemble_logits.items():
            logits |= {
                f"network {i} of ensemble {name}": answers
                for i, answers in enumerate(members.unbind(1))
            }
        counts = {name: int((~part.isfinite()).any(1).sum()) for name, part in logits.items()}
        return {name: count for name, count in counts.items() if count}

    def check_team(self, what: str) -> None:
        """Whether thresholds can be fitted and a table be made.

        Args:
            what: these are predictions of, such as the run's folder.

        Raises:
            RunError: delegator or experts give values that are not finite.
        """
        for name, count in self.diverged().items():
            if not name.startswith(("control", "network")):
                raise RunError(diverged_line(what, name, count, len(self.target)))

    def right(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        """1 where the largest logit is the target's, else 0."""
        return (logits.argmax(1) == self.target).float()


@torch.inference_mode()
def predict_all(
    networks: Networks, images: ImageSet, precision: str = "32-true", show: str = ""
) -> Predictions:
    """Run every network on every sample, without augmentation.

    Args:
        networks: of a run.
        images: the split.
        precision: of the arithmetic, see `choose_precision`.
        show: what the progress line says; empty shows none.
    """
    networks.eval()
    parts: list[list[Tensor]] = []
    batches = eval_loader(images, 256, default_workers(images))
    for batch in progress(batches, len(batches), show, "batches") if show else batches:
        prepared = networks.prepare(batch["image"].to(networks.device))
        with autocast(networks.device, precision):
            team = [] if networks.team is None else networks.team(prepared)
            others = [*networks.controls.values(), *networks.ensembles.values()]
            outputs = [*team, *(network(prepared) for network in others)]
            if networks.cascade is not None:
                rough, _, answers = networks.cascade(prepared)
                outputs += [rough, answers[:, 0]]
        parts.append([part.float().cpu() for part in outputs])
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    rough_logits = selection_logits = expert_logits = None
    if networks.team is not None:
        rough_logits, selection_logits, expert_logits, *columns = columns
    count = len(networks.controls)
    cascade = None
    if networks.cascade is not None:
        *columns, rough, final = columns
        cascade = (rough, final)
    return Predictions(
        torch.as_tensor(images.targets),
        rough_logits,
        selection_logits,
        expert_logits,
        dict(zip(networks.controls, columns[:count], strict=True)),
        dict(zip(networks.ensembles, columns[count:], strict=True)),
        cascade,
    )
