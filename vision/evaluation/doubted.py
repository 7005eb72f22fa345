"""Held-out images whose labels are worth a look: every network is sure of the same other class (OURS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core.support.reports import csv_text
from vision.data.files import printable
from vision.data.images import ImageSet
from vision.evaluation.predictions import Predictions

SURE = 0.9  # probability of their answer that all networks give at least


class Doubted(NamedTuple):
    """An image that nobody takes for what its label says."""

    split: str
    file: str  # or its number in the split, where it has no file
    label: str
    answer: str
    probability: float  # the least that any network gives the answer


class Sureness(NamedTuple):
    """What networks answer to every image together."""

    answer: Int[Tensor, " n"]  # of the first network
    least: Float[
        Tensor, " n"
    ]  # its least probability; 0 where they differ, or the label says the same


def sure_of_another(predictions: Predictions) -> Sureness:
    """Where all networks of a run answer one class that is not the label's, and how sure the least sure is.

    Networks that have diverged are left out; with fewer than two there is nothing to compare.

    Args:
        predictions: of delegator, selected expert, controls, ensembles.
    """
    target = predictions.target
    each = [*predictions.control_logits.values()]
    each += [logits.mean(1) for logits in predictions.ensemble_logits.values()]
    if predictions.rough_logits is not None:
        each += [predictions.rough_logits, predictions.selected_logits]
    each = [logits for logits in each if bool(logits.isfinite().all())]
    if len(each) < 2:
        return Sureness(target, torch.zeros(len(target)))
    best = [logits.float().softmax(1).max(1) for logits in each]
    answers, sure = torch.stack([b.indices for b in best]), torch.stack([b.values for b in best])
    agreed = (answers == answers[0]).all(0) & (answers[0] != target)
    return Sureness(answers[0], torch.where(agreed, sure.amin(0), 0.0))


def doubted_labels(split: str, images: ImageSet, runs: Sequence[Predictions]) -> list[Doubted]:
    """The images of a split that all networks of all runs are sure about, against their labels.

    Args:
        split: its name.
        images: of it.
        runs: what each run's networks say of them.
    """
    each = [sure_of_another(predictions) for predictions in runs]
    least = torch.stack([sure.least for sure in each]).amin(0)
    answer = each[0].answer
    for sure in each[1:]:
        least = torch.where(sure.answer == answer, least, 0.0)
    rows = torch.nonzero(least >= SURE).flatten()
    rows = rows[torch.argsort(least[rows], descending=True, stable=True)]
    classes, paths = images.classes, images.paths
    return [
        Doubted(
            split,
            str(row) if paths is None else printable(str(paths[row])),
            classes[int(images.targets[row])],
            classes[int(answer[row])],
            float(least[row]),
        )
        for row in rows.tolist()
    ]


def csv_table(doubted: Sequence[Doubted]) -> str:
    """A line for each."""
    return csv_text(("split", "file", "label", "answer", "least_probability"), doubted)


def shown(doubted: Sequence[Doubted]) -> str:
    """One line for the terminal."""
    first = doubted[0]
    count = (
        "1 held-out image whose label is"
        if len(doubted) == 1
        else f"{len(doubted)} held-out images whose labels are"
    )
    return (
        f"{count} worth a look: all networks are at least "
        f"{SURE:.0%} sure of another class, such as {first.file}, which is {first.label} and taken for "
        f"{first.answer}"
    )
