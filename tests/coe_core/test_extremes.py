"""Numbers at the ends of what integers and floats can hold: the right answer, or one clear line."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from coe_core import (
    CoEError,
    CoTrainingObjective,
    Delegation,
    FamilyLabels,
    Partitioner,
    StageCost,
    TradeOffCurve,
    TwoStage,
    balanced_assignment,
    calibration_error,
    confidence,
    confusion_families,
    demand_from_shares,
    disagreement,
    distil_from_mean,
    ensemble_report,
    even_demand,
    fit_rough_weight,
    fit_threshold,
    group_rows,
    infer,
    js_divergence,
    mean_quality,
    mixture_macs,
    mutual_learning,
    negative_log_likelihood,
    ramped_agreement,
    sample_weights,
    select_expert,
    selection_labels,
    sinkhorn,
    start_as_one,
    trade_off_curve,
)
from coe_core.transport import Assignment, duality_gap

NAN, INF = math.nan, math.inf
MOST = 2**63 - 1
two = torch.zeros(2, 2)


def real(*rows):
    return torch.tensor(rows, dtype=torch.float64)


# Demand


@pytest.mark.parametrize(
    ("demand", "total"),
    [
        ([MOST, MOST], r"1\.84467e\+19"),
        (np.array([2**64 - 1, 3], np.uint64), r"1\.84467e\+19"),  # 2 in 64 bits
        (np.array([127, 127], np.int8), "254"),
        (torch.tensor([2**62, 2**62]), r"9\.22337e\+18"),
        ([10**30, 0], r"1(\.0*)?e\+30"),
        ([1.7e308, 1.7e308], r"3\.4\d*e\+308"),
    ],
)
def test_demand_whose_sum_wraps_around(demand, total):
    with pytest.raises(
        ValueError, match=f"demand sums to {total} over 2 experts.* there are 2 sam"
    ):
        balanced_assignment(np.zeros((2, 2)), demand)


def test_a_sum_that_wraps_around_to_the_number_of_samples():
    with pytest.raises(ValueError, match=r"demand sums to 1\.84467e\+19 over 4 experts"):
        balanced_assignment(np.zeros((2, 4)), [2**62, 2**62, 2**62, 2**62 + 2])
    small = balanced_assignment(np.zeros((260, 3)), np.array([100, 100, 60], np.int8))
    assert np.bincount(small.expert).tolist() == [100, 100, 60]


@pytest.mark.parametrize("demand", [[INF, 0], [NAN, 2], ["1", "1"], [0.5, 1.5], [1j, 1]])
def test_demand_that_counts_nothing(demand):
    with pytest.raises(ValueError, match="demand counts samples, so it must be integers"):
        balanced_assignment(np.zeros((2, 2)), demand)


@given(
    n=st.integers(0, MOST) | st.integers(0, 1000),
    shares=st.lists(st.floats(0, 1e308) | st.integers(0, 9).map(float), min_size=1, max_size=6),
)
@example(n=10**18, shares=[1.0, 1.0, 1.0])
@example(n=MOST, shares=[1.0])
@example(n=MOST, shares=[5e-324, 1e308])
@example(n=2**53 + 1, shares=[1.0, 1.0, 2.0])
def test_any_number_of_samples_is_handed_out_to_the_last(n, shares):
    if sum(shares) == 0:
        shares = [*shares, 1.0]
    demand = demand_from_shares(n, real(*shares)).tolist()
    assert sum(demand) == n
    assert min(demand) >= 0
    largest = shares.index(max(shares))
    assert demand[largest] == max(demand)


def test_shares_by_hand_beyond_the_digits_of_a_float():
    third = (10**18 - 1) // 3
    assert demand_from_shares(10**18, torch.ones(3)).tolist() == [third + 1, third, third]
    assert demand_from_shares(10**18, real(1, 3)).tolist() == [25 * 10**16, 75 * 10**16]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n", [2**63, 10**19, 3.5, NAN, "3", None])
def test_no_number_of_samples(n):
    with pytest.raises((ValueError, TypeError), match=r"whole number|not supported"):
        demand_from_shares(n, torch.ones(3))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: even_demand(2**63, 1), "n must be a whole number from 0 to 9223372036854775807"),
        (lambda: even_demand(3.5, 2), "n must be a whole number .* got 3.5"),
        (lambda: even_demand(3, 2**62), "4611686018427387904 experts do not fit into memory"),
        (lambda: Partitioner(2, "dataset", num_samples=2**58), "do not fit into memory"),
        (lambda: Partitioner(2.5), "num_experts must be a whole number"),
        (lambda: sample_weights(torch.zeros(0).long(), 0, 0.5), "num_experts must be a whole"),
        (lambda: sample_weights(torch.tensor([0.5]), 2, 0.5), "portion must hold the numbers of"),
        (lambda: group_rows(torch.tensor([True]), torch.tensor([0]), -1), "num_experts must be a"),
        (lambda: group_rows(torch.tensor([True]), torch.tensor([0, 1]), 2), "1 exits for 2 selec"),
        (
            lambda: group_rows(torch.tensor([False] * 2), torch.tensor([-(2**62), -(2**63)]), 2),
            r"selected_expert must be in \[0, 2\), but 2 of 2 are not",
        ),
        (lambda: select_expert(torch.zeros(2, 0)), "there are no experts to select from"),
        (lambda: confidence(torch.zeros(2, 0), "entropy"), "logits over 0 classes have no conf"),
        (lambda: calibration_error(two, torch.zeros(2).long(), 10**12), "num_bins must be a whole"),
        (lambda: calibration_error(two * NAN, torch.zeros(2).long()), "log_probs hold NaN in 2 of"),
        (
            lambda: disagreement(torch.full((2, 2, 2), NAN)),
            "logits hold NaN in 2 of 2 samples; the",
        ),
        (
            lambda: ensemble_report(torch.full((1, 2, 2), NAN), torch.tensor([0])),
            "hold NaN in 1 of",
        ),
        (lambda: negative_log_likelihood(two, torch.zeros(2)), "targets must be whole numbers"),
        (lambda: mixture_macs(1e308, [1e308] * 2, 0.0), "must be finite, and so must be their sum"),
        (lambda: mixture_macs(1.0, [INF, 1.0], 1.0), "must be finite, and so must be their sum"),
        (lambda: mixture_macs(NAN, [1.0], 0.5), "delegator_macs must be a number, got nan"),
        (lambda: mixture_macs(10**400, [1.0], 0.5), "delegator_macs must be a number, got 1000"),
        (lambda: mixture_macs(1.0, [10**400], 0.5), "expert_macs must be numbers that a float can"),
        (lambda: mixture_macs(1.0, torch.ones(2, 2), 0.5), "expert_macs must be one number per ex"),
        (lambda: ramped_agreement(0.5, NAN, 0.5), "progress is a part of the training"),
        (lambda: ramped_agreement(0.5, 0.1, 0.5, NAN), "least must be finite and at least 0"),
        (lambda: js_divergence(torch.zeros(2, 2, 0)), "logits over 0 classes have no agreement"),
        (lambda: confusion_families(torch.rand(4, 3), 2), r"confusion must be \[c, c\], got shape"),
        (
            lambda: FamilyLabels(3, 2)(torch.tensor([7])),
            r"targets must be classes in \[0, 3\), got 7",
        ),
        (lambda: start_as_one([]), "a shared start needs experts, but there are none"),
        (lambda: sinkhorn(two, real(NAN, NAN)), "demand sums to nan over 2 experts"),
        (lambda: sinkhorn(two, tolerance=NAN), "tolerance must be at least 0, got nan"),
        (lambda: sinkhorn(torch.zeros(2, 0)), r"log_kernel must be \[n, k\] with k >= 1 experts"),
        (lambda: sinkhorn(real([1e308, -1e308], [0, 0])), "a row of the kernel spreads over inf"),
        (
            lambda: duality_gap(two.numpy(), Assignment(np.array([0, 5]), np.zeros(2), 0.0)),
            "the assignment names experts 0 to 5, but there are 2",
        ),
        (
            lambda: duality_gap(two.numpy(), Assignment(np.array([0, 1]), np.full(2, NAN), 0.0)),
            "whole numbers as experts and finite prices",
        ),
        (lambda: balanced_assignment([[1, 2], [3]]), r"scores must be \[n, k\]: .*inhomogeneous"),
    ],
)
def test_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Labels


@pytest.mark.parametrize("kind", ["soft", "soft_balanced"])
@pytest.mark.parametrize("temperature", [1e-12, 1e-40, 1e-300, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_labels_at_tiny_temperatures_are_the_hard_ones(kind, temperature, dtype):
    evidence = torch.tensor([[3.0, 1, 2], [5, 2, 1000], [1, 2, 1e-4]], dtype=dtype)
    hard = {"soft": "hard", "soft_balanced": "balanced"}[kind]
    labels = selection_labels(evidence, kind, temperature=temperature)
    torch.testing.assert_close(labels, selection_labels(evidence, hard))


def test_ties_stay_ties_at_tiny_temperatures():
    for kind in ("soft", "soft_balanced"):
        labels = selection_labels(real([3, 3], [5, 5]), kind, temperature=1e-320)
        assert labels.tolist() == [[0.5, 0.5]] * 2
    odd = selection_labels(torch.randn(50, 4), "soft_balanced", temperature=1e-320)  # 12.5 each
    torch.testing.assert_close(odd.sum(0), torch.full((4,), 12.5), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["balanced", "soft_balanced", "hard", "soft"])
def test_labels_of_whole_numbers(kind):
    whole = torch.tensor([[3, 1], [5, 2], [0, 1], [0, 7]])
    labels = selection_labels(whole, kind)
    assert labels.dtype == torch.float64
    torch.testing.assert_close(labels, selection_labels(whole.double(), kind))
    assert labels.sum(1).tolist() == pytest.approx([1] * 4)
    assert selection_labels(whole > 2, kind).sum() == pytest.approx(4)
    for wrong in (whole.to(torch.complex64), torch.zeros(2, 0), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"evidence must be (real numbers|\[n, k\])"):
            selection_labels(wrong, kind)


def test_labels_of_huge_evidence():
    huge = real([1e308, -1e308], [5, 2])
    assert selection_labels(huge, "hard").tolist() == [[1, 0], [1, 0]]
    assert selection_labels(huge, "soft")[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="evidence spreads too far"):
        selection_labels(huge, "soft_balanced")
    with pytest.raises(ValueError, match="overflow when summed"):
        selection_labels(huge, "balanced")


# Thresholds


def curve(quality, cost):
    points = len(cost)
    rates = torch.linspace(0, 1, points, dtype=torch.float64)
    thresholds = torch.linspace(2, 1, points, dtype=torch.float64)
    return TradeOffCurve(thresholds, rates, real(*quality), real(*cost))


@pytest.mark.parametrize("scale", [1.0, 1e300, 1.79e308, -1.79e308])
@pytest.mark.parametrize("value", [1e308, 1.79e308, INF])
def test_fit_threshold_with_values_at_the_end_of_floats(scale, value):
    by_quality = curve([scale * 0.5, scale, scale * 0.9], [3, 2, 1])
    best = max(range(3), key=lambda i: float(by_quality.quality[i]))
    assert fit_threshold(by_quality, "best") == best
    assert fit_threshold(by_quality, "macs", value) == best
    assert fit_threshold(by_quality, "accuracy_drop", value) == 2  # all are allowed
    if value >= abs(scale):
        assert fit_threshold(by_quality, "accuracy", -value) == 2
    with pytest.raises(CoEError, match="which every sample pays"):
        fit_threshold(by_quality, "macs", -value)
    by_cost = curve([1.0, 0.9, 0.8], [1.79e308, 1.5e308, 1.7e308])
    assert fit_threshold(by_cost, "accuracy", 0.85) == 1  # not the third, which is not allowed
    assert fit_threshold(by_cost, "accuracy", 0.95) == 0
    assert fit_threshold(by_cost, "macs", 1.6e308) == 1


@pytest.mark.usefixtures("unchecked")
def test_fit_threshold_refuses():
    fine = curve([1.0, 0.5], [2.0, 1.0])
    for wrong in (curve([], []), curve([NAN, 1], [2, 1]), curve([1, 1], [INF, 1])):
        with pytest.raises(ValueError, match="has no best one"):
            fit_threshold(wrong, "best")
    with pytest.raises(ValueError, match="the value of aim 'macs' must be a number, got 10000"):
        fit_threshold(fine, "macs", 10**400)
    with pytest.raises(ValueError, match="the value of aim 'macs' must be a number, got much"):
        fit_threshold(fine, "macs", "much")


def test_costs_and_qualities_that_overflow_when_summed():
    confidences, ones = torch.tensor([0.9, 0.6]), torch.ones(2)
    with pytest.raises(ValueError, match="cost is not finite at 1 of 3 operating points"):
        trade_off_curve(confidences, ones, ones, 0.0, 1.7e308)
    with pytest.raises(ValueError, match="quality is not finite at 1 of 3 operating points"):
        trade_off_curve(confidences, real(1.7e308, 1.7e308), ones, 0.0, 1.0)
    assert trade_off_curve(confidences, ones, ones, 0.0, 8e307).cost.tolist() == [8e307, 4e307, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_rough_weight_of_networks_that_diverged(bad):
    fine, broken, target = torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([0, 1, 0])
    broken[1, 0] = bad
    for logits, name in (((broken, fine), "rough_logits"), ((fine, broken), "expert_logits")):
        with pytest.raises(ValueError, match=f"{name} are not finite in 1 of 3 .* lower learning"):
            fit_rough_weight(*logits, target)


def test_the_rough_weight_of_huge_logits():
    huge = torch.tensor([[3e38, -3e38], [-3e38, 3e38]])
    small = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert fit_rough_weight(huge, small, torch.tensor([1, 0])) == 0  # it is always wrong
    assert fit_rough_weight(huge, small, torch.tensor([0, 1])) > 0
    for target in ([0, 2], [0, -1], [0, -100]):
        with pytest.raises(ValueError, match="1 of 2 targets are outside the 2 classes"):
            fit_rough_weight(small, small, torch.tensor(target))


def test_two_stages_refuse():
    stage = TwoStage(
        torch.rand(2),
        {"accuracy": mean_quality(torch.ones(2), torch.ones(2))},
        {"macs": StageCost(1.0, torch.ones(2))},
    )
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        stage.at(NAN)
    with pytest.raises(ValueError, match="there is no quality 'BLEU'; there are accuracy"):
        stage.at(0.5, "BLEU")
    with pytest.raises(ValueError, match="there is no cost 'ms'; there are macs"):
        stage.curve(cost="ms")


# Agreement, inference, the objective


@pytest.mark.parametrize("term", [js_divergence, mutual_learning, distil_from_mean])
def test_agreement_is_finite_for_all_finite_logits(term):
    logits = torch.tensor([[[3e38, -3e38], [-3e38, 3e38]]], requires_grad=True)
    value = term(logits).sum()
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def delegate(batch):
    return Delegation(batch, confidence(batch), torch.zeros(len(batch), 1))


@pytest.mark.usefixtures("unchecked")
def test_inference_refuses():
    batch = torch.rand(3, 2)
    with pytest.raises(ValueError, match="threshold must be a number, got 10000"):
        infer(delegate, [lambda x: x], batch, 10**400)
    with pytest.raises(ValueError, match="there are no experts; give one at least"):
        infer(lambda x: Delegation(x, confidence(x), x[:, :0]), [], batch, 0.5)
    with pytest.raises(ValueError, match=r"select gave shape \(2,\) for 3 samples"):
        infer(delegate, [lambda x: x], batch, 2.0, select=lambda logits: torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"expert 0 predicts shape \(1,\) for a sample, the rough"):
        infer(delegate, [lambda x: x[:, :1]], batch, 2.0)


def test_the_objective_at_a_tiny_temperature():
    objective = CoTrainingObjective(2, labels="soft", temperature=5e-324)
    loss = objective(torch.rand(3), torch.rand(3, 2), torch.rand(3, 2), torch.rand(3, 2), 0.5)
    assert loss.total.isfinite()
    assert set(loss.labels.flatten().tolist()) == {0, 1}
