"""Agreement terms against their definitions, closed-form gradients, and any logits."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import distil_from_mean, js_divergence, mutual_learning, ramped_agreement
from coe_core.agreement import AGREEMENTS, Agreement

TERMS = [js_divergence, mutual_learning, distil_from_mean]


def logits_of(n, s, c, seed=0, scale=3.0):
    return scale * torch.randn(n, s, c, dtype=torch.float64, generator=torch.manual_seed(seed))


def entropy(p):
    return -(p * p.log()).sum(-1)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def gradient(term, logits):
    leaf = logits.clone().requires_grad_()
    term(leaf).sum().backward()
    return leaf.grad


def test_js_of_opposite_certainties_is_log_of_their_number():
    logits = 900 * torch.eye(4).unsqueeze(0)
    torch.testing.assert_close(js_divergence(logits), torch.tensor([math.log(4)]))


def test_js_is_entropy_of_mean_less_mean_of_entropies():
    logits = logits_of(7, 3, 5)
    p = logits.softmax(-1)
    torch.testing.assert_close(js_divergence(logits), entropy(p.mean(1)) - entropy(p).mean(1))


def test_js_gradient_is_the_closed_form():
    logits = logits_of(6, 3, 5)
    p = logits.softmax(-1)
    ratio = (p / p.mean(1, keepdim=True)).log()
    expected = p * (ratio - (p * ratio).sum(-1, keepdim=True)) / 3
    torch.testing.assert_close(gradient(js_divergence, logits), expected)


def test_js_gradient_agrees_with_finite_differences():
    assert torch.autograd.gradcheck(js_divergence, logits_of(3, 2, 4).requires_grad_())


def test_mutual_learning_is_the_double_loop():
    logits = logits_of(6, 4, 5)
    p = logits.softmax(-1)
    expected = sum(kl(p[:, j], p[:, i]) for i in range(4) for j in range(4) if i != j) / 3
    torch.testing.assert_close(mutual_learning(logits), expected)


def test_mutual_learning_stops_the_gradient_of_the_teachers():
    logits = logits_of(6, 4, 5)
    p = logits.softmax(-1)
    expected = (3 * p - (p.sum(1, keepdim=True) - p)) / 3  # d KL(p_j || p_i) / dz_i = p_i - p_j
    torch.testing.assert_close(gradient(mutual_learning, logits), expected)


def test_distillation_is_the_mean_kl_from_the_mean():
    logits = logits_of(6, 4, 5)
    p = logits.softmax(-1)
    mean = p.mean(1)
    expected = sum(kl(mean, p[:, i]) for i in range(4)) / 4
    torch.testing.assert_close(distil_from_mean(logits), expected)


def test_distillation_stops_the_gradient_of_the_mean():
    logits = logits_of(6, 4, 5)
    p = logits.softmax(-1)
    expected = (p - p.mean(1, keepdim=True)) / 4
    torch.testing.assert_close(gradient(distil_from_mean, logits), expected)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e4, 6e4])
def test_finite_for_any_logits(term, dtype, size):
    logits = size * torch.tensor([[[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    leaf = logits.to(dtype).requires_grad_()
    value = term(leaf)
    value.sum().backward()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite().all()
    assert value.item() > 0
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("term", TERMS)
def test_one_network_agrees_with_itself(term):
    logits = logits_of(5, 1, 4)
    torch.testing.assert_close(term(logits), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(gradient(term, logits), torch.zeros_like(logits))


@pytest.mark.parametrize("term", TERMS)
def test_no_samples(term):
    assert term(torch.zeros(0, 3, 4)).shape == (0,)


@pytest.mark.parametrize("term", TERMS)
def test_no_networks_is_an_error(term):
    with pytest.raises(ValueError, match="logits of 0 networks have no agreement"):
        term(torch.zeros(2, 0, 4))


@pytest.mark.parametrize("term", TERMS)
@given(s=st.integers(1, 5), c=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_invariances(term, s, c, seed):
    logits = logits_of(4, s, c, seed)
    value = term(logits)
    assert (value > -1e-12).all()
    shift = torch.arange(s, dtype=torch.float64).reshape(1, s, 1)
    torch.testing.assert_close(term(logits + shift), value)  # row constants
    torch.testing.assert_close(term(logits.flip(1)), value)  # order of the networks
    torch.testing.assert_close(term(logits.flip(2)), value)  # order of the classes
    torch.testing.assert_close(term(logits[:, :1].expand(-1, s, -1)), torch.zeros_like(value))


@given(s=st.integers(1, 5), seed=st.integers(0, 10**6), scale=st.floats(0, 1e4))
def test_js_is_at_most_log_of_the_number_of_networks(s, seed, scale):
    assert (js_divergence(logits_of(4, s, 6, seed, scale)) <= math.log(s) + 1e-12).all()


def test_weight_warms_up_as_published():
    weights = [ramped_agreement(0.5, epoch / 300, 40 / 300) for epoch in range(300)]
    expected = [max(0.5 * e / 40, 0.005) if e < 40 else 0.5 for e in range(300)]
    torch.testing.assert_close(torch.tensor(weights), torch.tensor(expected))
    assert ramped_agreement(0.0, 0.1, 0.5) == 0.0  # off stays off
    assert ramped_agreement(0.3, 0.0, 0.0) == 0.3


@pytest.mark.parametrize(
    ("weight", "warmup", "message"),
    [
        (-1.0, 0.1, "finite and at least 0, got -1"),
        (math.inf, 0.1, "finite and at least 0, got inf"),
        (0.5, 1.5, "warmup is a part of the training, in .0, 1.; got 1.5"),
    ],
)
def test_weight_out_of_range(weight, warmup, message):
    with pytest.raises(ValueError, match=message):
        ramped_agreement(weight, 0.5, warmup)


def test_the_names_of_the_terms():
    assert get_args(Agreement) == ("none", *AGREEMENTS)
