"""Groups of sentences that the user knows, such as languages: which expert each training sentence is for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core import experts_of_groups, shared_information
from coe_core.support.command import nearest
from translation.corpora.lines import read_lines

UNKNOWN = -1
COUNT = "in_portion_"  # how the counts of portion and group begin


class KnownGroups(NamedTuple):
    """The expert of each sentence of a training set, and which group it stands for."""

    group: Int[Tensor, " n"]  # by its place in ``sizes``, -1: not known
    expert: Int[Tensor, " n"]  # -1: not known
    expert_of: dict[str, int]  # of the groups that have one
    sizes: dict[str, int]  # sentences of each group

    @property
    def complete(self) -> bool:
        """Whether every sentence's expert is known."""
        return bool((self.expert >= 0).all())

    def of(self, index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Experts of training sentences, by their numbers in the training set."""
        return self.expert[index.cpu()].to(index.device)

    def counts(
        self, index: Int[Tensor, " n"], portion: Int[Tensor, " n"], num_experts: int
    ) -> dict[str, Tensor]:
        """Sentences of every group in every portion, as logging outputs; see `follow`."""
        group, g = self.group[index.cpu()].to(portion.device), len(self.sizes)
        place = (portion * g + group)[group >= 0]
        counts = torch.bincount(place, minlength=num_experts * g)
        return {f"{COUNT}{place // g}_{place % g}": n for place, n in enumerate(counts.unbind())}

    def __str__(self) -> str:
        parts = [
            f"{name} -> expert {expert} ({self.sizes[name]} sentences)"
            for name, expert in self.expert_of.items()
        ]
        unknown = int((self.expert < 0).sum())
        return ", ".join(parts + ([f"{unknown} sentences of unknown group"] if unknown else []))


def follow(totals: dict[str, float]) -> float:
    """How far portions follow the groups, in [0, 1]: `coe_core.shared_information` of summed counts.

    Example:
        >>> follow({"in_portion_0_0": 3, "in_portion_0_1": 0, "in_portion_1_0": 0, "in_portion_1_1": 5})
        1.0
    """
    places = [tuple(map(int, key.removeprefix(COUNT).split("_"))) for key in totals]
    counts = torch.zeros([max(side) + 1 for side in zip(*places, strict=True)])
    for place, number in zip(places, totals.values(), strict=True):
        counts[place] = number
    return shared_information(counts)


def to_own_mean(
    weight: Float[Tensor, " n"], expert: Int[Tensor, " n"], num_experts: int
) -> Float[Tensor, " n"]:
    """Factors that turn each expert's sum over its sentences into their weighted mean. OURS.

    Known groups are not of one size in a batch; with these an expert that learns from its own sentences
    alone learns from them as a network trained on them by itself does.

    Args:
        weight: of each sentence in the batch's mean.
        expert: whose each sentence is.
        num_experts: k, by which the objective multiplies what an expert learns from its own.

    Example:
        >>> to_own_mean(torch.ones(4), torch.tensor([0, 1, 1, 1]), 2).tolist()
        [2.0, 0.6666666865348816, 0.6666666865348816, 0.6666666865348816]
    """
    expert = expert.to(weight.device)
    of_expert = weight.new_zeros(num_experts).index_add(0, expert, weight)
    return (weight.sum() / (num_experts * of_expert.clamp(min=1e-9)))[expert]


def read_groups(
    path: str | Path, experts: str | None, num_experts: int, num_sentences: int
) -> KnownGroups:
    """Read the group of every training sentence: a text of one name a line, beside the sentences.

    Args:
        path: the text; an empty line is a sentence of unknown group.
        experts: the expert of each group, such as "de=0,fr=1"; groups that it leaves out are unknown.
            None: the names in alphabetical order, see `coe_core.experts_of_groups`.
        num_experts: k.
        num_sentences: of the training set, in whose order the lines are.

    Raises:
        ValueError: a text that cannot be read or has another number of lines, experts or groups that there
            are not, fewer groups than experts, or an expert that nothing is left for.
    """
    names = [line.strip() for line in read_lines(path)]
    if len(names) != num_sentences:
        raise ValueError(
            f"--portion-groups {path} has {len(names)} lines, but the training set has {num_sentences} "
            "sentences: give one name a line, in the order of the text that fairseq-preprocess read"
        )
    sizes = dict(sorted(Counter(name for name in names if name).items()))
    if not sizes:
        raise ValueError(f"--portion-groups {path} names no group: all of its lines are empty")
    if experts is None:
        chosen = experts_of_groups(torch.tensor([*sizes.values()]), num_experts).tolist()
        expert_of = dict(zip(sizes, chosen, strict=True))
    else:
        expert_of = _parse(experts, sizes, num_experts)
    expert = torch.tensor([expert_of.get(name, UNKNOWN) for name in names])
    place = {name: number for number, name in enumerate(sizes)}
    group = torch.tensor([place.get(name, UNKNOWN) for name in names])
    idle = sorted(set(range(num_experts)) - set(expert_of.values()))
    if idle and bool((expert >= 0).all()):
        raise ValueError(
            f"expert {idle[0]} has no sentences: all are of known groups ({', '.join(expert_of)}), none of "
            "them for it; give --portion-of a group for each expert"
        )
    return KnownGroups(group, expert, expert_of, sizes)


def _parse(text: str, sizes: dict[str, int], num_experts: int) -> dict[str, int]:
    """ "de=0,fr=1" as a dictionary, checked against the groups and the experts that there are."""
    expert_of: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.rpartition("="))
        if not (equals and name and number.isdecimal() and number.isascii()):
            raise ValueError(
                f"--portion-of must be NAME=EXPERT,... such as de=0,fr=1; got {text!r}"
            )
        if name not in sizes:
            raise ValueError(
                f"--portion-of {text}: no sentence is of group {name!r}{nearest(name, sizes)}"
            )
        if name in expert_of:
            raise ValueError(f"--portion-of {text} names group {name!r} twice")
        if int(number) >= num_experts:
            raise ValueError(
                f"--portion-of {text}: there are {num_experts} experts, numbered 0 to {num_experts - 1}"
            )
        expert_of[name] = int(number)
    return expert_of
