"""What the report of a run says, as plain numbers: choice, errors, classes, reliability, routes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coe_core import Choice, calibration_error
from coe_core.stored_points import has_exits
from vision.budgets import ResolvedBudget
from vision.evaluation.predictions import Predictions
from vision.evaluation.stages import system_logits
from vision.recipe_networks import RunMacs

NUM_BINS = 15  # of the reliability diagram
NUM_PAIRS = 8  # that are most often confused
PICTURES_PER_PAIR = 6
PICTURES_PER_ROUTE = 10


class Answers(NamedTuple):
    """What is deployed says of every test image."""

    logits: Float[Tensor, "n c"]
    exits: Bool[Tensor, " n"]
    label: Int[Tensor, " n"]
    probability: Float[Tensor, " n"]  # of the label
    target: Int[Tensor, " n"]

    @property
    def right(self) -> Bool[Tensor, " n"]:
        return self.label == self.target


def answers_of(test: Predictions, macs: RunMacs, budget: ResolvedBudget) -> Answers:
    """The answers of a system at its threshold.

    Args:
        test: predictions of the run.
        macs: of the same run.
        budget: resolved.
    """
    both = system_logits(test, macs, budget.system)
    exits = torch.zeros(len(test.target), dtype=torch.bool)
    logits = both.final
    if has_exits(budget.system):
        exits = budget.rule.confidence(both.rough, both.selection) >= budget.threshold
        logits = both.final + budget.rough_weight * both.rough
        logits = torch.where(exits[:, None], both.rough, logits)
    probability, label = logits.softmax(1).max(1)
    return Answers(logits, exits, label, probability, test.target)


class Share(NamedTuple):
    """A part of some samples, with the interval of the true part."""

    part: float
    low: float
    high: float
    samples: int


def share(hits: int, count: int) -> Share:
    """A part with Wilson's 95% interval.

    Example:
        >>> [round(number, 3) for number in share(9, 10)]
        [0.9, 0.596, 0.982, 10]
    """
    if count == 0:
        return Share(math.nan, 0.0, 1.0, 0)
    z = 1.959964
    part, wide = hits / count, z * z / count
    middle = (part + wide / 2) / (1 + wide)
    half = z * math.sqrt(part * (1 - part) / count + wide / (4 * count)) / (1 + wide)
    return Share(part, max(0.0, middle - half), min(1.0, middle + half), count)


class RivalRow(NamedTuple):
    """One system of a choice."""

    name: str
    networks: int
    quality: float
    cost: float
    behind: tuple[
        float, float, float
    ]  # the best, with the interval: points, or the unit of the cost
    p_value: float
    verdict: str


def rival_rows(choice: Choice) -> list[RivalRow]:
    """The systems of a choice, the deployed one first, then from best to worst."""
    by_cost = choice.criterion == "cost"
    scale = 1.0 if by_cost else -100.0
    rows = []
    for name, rival in choice.rivals.items():
        mean, low, high = (scale * value or 0.0 for value in rival.difference[:3])  # no -0
        verdict = "worse" if rival.is_worse else "not worse"
        verdict = "the best" if name == choice.best else verdict
        rows.append(
            RivalRow(
                name,
                rival.parts,
                rival.quality,
                rival.cost,
                (mean, min(low, high), max(low, high)),
                rival.difference.p_value,
                "deployed, " + verdict if name == choice.deployed else verdict,
            )
        )
    return sorted(rows, key=lambda row: (row.name != choice.deployed, row.behind[0]))


class ClassRow(NamedTuple):
    """One class."""

    name: str
    accuracy: Share


def class_rows(answers: Answers, classes: Sequence[str]) -> list[ClassRow]:
    """Accuracy of each class that has test images, from the worst to the best."""
    rows = []
    for c, name in enumerate(classes):
        of_class = answers.target == c
        if bool(of_class.any()):
            hits = int(answers.right[of_class].sum())
            rows.append(ClassRow(name, share(hits, int(of_class.sum()))))
    return sorted(rows, key=lambda row: row.accuracy.part)


def confusion(answers: Answers, num_classes: int) -> Int[Tensor, "c c"]:
    """Test images by their class (rows) and by what was answered (columns)."""
    counts = torch.zeros(num_classes, num_classes, dtype=torch.long)
    ones = torch.ones_like(answers.target)
    return counts.index_put_((answers.target, answers.label), ones, accumulate=True)


class Pair(NamedTuple):
    """A class that is taken for another."""

    true: str
    answered: str
    part: Share  # of the images of the class
    images: list[int]  # the surest of these errors


def confused_pairs(answers: Answers, classes: Sequence[str]) -> list[Pair]:
    """The most frequent errors, at most `NUM_PAIRS`."""
    counts = confusion(answers, len(classes))
    totals = counts.sum(1).tolist()
    wrong = counts.clone().fill_diagonal_(0)
    pairs = []
    for place in torch.argsort(wrong.flatten(), descending=True, stable=True)[:NUM_PAIRS].tolist():
        true, answered = divmod(place, len(classes))
        if wrong[true, answered] == 0:
            break
        rows = torch.nonzero((answers.target == true) & (answers.label == answered)).flatten()
        surest = rows[torch.argsort(answers.probability[rows], descending=True)]
        part = share(int(wrong[true, answered]), totals[true])
        shown = surest[:PICTURES_PER_PAIR].tolist()
        pairs.append(Pair(classes[true], classes[answered], part, shown))
    return pairs


class Bin(NamedTuple):
    """Images of like confidence."""

    low: float
    high: float
    confidence: float  # mean
    accuracy: Share


def reliability(answers: Answers) -> tuple[float, list[Bin]]:
    """Expected calibration error, and the bins that hold images; see `coe_core.calibration_error`."""
    error = calibration_error(answers.logits.double().log_softmax(1), answers.target, NUM_BINS)
    places = (answers.probability * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    bins = []
    for place in range(NUM_BINS):
        rows = places == place
        if bool(rows.any()):
            accuracy = share(int(answers.right[rows].sum()), int(rows.sum()))
            mean = float(answers.probability[rows].mean())
            bins.append(Bin(place / NUM_BINS, (place + 1) / NUM_BINS, mean, accuracy))
    return error, bins


class Route(NamedTuple):
    """A way that images take."""

    name: str
    part: Share  # of all images
    accuracy: Share  # of those on this way
    images: list[int]  # some of them, evenly spread over the test data


def routes(answers: Answers, selected_expert: Int[Tensor, " n"], num_experts: int) -> list[Route]:
    """The ways through a collaboration, the exits first."""
    n = len(answers.target)
    taken = {"ended early": answers.exits}
    taken |= {f"expert {j}": ~answers.exits & (selected_expert == j) for j in range(num_experts)}
    ways = []
    for name, rows in taken.items():
        where = torch.nonzero(rows).flatten()
        spread = torch.linspace(0, max(0, len(where) - 1), min(len(where), PICTURES_PER_ROUTE))
        images = where[spread.round().long().unique()].tolist() if len(where) else []
        hits = int(answers.right[rows].sum())
        ways.append(Route(name, share(len(where), n), share(hits, len(where)), images))
    return ways


def classes_to_experts(
    target: Int[Tensor, " n"], selected_expert: Int[Tensor, " n"], shape: tuple[int, int]
) -> Float[Tensor, "c k"]:
    """The part of each class that selects each expert, exits included.

    Args:
        target: classes.
        selected_expert: of the same images.
        shape: number of classes, number of experts.
    """
    counts = torch.zeros(shape)
    counts.index_put_((target, selected_expert), torch.ones(len(target)), accumulate=True)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)
