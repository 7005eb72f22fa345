"""Selection labels, Sinkhorn's iteration against POT, and the variance of the choice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import (
    NotConvergedError,
    balanced_assignment,
    choice_variance,
    selection_labels,
    sinkhorn,
)

KINDS = ["balanced", "soft_balanced", "hard", "soft"]


def evidence_of(n, k, seed=0):
    return torch.randn(n, k, dtype=torch.float64, generator=torch.manual_seed(seed)) - 2


# selection_labels


def test_labels_by_hand():
    P = torch.tensor([[0.9, 0.8], [0.9, 0.1]]).log()
    assert selection_labels(P).tolist() == [[0, 1], [1, 0]]
    assert selection_labels(P, "hard").tolist() == [[1, 0], [1, 0]]
    soft = torch.tensor([[9 / 17, 8 / 17], [0.9, 0.1]])
    torch.testing.assert_close(selection_labels(P, "soft"), soft)
    squared = torch.tensor([[81 / 145, 64 / 145], [81 / 82, 1 / 82]])
    torch.testing.assert_close(selection_labels(P, "soft", temperature=0.5), squared)


def test_balanced_labels_are_the_balanced_assignment():
    P = evidence_of(13, 4)
    labels = selection_labels(P)
    assert labels.argmax(1).tolist() == balanced_assignment(P).expert.tolist()
    assert labels.sum(0).tolist() == [4, 3, 3, 3]
    demand = torch.tensor([1, 2, 3, 7])
    assert selection_labels(P, demand=demand).sum(0).tolist() == demand.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("demand", [None, [1.5, 2.5, 9.0]])
def test_soft_balanced_labels_are_the_entropic_plan_of_pot(temperature, demand):
    P = evidence_of(13, 3)
    columns = np.full(3, 13 / 3) if demand is None else np.array(demand)
    import ot  # takes two seconds

    oracle = ot.sinkhorn(
        np.ones(13), columns, -P.numpy(), reg=temperature, stopThr=1e-12, numItermax=100_000
    )
    labels = selection_labels(
        P,
        "soft_balanced",
        temperature=temperature,
        demand=None if demand is None else torch.tensor(demand),
    )
    torch.testing.assert_close(labels, torch.from_numpy(oracle), rtol=0, atol=1e-5)


def test_soft_balanced_labels_become_the_hard_ones_as_temperature_falls():
    P = evidence_of(12, 3)
    labels = selection_labels(P, "soft_balanced", temperature=1e-3)
    torch.testing.assert_close(labels, selection_labels(P), rtol=0, atol=1e-3)


def test_soft_balanced_labels_in_half_precision_at_a_low_temperature():
    P = torch.tensor([[-20.0, -10.0], [-10.0, -20.0]], dtype=torch.float16)
    labels = selection_labels(P, "soft_balanced", temperature=1e-4)  # 2e5: no such float16
    assert labels.tolist() == [[0, 1], [1, 0]]
    assert selection_labels(P, "soft", temperature=1e-4).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(0, 12), k=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_labels_are_distributions_that_follow_the_experts(kind, n, k, seed):
    n = n * k if kind == "balanced" else n  # else which experts get one more depends on their order
    P = evidence_of(n, k, seed)
    labels = selection_labels(P, kind)
    assert (labels >= 0).all()
    torch.testing.assert_close(labels.sum(1), torch.ones(n, dtype=torch.float64))
    if "balanced" in kind:
        even = torch.full((k,), n / k, dtype=torch.float64)
        torch.testing.assert_close(labels.sum(0), even, rtol=1e-5, atol=0)
    order = torch.randperm(k, generator=torch.manual_seed(seed))
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(selection_labels(P[:, order], kind), labels[:, order], **close)
    torch.testing.assert_close(selection_labels(P + evidence_of(n, 1, 1), kind), labels, **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_labels_in_any_precision_carry_no_gradient(kind, dtype):
    labels = selection_labels(evidence_of(6, 3).to(dtype).requires_grad_(), kind)
    assert labels.dtype == dtype
    assert not labels.requires_grad
    torch.testing.assert_close(labels.sum(1).float(), torch.ones(6), rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_edges(kind):
    assert selection_labels(torch.zeros(0, 3), kind).shape == (0, 3)
    assert selection_labels(torch.zeros(4, 1), kind).tolist() == [[1.0]] * 4
    assert selection_labels(evidence_of(2, 5), kind).sum(1).tolist() == pytest.approx([1, 1])
    extreme = torch.tensor([[-1e4, 0.0, -5e3], [0.0, -1e4, -1e4], [0.0, -3e3, -1e4]])
    assert selection_labels(extreme, kind).isfinite().all()


def test_all_tied():
    tied = torch.zeros(6, 3)
    assert selection_labels(tied).sum(0).tolist() == [2, 2, 2]
    assert selection_labels(tied, "hard").argmax(1).tolist() == [0] * 6
    for kind in ("soft", "soft_balanced"):
        torch.testing.assert_close(selection_labels(tied, kind), torch.full((6, 3), 1 / 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_evidence_that_is_not_finite_is_an_error(kind, bad):
    with pytest.raises(ValueError, match="evidence holds 1 values that are not finite of 4"):
        selection_labels(torch.tensor([[0.0, bad], [0.0, -1.0]]), kind)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_not_above_zero_is_an_error(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
        selection_labels(torch.zeros(2, 2), "soft", temperature=temperature)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="unknown label kind 'softt'; known: 'balanced', 'soft_b"):
        selection_labels(torch.zeros(2, 2), "softt")


@pytest.mark.parametrize("kind", ["balanced", "soft_balanced"])
def test_a_demand_that_does_not_sum_to_n_is_an_error(kind):
    with pytest.raises(ValueError, match="not balanced: demand sums to 5 over 2 experts"):
        selection_labels(torch.zeros(4, 2), kind, demand=torch.tensor([2, 3]))


# sinkhorn


def test_sinkhorn_by_hand():
    # u_i K_ij v_j with K = [[4, 1], [1, 1]] and unit marginals is [[2, 1], [1, 2]] / 3.
    plan = sinkhorn(torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log(), tolerance=1e-12)
    expected = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(plan, expected)


@given(n=st.integers(1, 15), k=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_sinkhorn_certificate(n, k, seed):
    kernel = evidence_of(n, k, seed)
    demand = n * torch.rand(k, generator=torch.manual_seed(seed)).add(0.1).double()
    demand = demand * n / demand.sum()
    plan = sinkhorn(kernel, demand)
    torch.testing.assert_close(plan.sum(1), torch.ones(n, dtype=torch.float64))
    assert ((plan.sum(0) - demand).abs() <= 1e-6 * n / k * 1.001).all()
    scaling = plan.log() - kernel  # a sum of one number per row and one per column
    residual = scaling - scaling[:1] - scaling[:, :1] + scaling[:1, :1]
    torch.testing.assert_close(residual, torch.zeros_like(residual))


def test_sinkhorn_that_does_not_converge_is_an_error():
    with pytest.raises(
        NotConvergedError,
        match=r"column error of .* after 3 iterations \(tolerance 1e-06\); raise the temperature",
    ):
        sinkhorn(100 * evidence_of(30, 3), max_iterations=3)


@pytest.mark.parametrize("temperature", [1e-3, 1e-2, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("k", [2, 4, 16])
def test_sinkhorn_takes_few_iterations_at_any_temperature(k, temperature):
    P = evidence_of(128, k)
    plan = sinkhorn(P / temperature, max_iterations=100)
    hard = balanced_assignment(P).objective
    # Entropy is worth at most temperature * log k per sample.
    assert abs(float((plan * P).sum()) - hard) <= 128 * temperature * np.log(k) + 1e-3


def test_a_kernel_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="the kernel holds 2 values that are not finite of 4"):
        sinkhorn(torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0]]))


def test_a_demand_of_another_length_is_an_error():
    message = "demand sums to 2 over 1 experts, but there are 2 samples and 2 experts"
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.zeros(2, 2), torch.tensor([2.0]))


def test_a_soft_portion_without_demand_is_an_error():
    with pytest.raises(ValueError, match=r"soft portions need a demand above 0 each, got \[0.0, "):
        sinkhorn(torch.zeros(2, 2), torch.tensor([0.0, 2.0]))


# choice_variance


def test_variance_by_hand():
    P = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]).log()
    torch.testing.assert_close(choice_variance(P), torch.tensor([2.0, 1.0, 0.0]))  # .4 .2 0 / .2


@given(n=st.integers(1, 12), k=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_variance_is_the_normalised_standard_deviation(n, k, seed):
    P = evidence_of(n, k, seed).clamp(max=0)
    spread = P.exp().numpy().std(1)
    variance = choice_variance(P)
    torch.testing.assert_close(variance, torch.from_numpy(spread / spread.mean()))
    torch.testing.assert_close(choice_variance(P.flip(1)), variance)


def test_no_choice_matters():
    assert choice_variance(torch.full((3, 4), -1.0)).tolist() == [1, 1, 1]
    assert choice_variance(torch.tensor([[-1.0], [-2.0]])).tolist() == [1, 1]
    assert choice_variance(torch.zeros(0, 4)).shape == (0,)
    assert choice_variance(torch.full((2, 3), -1e4)).tolist() == [1, 1]


def test_an_impossible_truth_is_no_obstacle():
    P = torch.tensor([[0.0, -torch.inf], [-1.0, -1.0]])
    assert choice_variance(P).tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_variance_of_low_precision_is_finite_and_carries_no_gradient(dtype):
    variance = choice_variance(evidence_of(6, 3).clamp(max=0).to(dtype).requires_grad_())
    assert variance.dtype == torch.float32
    assert not variance.requires_grad
    assert variance.mean().item() == pytest.approx(1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e4])
def test_evidence_that_is_no_log_likelihood_is_an_error(bad):
    with pytest.raises(ValueError, match=r"must be a log-likelihood.*1 of 2 samples break this"):
        choice_variance(torch.tensor([[0.0, bad], [0.0, -1.0]]))
