"""Ensembles against their definitions, by hand and by loops; any logits; every refusal."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core.ensembling import (
    calibration_error,
    disagreement,
    ensemble_log_probs,
    ensemble_report,
    negative_log_likelihood,
)

KINDS = ["mean_logits", "mean_probability", "max_probability", "geometric_mean"]


def logits_of(n, s, c, seed=0, scale=3.0):
    return scale * torch.randn(n, s, c, dtype=torch.float64, generator=torch.manual_seed(seed))


def normalised(p):
    return p / p.sum(-1, keepdim=True)


DEFINITIONS = {
    "mean_logits": lambda z: z.mean(1).softmax(-1),
    "mean_probability": lambda z: z.softmax(-1).mean(1),
    "max_probability": lambda z: normalised(z.softmax(-1).amax(1)),
    "geometric_mean": lambda z: normalised(z.softmax(-1).prod(1) ** (1 / z.shape[1])),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", [1, 2, 5])
def test_each_kind_by_its_definition(kind, s):
    logits = logits_of(7, s, 4)
    torch.testing.assert_close(ensemble_log_probs(logits, kind).exp(), DEFINITIONS[kind](logits))


def test_the_geometric_mean_is_the_mean_of_logits():
    logits = logits_of(50, 3, 6)
    by_logits = DEFINITIONS["mean_logits"](logits)
    torch.testing.assert_close(DEFINITIONS["geometric_mean"](logits), by_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_for_confident_logits(kind):
    logits = torch.tensor([[[3e4, 0.0, -3e4], [-3e4, 0.0, 3e4]]])
    assert ensemble_log_probs(logits, kind).isfinite().all()
    assert ensemble_log_probs(logits.half(), kind).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), s=st.integers(1, 4), c=st.integers(1, 5))
def test_invariances(kind, seed, s, c):
    logits = logits_of(3, s, c, seed)
    joined = ensemble_log_probs(logits, kind)
    torch.testing.assert_close(joined.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(ensemble_log_probs(logits.flip(1), kind), joined)
    torch.testing.assert_close(ensemble_log_probs(logits + logits[..., :1], kind), joined)
    torch.testing.assert_close(ensemble_log_probs(logits.repeat(1, 2, 1), kind), joined)


def test_no_samples_are_joined_to_none():
    assert ensemble_log_probs(torch.zeros(0, 2, 3)).shape == (0, 3)


def test_gradient_reaches_all_networks():
    logits = logits_of(4, 3, 5).requires_grad_()
    ensemble_log_probs(logits, "mean_probability")[:, 0].sum().backward()
    assert (logits.grad.abs().sum((0, 2)) > 0).all()


def test_likelihood_is_cross_entropy():
    logits, targets = logits_of(9, 1, 4)[:, 0], torch.randint(4, (9,))
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(negative_log_likelihood(logits.log_softmax(-1), targets), expected)


def test_calibration_error_by_a_loop():
    log_probs, targets = logits_of(300, 1, 5)[:, 0].log_softmax(-1), torch.randint(5, (300,))
    top, answer = log_probs.exp().max(1)
    expected = 0.0
    for b in range(10):
        inside = (top > b / 10) & (top <= (b + 1) / 10)
        if inside.any():
            accuracy = (answer == targets)[inside].double().mean()
            expected += float(inside.double().mean() * (accuracy - top[inside].mean()).abs())
    assert calibration_error(log_probs, targets, 10) == pytest.approx(expected)


def test_calibration_error_of_certainty_is_the_error_rate():
    log_probs = torch.tensor([[0.0, -math.inf]]).repeat(4, 1)
    assert calibration_error(log_probs, torch.tensor([0, 0, 0, 1])) == 0.25
    assert calibration_error(log_probs, torch.zeros(4, dtype=torch.long)) == 0


def test_disagreement_by_pairs():
    logits = logits_of(40, 4, 3)
    answers = logits.argmax(-1)
    pairs = [(answers[:, i] != answers[:, j]).double().mean() for i, j in combinations(range(4), 2)]
    assert disagreement(logits) == pytest.approx(float(sum(pairs) / len(pairs)))
    assert disagreement(logits[:, :1]) == 0
    assert disagreement(logits[:, :1].repeat(1, 3, 1)) == 0


def test_report_of_a_single_network_is_its_own():
    report = ensemble_report(logits_of(30, 1, 4), torch.randint(4, (30,)))
    assert report.member_accuracy == [report.accuracy] == [report.any_right]
    assert report.member_nll == pytest.approx([report.nll])
    assert report.member_calibration_error == pytest.approx([report.calibration_error])
    assert report.disagreement == 0


@pytest.mark.parametrize("kind", ["mean_probability", "mean_logits"])
def test_the_ensemble_is_likelier_than_its_mean_member(kind):
    """Jensen: for both means, log p of the ensemble is at least the members' mean log p."""
    report = ensemble_report(logits_of(50, 4, 6), torch.randint(6, (50,)), kind)
    assert report.nll <= sum(report.member_nll) / 4 + 1e-9
    assert report.any_right >= max(report.member_accuracy)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble_log_probs(torch.zeros(2, 0, 3)), r"logits of 0 networks over 3 classes"),
        (
            lambda: ensemble_log_probs(torch.zeros(2, 1, 3), "mean"),
            r"'mean'; there are mean_logits,",
        ),
        (lambda: disagreement(torch.zeros(0, 2, 3)), r"0 samples, 2 networks, 3 classes"),
        (
            lambda: negative_log_likelihood(torch.zeros(2, 3), torch.tensor([0, 3])),
            r"1 of 2 targets are outside the 3 classes",
        ),
        (
            lambda: negative_log_likelihood(torch.zeros(2, 3), torch.tensor([0])),
            r"shape \(1,\), but there are 2 samples",
        ),
        (
            lambda: calibration_error(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
            r"no samples",
        ),
        (
            lambda: calibration_error(torch.zeros(1, 3), torch.tensor([0]), num_bins=0),
            r"num_bins must be at least 1, got 0",
        ),
        (
            lambda: ensemble_report(torch.zeros(2, 2, 3), torch.tensor([0, 1, 2])),
            r"shape \(3,\), but there are 2 samples",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
