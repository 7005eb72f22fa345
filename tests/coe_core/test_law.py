"""The law: its parts add up exactly to what a collaboration gains."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import gain_law


def test_worked_by_hand():
    # Sample 0: only expert 0 is right, selected. 1: only 1 is right, 0 selected. 2: both. 3: none, but
    # the pooled prediction is. 4: only expert 1 is right, selected.
    quality = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0], [0, 1]])
    selection = torch.tensor([[2.0, 1], [2, 1], [1, 2], [2, 1], [1, 2]])
    final = torch.tensor([1.0, 0, 1, 1, 1])
    single = torch.tensor([1.0, 1, 1, 0, 0])
    law = gain_law(quality, selection, final, single)
    assert law.routable == pytest.approx(3 / 5)
    assert law.routed_right == pytest.approx(2 / 3)
    assert law.gain == pytest.approx((0.5 + 0 + 0 + 0.5) / 5)
    assert law.loss == pytest.approx(0.5 / 5)
    assert law.pooling == pytest.approx(1 / 5)
    assert law.specialising == pytest.approx(2.5 / 5 - 3 / 5)
    assert law.above_mean_expert == pytest.approx(4 / 5 - 2.5 / 5)
    assert law.above_single == pytest.approx(4 / 5 - 3 / 5)
    assert law.shown == (
        "routable 60.0%, of them routed right 66.7%; specialists gain +20.0, wrong routes cost 10.0, "
        "pooling +20.0: +30.0 over the mean expert, which is -10.0 beside the single network: +20.0 over it"
    )


@given(st.integers(1, 40), st.integers(1, 6), st.booleans(), st.integers(0, 2**31))
def test_the_parts_add_up(n, k, graded, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        drawn = torch.rand(shape, generator=generator)
        return drawn if graded else (drawn > 0.5).float()

    quality, final, single = draw(n, k), draw(n), draw(n)
    selection = torch.randn(n, k, generator=generator)
    law = gain_law(quality, selection, final, single)
    assert law.above_mean_expert == pytest.approx(float(final.mean() - quality.mean()), abs=1e-6)
    assert law.above_single == pytest.approx(float(final.mean() - single.mean()), abs=1e-6)
    assert law.gain >= 0
    if not graded:
        assert law.loss >= 0
    order = torch.randperm(k, generator=generator)  # who an expert is does not matter
    moved = gain_law(quality[:, order], selection[:, order], final, single)
    assert moved[:5] == pytest.approx(law[:5], abs=1e-6)


def test_one_expert_has_nothing_to_route():
    law = gain_law(torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1))
    assert law[:5] == (0, 0, 0, 0, 0)
    assert law.specialising is None
    assert law.above_single is None
    assert "single" not in law.shown


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    with pytest.raises(ValueError, match="no law of 0 samples and 2 experts"):
        gain_law(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(
        ValueError, match=r"final_quality has shape \(2,\), but there are 3 samples"
    ):
        gain_law(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="single_quality has shape"):
        gain_law(torch.zeros(3, 2), torch.zeros(3, 2), None, torch.zeros(2))
    with pytest.raises(ValueError, match="expert_quality is not finite everywhere"):
        gain_law(torch.full((3, 2), math.nan), torch.zeros(3, 2))
