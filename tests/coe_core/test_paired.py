"""Two systems on the same samples: against exact counting, statsmodels' published case, and by trials."""

import math
from itertools import product

import pytest
import torch

from coe_core import paired_difference, resampled_difference


def answers(only_first, only_second, both=0, neither=0):
    first = [1.0] * (only_first + both) + [0.0] * (only_second + neither)
    second = [0.0] * only_first + [1.0] * (both + only_second) + [0.0] * neither
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 1), (2, 9), (5, 5), (0, 0)])
def test_mid_p_is_what_counting_every_outcome_gives(only_first, only_second):
    n = only_first + only_second
    more = max(only_first, only_second)
    weight = {1: 1.0, 0: 0.5, -1: 0.0}
    of_one_side = sum(
        weight[(sum(coins) > more) - (sum(coins) < more)] for coins in product((0, 1), repeat=n)
    )
    expected = min(1.0, 2 * of_one_side / 2**n) if only_first != only_second else 1.0
    first, second = answers(only_first, only_second, 4, 3)
    difference = paired_difference(first, second)
    assert difference.p_value == pytest.approx(expected)
    assert difference.mean == pytest.approx((only_first - only_second) / (n + 7))
    assert difference.low <= difference.mean <= difference.high or n == 0
    other = paired_difference(second, first)
    assert other.mean == -difference.mean
    assert other.low == pytest.approx(-difference.high)


def test_published_example():
    """Bentur et al. 2009, as in Fagerland, Lydersen and Laake 2013: 1 and 7 of 21 pairs differ."""
    difference = paired_difference(*answers(1, 7, 1, 12))
    assert difference.p_value == pytest.approx(0.039, abs=0.0005)


def test_the_test_and_the_interval_hold_their_level():
    """Of equal systems (10% each right alone) at most 5% are told apart; the interval holds 0 as often."""
    generator = torch.Generator().manual_seed(0)
    significant, missed = 0, 0
    for _ in range(400):
        draw = torch.rand(200, generator=generator)
        difference = paired_difference((draw < 0.1).float(), (draw > 0.9).float())
        significant += difference.p_value < 0.05
        missed += not difference.low <= 0 <= difference.high
    assert significant / 400 < 0.07
    assert missed / 400 < 0.07


def test_costs():
    first = torch.tensor([1.0, 5.0, 1.0, 1.0, 5.0])
    difference = paired_difference(first, torch.full((5,), 2.0))
    error = float((first - 2).std()) / math.sqrt(5)
    assert difference.mean == pytest.approx(0.6)
    assert difference.high - difference.low == pytest.approx(2 * 1.959964 * error)
    assert difference.p_value == pytest.approx(math.erfc(0.6 / error / math.sqrt(2)))
    certain = paired_difference(torch.full((3,), 7.0), torch.full((3,), 2.0))
    assert certain == (5.0, 5.0, 5.0, 0.0)
    assert paired_difference(torch.full((3,), 7.0), torch.full((3,), 7.0)).p_value == 1


def test_resampling_agrees_with_the_formulas():
    first, second = answers(30, 12, 150, 8)
    exact = paired_difference(first, second)
    drawn = resampled_difference(first[:, None], second[:, None], lambda sums: sums[:, 0] / 200)
    assert drawn.mean == pytest.approx(exact.mean)
    assert drawn.low == pytest.approx(exact.low, abs=0.015)
    assert drawn.high == pytest.approx(exact.high, abs=0.015)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.01)
    again = resampled_difference(first[:, None], second[:, None], lambda sums: sums[:, 0] / 200)
    assert again == drawn


@pytest.mark.parametrize("level", [0, -1, 1.5, math.nan])
def test_levels_that_are_none(level):
    with pytest.raises(ValueError, match=r"the level of a test is in \(0, 1\], such as 0.05; got"):
        paired_difference(torch.ones(2), torch.ones(2), level)


def test_refused(unchecked):
    with pytest.raises(ValueError, match="on the same samples, at least one; got"):
        paired_difference(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="on the same samples, at least one; got"):
        paired_difference(torch.ones(0), torch.ones(0))
    with pytest.raises(ValueError, match="2 of the numbers to be compared are not finite"):
        paired_difference(torch.tensor([math.nan, 1]), torch.tensor([math.inf, 1]))
