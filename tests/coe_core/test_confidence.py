"""How sure a rough prediction is: by hand, in the unit interval, invariant."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import confidence


def test_confidence_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert confidence(logits).item() == pytest.approx(0.5)
    assert confidence(logits, "margin").item() == pytest.approx(0.2)
    assert confidence(logits, "entropy").item() == pytest.approx(
        1 - entropy / math.log(3), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["max_probability", "margin", "entropy"])
@given(n=st.integers(0, 5), c=st.integers(1, 6), seed=st.integers(0, 999), scale=st.floats(0, 1e4))
def test_confidence_is_in_the_unit_interval_and_invariant(kind, n, c, seed, scale):
    logits = scale * torch.randn(n, c, dtype=torch.float64, generator=torch.manual_seed(seed))
    confidences = confidence(logits, kind)
    assert confidences.dtype == torch.float64
    assert ((confidences >= 0) & (confidences <= 1 + 1e-12)).all()
    torch.testing.assert_close(confidence(logits.flip(1) + 3, kind), confidences)
    for dtype in (torch.float16, torch.bfloat16):
        assert confidence(logits.to(dtype), kind).isfinite().all()


@pytest.mark.parametrize("kind", ["max_probability", "margin", "entropy"])
def test_confidence_of_a_single_class_and_of_certainty_is_one(kind):
    assert confidence(torch.tensor([[3.0]]), kind).tolist() == [1.0]
    assert confidence(torch.tensor([[1e4, 0.0, -1e4]]), kind).tolist() == [1.0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("classes", [1, 3])
def test_an_unknown_confidence_is_an_error(classes):
    with pytest.raises(ValueError, match="unknown confidence 'max'; known: 'max_probability', 'ma"):
        confidence(torch.zeros(2, classes), "max")
