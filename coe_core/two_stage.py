"""A first prediction for every sample, a second for those that do not exit: a collaboration, or a cascade."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coe_core._checks import real
from coe_core.trade_off import TradeOffCurve, corpus_trade_off_curve

_Kind = TypeVar("_Kind", "StageQuality", "StageCost")


class StageQuality(NamedTuple):
    """How good both predictions are: numbers that add up over samples, and what their sums are worth.

    Accuracy is the mean of one number per sample, 1 or 0; BLEU a function of the counts of n-grams.
    """

    rough: Float[Tensor, "n d"]
    final: Float[Tensor, "n d"]
    score: Callable[[Float[Tensor, "m d"]], Float[Tensor, " m"]]  # sums over samples -> quality
    is_mean: bool = False  # of the first column over the samples, see `mean_quality`


def mean_quality(rough: Float[Tensor, " n"], final: Float[Tensor, " n"]) -> StageQuality:
    """The quality of samples that each have one: its mean.

    Args:
        rough: quality of each rough prediction, such as 1 right and 0 wrong.
        final: quality of each final one.

    Example:
        >>> quality = mean_quality(torch.ones(4), torch.zeros(4))
        >>> quality.score(quality.rough.sum(0, keepdim=True)).tolist()
        [1.0]
        >>> quality.rough[0].tolist()  # its value, and 1 to count it
        [1.0, 1.0]
    """
    ones = torch.ones_like(rough)
    return StageQuality(
        torch.stack([rough, ones], 1), torch.stack([final, ones], 1), _mean, is_mean=True
    )


def _mean(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, 1]


class StageCost(NamedTuple):
    """What both stages cost, in one unit: multiply-adds, milliseconds ..."""

    first: float  # mean per sample, paid by all
    second: Float[Tensor, " n"]  # of each sample that does not exit
    # What is left of the first where nothing can exit (an infinite threshold): a delegator that need not
    # predict still selects, a cascade needs no first network at all. None: all of it runs, as where its
    # prediction is pooled into the final one, or where selection and prediction come from one pass.
    first_without_exits: float | None = None
    # What all pay, of each sample, where samples differ; its mean is ``first``.
    first_of_each: Float[Tensor, " n"] | None = None

    def of(self, rows: Int[Tensor, " m"]) -> StageCost:
        """The same of some of the samples."""
        each = None if self.first_of_each is None else self.first_of_each[rows]
        first = self.first if each is None else float(each.mean())
        return self._replace(first=first, second=self.second[rows], first_of_each=each)


class Reached(NamedTuple):
    """A two-stage predictor at one threshold."""

    quality: float
    exit_rate: float
    cost: dict[str, float]  # mean per sample, in each unit
    exits: Bool[Tensor, " n"]


@dataclass(frozen=True)
class TwoStage:
    """Predictions of n samples by a first network and, sample by sample, by the second one it leads to.

    Args:
        confidence: of the rough predictions, on held-out data.
        qualities: by name, such as accuracy; the first is the default.
        costs: by unit, such as macs; the first is the default.

    Example:
        >>> stage = TwoStage(
        ...     torch.tensor([0.9, 0.6]),
        ...     {"accuracy": mean_quality(torch.tensor([1.0, 0.0]), torch.ones(2))},
        ...     {"macs": StageCost(1.0, torch.tensor([10.0, 10.0]))},
        ... )
        >>> stage.at(0.8).quality, stage.at(0.8).exit_rate, stage.at(0.8).cost
        (1.0, 0.5, {'macs': 6.0})
        >>> stage.curve().cost.tolist()
        [11.0, 6.0, 1.0]
    """

    confidence: Float[Tensor, " n"]
    qualities: Mapping[str, StageQuality]
    costs: Mapping[str, StageCost]

    @classmethod
    def alone(
        cls,
        qualities: Mapping[str, StageQuality],
        costs: Mapping[str, float | Float[Tensor, " n"]],
    ) -> TwoStage:
        """A predictor of one stage, which all samples run: a single network, an ensemble.

        Args:
            qualities: whose rough answers are the final ones.
            costs: of every sample, by unit; a tensor where samples differ.

        Example:
            >>> right = torch.tensor([1.0, 0.0])
            >>> single = TwoStage.alone({"accuracy": mean_quality(right, right)}, {"macs": 7.0})
            >>> single.at(torch.inf).quality, single.at(torch.inf).cost
            (0.5, {'macs': 7.0})
        """
        n = len(next(iter(qualities.values())).final)
        nothing = torch.zeros(n, dtype=torch.float64)
        return cls(nothing, qualities, {u: _of_all(c, nothing) for u, c in costs.items()})

    def of(self, rows: Int[Tensor, " m"]) -> TwoStage:
        """The same predictor on some of the samples.

        Args:
            rows: their numbers.

        Example:
            >>> right = torch.tensor([1.0, 0.0])
            >>> single = TwoStage.alone({"accuracy": mean_quality(right, right)}, {"macs": 7.0})
            >>> single.of(torch.tensor([0])).curve().quality.tolist()
            [1.0, 1.0]
        """
        return TwoStage(
            self.confidence[rows],
            {
                name: quality._replace(rough=quality.rough[rows], final=quality.final[rows])
                for name, quality in self.qualities.items()
            },
            {unit: cost.of(rows) for unit, cost in self.costs.items()},
        )

    def curve(self, quality: str | None = None, cost: str | None = None) -> TradeOffCurve:
        """Quality and mean cost at every threshold, see `trade_off_curve`.

        Args:
            quality: name of one; None: the first.
            cost: name of one; None: the first.

        Raises:
            ValueError: no quality or cost of that name, or as `corpus_trade_off_curve`.
        """
        rough, final, score, _ = self.quality(quality)
        spent = _named("cost", self.costs, cost)
        curve = corpus_trade_off_curve(
            self.confidence, rough, final, score, spent.first, spent.second
        )
        if spent.first_without_exits is not None:
            curve.cost[0] = spent.first_without_exits + float(spent.second.mean())
        return curve

    def quality(self, name: str | None = None) -> StageQuality:
        """A quality by its name; None: the first.

        Raises:
            ValueError: there is none of this name.
        """
        return _named("quality", self.qualities, name)

    def each(
        self, threshold: float, quality: str | None = None, cost: str | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """The numbers behind a quality, and the cost, of every sample at a threshold.

        Args:
            threshold: see `at`.
            quality: name of one; None: the first.
            cost: name of one; None: the first.
        """
        kind, spent = self.quality(quality), _named("cost", self.costs, cost)
        exits = self.confidence >= threshold
        first: float | Tensor = _first_cost(spent, threshold < torch.inf)
        is_paid = threshold < torch.inf or spent.first_without_exits is None
        if spent.first_of_each is not None and is_paid:
            first = spent.first_of_each.double()
        return (
            torch.where(exits[:, None], kind.rough, kind.final),
            first + torch.where(exits, 0.0, spent.second.double()),
        )

    def at(self, threshold: float, quality: str | None = None) -> Reached:
        """What a threshold leads to on these samples; an infinite one ends none of them.

        Args:
            threshold: exit when confidence >= threshold.
            quality: name of one; None: the first.

        Raises:
            ValueError: no quality of that name, no samples, or a threshold that is NaN.
        """
        rough, final, score, _ = self.quality(quality)
        threshold = real("threshold", threshold)
        if len(self.confidence) == 0:
            raise ValueError("no samples: a threshold leads to nothing")
        exits = self.confidence >= threshold
        sums = torch.where(exits[:, None], rough, final).sum(0, keepdim=True)
        can_exit = threshold < torch.inf
        return Reached(
            float(score(sums)[0]),
            float(exits.float().mean()),
            {unit: _mean_cost(spent, exits, can_exit) for unit, spent in self.costs.items()},
            exits,
        )


def _of_all(cost: float | Tensor, nothing: Tensor) -> StageCost:
    if isinstance(cost, Tensor):
        return StageCost(float(cost.double().mean()), nothing, first_of_each=cost)
    return StageCost(cost, nothing)


def _mean_cost(spent: StageCost, exits: Tensor, can_exit: bool) -> float:
    return _first_cost(spent, can_exit) + float(torch.where(exits, 0.0, spent.second).mean())


def _first_cost(spent: StageCost, can_exit: bool) -> float:
    if not can_exit and spent.first_without_exits is not None:
        return spent.first_without_exits
    return spent.first


def _named(what: str, known: Mapping[str, _Kind], name: str | None) -> _Kind:
    if name is None:
        return next(iter(known.values()))
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return known[name]
