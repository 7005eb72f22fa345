"""Two stages by hand, against the curve, and what is charged where nothing can exit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import StageCost, StageQuality, TwoStage, mean_quality, trade_off_curve

CONFIDENCE = torch.tensor([0.9, 0.8, 0.6, 0.4])
ROUGH, FINAL = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])


def stage(without=None, second=(8.0, 8.0, 8.0, 8.0)):
    cost = StageCost(1.0, torch.tensor(second, dtype=torch.float64), without)
    return TwoStage(CONFIDENCE, {"accuracy": mean_quality(ROUGH, FINAL)}, {"macs": cost})


def test_by_hand():
    reached = stage().at(0.7)
    assert (reached.quality, reached.exit_rate, reached.cost) == (1.0, 0.5, {"macs": 5.0})
    assert reached.exits.tolist() == [True, True, False, False]
    assert stage().at(0.0).cost == {"macs": 1.0}
    assert stage().at(float("inf")).cost == {"macs": 9.0}


@pytest.mark.parametrize("left", [0.0, 0.25])
def test_what_is_left_of_the_first_where_nothing_can_exit(left):
    """A cascade needs no first network there, a delegator still selects."""
    assert stage(left).at(float("inf")).cost == {"macs": 8 + left}
    assert stage(left).at(2.0).cost == {"macs": 9.0}  # nothing exits, but something could
    assert stage(left).curve().cost.tolist() == [8 + left, 7, 5, 3, 1]
    assert stage().curve().cost.tolist() == [9, 7, 5, 3, 1]


def test_the_curve_is_that_of_the_qualities():
    plain = trade_off_curve(CONFIDENCE, ROUGH, FINAL, 1.0, 8.0)
    for ours, theirs in zip(stage().curve(), plain, strict=True):
        assert ours.tolist() == theirs.tolist()


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 1), st.integers(1, 9)),
        min_size=1,
        max_size=20,
    )
)
def test_every_point_of_the_curve_is_reached(rows):
    confidences, rough, final, second = torch.tensor(rows, dtype=torch.float64).T
    both = TwoStage(
        confidences / 5,
        {"right": mean_quality(rough, final)},
        {"macs": StageCost(2.0, second, 0.5)},
    )
    curve = both.curve("right", "macs")
    for i, threshold in enumerate(curve.threshold.tolist()):
        reached = both.at(threshold)
        assert reached.quality == pytest.approx(float(curve.quality[i]))
        assert reached.exit_rate == pytest.approx(float(curve.exit_rate[i]), abs=1e-6)
        assert reached.cost["macs"] == pytest.approx(float(curve.cost[i]))


def test_a_quality_of_the_whole_corpus_and_several_costs():
    counts = torch.tensor([[1.0, 2.0], [0.0, 2.0]]), torch.tensor([[2.0, 2.0], [2.0, 3.0]])
    precision = StageQuality(*counts, lambda sums: sums[:, 0] / sums[:, 1])
    both = TwoStage(
        torch.tensor([0.9, 0.6]),
        {"precision": precision, "right": mean_quality(torch.ones(2), torch.zeros(2))},
        {"macs": StageCost(1.0, torch.ones(2)), "ms": StageCost(0.5, torch.tensor([2.0, 4.0]))},
    )
    assert both.at(0.8, "precision").quality == pytest.approx(3 / 5)
    assert both.at(0.8, "right").quality == 0.5
    assert both.at(0.8).cost == {"macs": 1.5, "ms": 2.5}
    assert both.curve(cost="ms").cost.tolist() == [3.5, 2.5, 0.5]
