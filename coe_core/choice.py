"""Which of several systems to deploy for an aim: the best, or a simpler one that is not worse. OURS.

Systems are collaborations, cascades, single networks and ensembles, all with their answers to the same
held-out samples and their costs. Thresholds are fitted on these samples, too, which flatters systems that
have one; so systems are compared by answers out of fold: the samples are parted at random, and each part
is answered with the threshold fitted on the others. The threshold that is stored is fitted on all. What
remains of optimism is that of taking the best of a few systems, and is said by the interval.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from coe_core.calibration import AimKind, controlled_threshold, fit_threshold
from coe_core.chosen import Choice, Rival, shown_amount
from coe_core.errors import AimNotReachableError
from coe_core.paired import PairedDifference, check_level, paired_difference, resampled_difference
from coe_core.trade_off import TradeOffCurve
from coe_core.two_stage import StageQuality, TwoStage

FOLDS = 5


class Candidate(NamedTuple):
    """A system that could be deployed."""

    stage: TwoStage  # on the held-out samples; see `TwoStage.alone` for one without exits
    parts: int  # networks that it consists of: fewer are simpler


def choose(
    candidates: Mapping[str, Candidate],
    aim: AimKind,
    value: float | None = None,
    *,
    quality: str | None = None,
    cost: str | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> Choice:
    """The system to deploy for an aim: the simplest of those that are not worse than the best.

    "best", "macs" and "latency" make the best of the quality, "accuracy" and "accuracy_drop" of the cost.
    A drop is from the best that any system reaches without exits. Worse is what a paired test finds so,
    see `coe_core.paired`; of equally simple systems the better one is taken.

    Args:
        candidates: by name; all on the same samples.
        aim: see `fit_threshold`.
        value: of the aim.
        quality: name of one; None: the first.
        cost: name of one; None: the first.
        level: of the test; 1 takes the best, however little better it is.
        seed: of the parts of the samples.

    Raises:
        ValueError: no candidates, candidates on different samples, or as `fit_threshold`.
        AimNotReachableError: no system reaches it; names the one that comes nearest.

    Example:
        >>> right = torch.cat([torch.ones(90), torch.zeros(10)])
        >>> def single(right, macs):
        ...     return TwoStage.alone({"accuracy": mean_quality(right, right)}, {"macs": macs})
        >>> from coe_core.two_stage import mean_quality
        >>> systems = {
        ...     "network": Candidate(single(right, 7.0), 1),
        ...     "ensemble": Candidate(single(torch.ones(100), 70.0), 4),
        ... }
        >>> choose(systems, "best").deployed, choose(systems, "macs", 10.0).deployed
        ('ensemble', 'network')
    """
    check_level(level)
    num_samples = _num_samples(candidates)
    stages = {name: candidate.stage for name, candidate in candidates.items()}
    fits = fit_systems(stages, aim, value, quality, cost)
    aim, value = _absolute(stages, aim, value, quality)
    parts = _parts(num_samples, seed)
    answers = {
        name: _out_of_fold(stages[name], index, aim, value, (quality, cost), parts)
        for name, index in fits.items()
    }
    by_cost = aim == "accuracy"
    best = max(
        fits,
        key=lambda name: (
            (-answers[name].mean_cost, answers[name].score, -candidates[name].parts)
            if by_cost
            else (answers[name].score, -candidates[name].parts, -answers[name].mean_cost)
        ),
    )
    rivals = {}
    for name, answer in answers.items():
        difference = _difference(answer, answers[best], by_cost, level, seed)
        behind = difference.mean > 0 if by_cost else difference.mean < 0
        worse = name != best and behind and (difference.p_value < level or level == 1)
        rivals[name] = Rival(
            candidates[name].parts, answer.score, answer.mean_cost, difference, worse
        )
    deployed = min(
        (name for name, rival in rivals.items() if not rival.is_worse),
        key=lambda name: (
            (rivals[name].parts, rivals[name].cost, -rivals[name].quality)
            if by_cost
            else (rivals[name].parts, -rivals[name].quality, rivals[name].cost)
        ),
    )
    criterion = "cost" if by_cost else "quality"
    return Choice(deployed, best, criterion, level, num_samples, rivals)


def choose_guaranteed(
    candidates: Mapping[str, Candidate],
    drop: float,
    guarantee: float,
    *,
    quality: str | None = None,
    cost: str | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> tuple[Choice, dict[str, int]]:
    """The system that is cheapest where exits lose at most ``drop`` with the stated probability.

    Among the systems that are not worse without exits than the best one without exits. The drop is from
    the system's own accuracy without exits, see `controlled_threshold`; as the system is chosen on the
    same samples, the probability of failing is shared between all that have exits.

    Args:
        candidates: see `choose`; qualities are 1 and 0.
        drop: largest loss, in (0, 1).
        guarantee: probability, in (0, 1), over calibration sets.
        quality: name of one; None: the first.
        cost: name of one; None: the first.
        level: of the paired test.
        seed: see `choose`.

    Returns:
        The choice, and the index of each system's point on its curve.

    Raises:
        ValueError: as `choose` and `controlled_threshold`.

    Example:
        >>> from coe_core.two_stage import StageCost, mean_quality
        >>> right, confidence = torch.ones(1000), torch.linspace(0, 1, 1000)
        >>> stage = TwoStage(
        ...     confidence,
        ...     {"accuracy": mean_quality((confidence > 0.5).float(), right)},
        ...     {"macs": StageCost(1.0, 9 * right.double())},
        ... )
        >>> choice, index = choose_guaranteed({"CoE": Candidate(stage, 3)}, 0.05, 0.95)
        >>> round(float(stage.curve().threshold[index["CoE"]]), 2), round(choice.rivals["CoE"].cost, 1)
        (0.46, 5.2)
    """
    _num_samples(candidates)
    curves = {name: candidate.stage.curve(quality, cost) for name, candidate in candidates.items()}
    with_exits = [name for name, curve in curves.items() if float(curve.cost[-1] - curve.cost[0])]
    each = 1 - (1 - guarantee) / max(1, len(with_exits))
    index = {name: 0 for name in candidates}
    without_exits: dict[str, Candidate] = {}
    guaranteed: dict[str, Candidate] = {}
    for name, (stage, parts) in candidates.items():
        kind, curve = stage.quality(quality), curves[name]
        if name in with_exits:
            threshold = controlled_threshold(
                stage.confidence, kind.rough[:, 0], kind.final[:, 0], drop, each
            )
            index[name] = int(torch.nonzero(curve.threshold == threshold).flatten()[0])
        reached, _ = stage.each(float(curve.threshold[index[name]]), quality, cost)
        for stages, answers, spent in (
            (without_exits, kind.final, curve.cost[0]),
            (guaranteed, reached, curve.cost[index[name]]),
        ):
            same = {"quality": kind._replace(rough=answers, final=answers)}
            stages[name] = Candidate(TwoStage.alone(same, {"cost": float(spent)}), parts)
    as_good = choose(without_exits, "best", level=level, seed=seed).rivals
    kept = {name: guaranteed[name] for name, rival in as_good.items() if not rival.is_worse}
    return choose(kept, "accuracy", -torch.inf, level=level, seed=seed), index


def fit_systems(
    stages: Mapping[str, TwoStage],
    aim: AimKind,
    value: float | None = None,
    quality: str | None = None,
    cost: str | None = None,
) -> dict[str, int]:
    """For each system that reaches an aim the index of its point on its curve, fitted on all samples.

    Args:
        stages: by name; all on the same samples.
        aim: see `choose`.
        value: of the aim.
        quality: name of one; None: the first.
        cost: name of one; None: the first.

    Raises:
        ValueError: as `fit_threshold`.
        AimNotReachableError: no system reaches it; names the one that comes nearest.

    Example:
        >>> from coe_core.two_stage import mean_quality
        >>> right = torch.tensor([1.0, 0.0])
        >>> single = TwoStage.alone({"accuracy": mean_quality(right, right)}, {"macs": 7.0})
        >>> fit_systems({"network": single}, "macs", 10.0)
        {'network': 0}
        >>> fit_systems({"network": single}, "macs", 5.0)
        Traceback (most recent call last):
        coe_core.errors.AimNotReachableError: a mean cost of 5 is below that of every system; the cheapest
        that exists is network at 7: raise the budget, or train a smaller network beside the others
    """
    aim, value = _absolute(stages, aim, value, quality)
    curves = {name: stage.curve(quality, cost) for name, stage in stages.items()}
    fits = {}
    for name, curve in curves.items():
        try:
            fits[name] = fit_threshold(curve, aim, value)
        except AimNotReachableError:
            continue
    if not fits:
        raise AimNotReachableError(_nearest(curves, aim, cast(float, value)))
    return fits


def _nearest(curves: Mapping[str, TradeOffCurve], aim: str, value: float) -> str:
    if aim == "accuracy":
        name = max(curves, key=lambda n: float(curves[n].quality.max()))
        curve = curves[name]
        at = int(curve.quality.argmax())
        return (
            f"quality {value:g} is reached by no system at any threshold; the best on this data is "
            f"{float(curve.quality[at]):g}, of {name} at exit rate {float(curve.exit_rate[at]):.3f} and a "
            f"mean cost of {shown_amount(float(curve.cost[at]))}"
        )
    # Of equals the one with fewer points: a single network beside the cascade that it begins.
    name = min(curves, key=lambda n: (float(curves[n].cost.min()), len(curves[n].cost)))
    least, unit = float(curves[name].cost.min()), " ms" if aim == "latency" else ""
    return (
        f"a mean cost of {shown_amount(value)}{unit} is below that of every system; the cheapest that "
        f"exists is {name} at {shown_amount(least)}{unit}: raise the budget, or train a smaller network "
        "beside the others"
    )


def _absolute(
    stages: Mapping[str, TwoStage], aim: AimKind, value: float | None, quality: str | None
) -> tuple[AimKind, float | None]:
    """A drop as the quality that is still allowed."""
    if aim != "accuracy_drop" or value is None:
        return aim, value
    without_exits = [stage.at(torch.inf, quality).quality for stage in stages.values()]
    return "accuracy", max(without_exits) - value


class _Answers(NamedTuple):
    """What a system says and costs, sample by sample, each with a threshold not fitted on it."""

    statistics: Float[Tensor, "n d"]
    kind: StageQuality
    costs: Float[Tensor, " n"]

    @property
    def score(self) -> float:
        return float(self.kind.score(self.statistics.sum(0, keepdim=True))[0])

    @property
    def mean_cost(self) -> float:
        return float(self.costs.mean())


def _out_of_fold(
    stage: TwoStage,
    index: int,
    aim: AimKind,
    value: float | None,
    names: tuple[str | None, str | None],
    parts: list[Tensor],
) -> _Answers:
    """The answers of a system; where an aim is out of reach without a part, at the threshold of all."""
    quality, cost = names
    kind = stage.quality(quality)
    statistics, costs = torch.empty_like(kind.final).double(), torch.empty(len(kind.final)).double()
    of_all = float(stage.curve(quality, cost).threshold[index])
    everything = torch.cat(parts)
    for part in parts:
        threshold = of_all
        if len(parts) > 1:
            others = stage.of(everything[~torch.isin(everything, part)])
            curve = others.curve(quality, cost)
            with contextlib.suppress(AimNotReachableError):
                threshold = float(curve.threshold[fit_threshold(curve, aim, value)])
        answer, spent = stage.of(part).each(threshold, quality, cost)
        statistics[part], costs[part] = answer.double(), spent
    return _Answers(statistics, kind, costs)


def _difference(
    answer: _Answers, best: _Answers, by_cost: bool, level: float, seed: int
) -> PairedDifference:
    if by_cost:
        return paired_difference(answer.costs, best.costs, level)
    if answer.kind.is_mean:
        return paired_difference(answer.statistics[:, 0], best.statistics[:, 0], level)
    return resampled_difference(answer.statistics, best.statistics, answer.kind.score, level, seed)


def _parts(num_samples: int, seed: int) -> list[Tensor]:
    """The samples at random in at most `FOLDS` parts."""
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    return list(order.chunk(min(FOLDS, num_samples)))


def _num_samples(candidates: Mapping[str, Candidate]) -> int:
    counts = {name: len(candidate.stage.confidence) for name, candidate in candidates.items()}
    if not counts:
        raise ValueError("there are no systems to choose from")
    if len(set(counts.values())) > 1:
        raise ValueError(f"systems are compared on the same samples, but they have {counts}")
    return next(iter(counts.values()))
