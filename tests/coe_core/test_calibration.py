"""Trade-off curves against a loop over thresholds, aims against search, the guarantee by trials."""

import json
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from coe_core import (
    AimNotReachableError,
    OperatingPoint,
    controlled_threshold,
    corpus_trade_off_curve,
    fit_threshold,
    trade_off_curve,
)

AIMS = ["best", "macs", "latency", "accuracy_drop", "accuracy"]

# Confidences on a coarse grid, so ties are common; qualities right, wrong, or in between.
samples = st.lists(
    st.tuples(
        st.integers(0, 5).map(lambda x: x / 5),
        st.sampled_from([0.0, 1.0, 0.3]),
        st.sampled_from([0.0, 1.0, 0.6]),
        st.sampled_from([5.0, 10.0, 30.0]),
    ),
    min_size=1,
    max_size=25,
)


def curve_of(rows, delegator_cost=2.0):
    return trade_off_curve(*torch.tensor(rows).T[:3], delegator_cost, torch.tensor(rows).T[3])


def loop(rows, threshold, delegator_cost=2.0):
    """Exit rate, quality and cost at one threshold, sample by sample."""
    exits = [confidence >= threshold for confidence, *_ in rows]
    quality = [r if e else x for e, (_, r, x, _) in zip(exits, rows, strict=True)]
    cost = [delegator_cost + (0 if e else c) for e, (*_, c) in zip(exits, rows, strict=True)]
    n = len(rows)
    return sum(exits) / n, sum(quality) / n, sum(cost) / n


@given(samples)
def test_curve_is_the_loop_at_every_threshold(rows):
    curve = curve_of(rows)
    stored = torch.tensor(rows).T[0]
    thresholds = [math.inf, *sorted(set(stored.tolist()), reverse=True)]
    assert curve.threshold.tolist() == thresholds
    for i, threshold in enumerate(thresholds):
        rounded = [
            (confidence, *rest)
            for confidence, (_, *rest) in zip(stored.tolist(), rows, strict=True)
        ]
        point = [float(array[i]) for array in curve[1:]]
        assert point == pytest.approx(loop(rounded, threshold), abs=1e-6)


def test_ties_leave_together():
    curve = trade_off_curve(torch.tensor([0.5, 0.9, 0.5]), torch.zeros(3), torch.ones(3), 1.0, 9.0)
    assert curve.threshold.tolist() == pytest.approx([math.inf, 0.9, 0.5])
    assert curve.exit_rate.tolist() == pytest.approx([0, 1 / 3, 1])


def test_thresholds_reproduce_the_exits_of_inference():
    confidences = torch.rand(200, generator=torch.manual_seed(0))
    curve = trade_off_curve(confidences, torch.zeros(200), torch.ones(200), 1.0, 9.0)
    for threshold, rate in zip(curve.threshold.tolist(), curve.exit_rate.tolist(), strict=True):
        assert (confidences >= threshold).double().mean().item() == pytest.approx(rate)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_one_sample_and_gradients(dtype):
    curve = trade_off_curve(
        torch.tensor([0.5], dtype=dtype, requires_grad=True),
        torch.zeros(1, dtype=dtype),
        torch.ones(1, dtype=dtype),
        1,
        9,
    )
    assert curve.quality.tolist() == [1, 0]
    assert curve.cost.tolist() == [10, 1]
    assert {array.dtype for array in curve} == {torch.float64}
    assert not curve.threshold.requires_grad


def test_all_exits_cost_exactly_the_delegator():
    costs = 1e8 * torch.rand(10_001, generator=torch.manual_seed(0))
    zeros = torch.zeros(10_001)
    curve = trade_off_curve(costs, zeros, zeros, 3e7, costs)
    assert curve.cost[-1].item() == 3e7
    assert fit_threshold(curve, "macs", 3e7) == len(curve.cost) - 1


@pytest.mark.parametrize("name", ["confidence", "rough_quality", "expert_quality", "expert_cost"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_an_error(name, bad):
    arrays = {
        "confidence": torch.rand(3),
        "rough_quality": torch.ones(3),
        "expert_quality": torch.ones(3),
        "expert_cost": torch.ones(3),
    }
    arrays[name][1] = bad
    with pytest.raises(ValueError, match=f"{name} holds 1 values that are not finite of 3"):
        trade_off_curve(**arrays, delegator_cost=1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_costs_that_are_not_finite_are_an_error(bad):
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="delegator_cost must be finite"):
        trade_off_curve(ones, ones, ones, bad, 1.0)
    with pytest.raises(ValueError, match="expert_cost holds 2 values that are not finite of 2"):
        trade_off_curve(ones, ones, ones, 1.0, bad)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["rough_quality", "expert_quality", "expert_cost"])
def test_shapes_that_disagree_are_an_error(name):
    arrays = dict.fromkeys(
        ["confidence", "rough_quality", "expert_quality", "expert_cost"], torch.ones(3)
    )
    with pytest.raises(ValueError, match=rf"{name} has shape \(2,\), but there are 3 samples"):
        trade_off_curve(**{**arrays, name: torch.ones(2)}, delegator_cost=1.0)


def test_no_samples_are_an_error():
    none = torch.zeros(0)
    with pytest.raises(ValueError, match="no samples to calibrate on"):
        trade_off_curve(none, none, none, 1.0, 1.0)
    with pytest.raises(ValueError, match="no samples to calibrate on"):
        controlled_threshold(none, none, none, 0.1)


# fit_threshold


def search(curve, aim, value):
    """All points that reach the aim, the best first: by the aim's order, then by the other."""
    quality, cost = curve.quality.tolist(), curve.cost.tolist()
    allowed = {
        "best": lambda q, c: True,
        "macs": lambda q, c: c <= value + 1e-9,
        "latency": lambda q, c: c <= value + 1e-9,
        "accuracy_drop": lambda q, c: q >= quality[0] - value - 1e-9,
        "accuracy": lambda q, c: q >= value - 1e-9,
    }[aim]
    rank = (lambda q, c: (c, -q)) if aim.startswith("accuracy") else (lambda q, c: (-q, c))
    points = [(q, c) for q, c in zip(quality, cost, strict=True) if allowed(q, c)]
    return sorted(tuple(round(x, 9) for x in rank(q, c)) for q, c in points)


@pytest.mark.parametrize("aim", AIMS)
@given(rows=samples, fraction=st.floats(0, 1))
def test_every_aim_is_the_best_by_search(aim, rows, fraction):
    curve = curve_of(rows)
    span = {"macs": curve.cost, "latency": curve.cost, "accuracy": curve.quality}.get(aim)
    if span is None:
        value = fraction  # of accuracy_drop; "best" does not look
    else:
        value = float(span.min() + fraction * (span.max() - span.min()))
    expected = search(curve, aim, value)
    assume(expected)
    i = fit_threshold(curve, aim, None if aim == "best" else value)
    quality, cost = float(curve.quality[i]), float(curve.cost[i])
    reached = (cost, -quality) if aim.startswith("accuracy") else (-quality, cost)
    assert reached == pytest.approx(expected[0], abs=1e-8)


def example_curve():
    return trade_off_curve(
        torch.tensor([0.9, 0.8, 0.6, 0.4]),
        torch.tensor([1.0, 1.0, 0.0, 0.0]),
        torch.tensor([1.0, 0.0, 1.0, 1.0]),
        1.0,
        8.0,
    )


def test_aims_by_hand():
    curve = example_curve()
    assert curve.quality.tolist() == [0.75, 0.75, 1.0, 0.75, 0.5]
    assert curve.cost.tolist() == [9, 7, 5, 3, 1]
    assert fit_threshold(curve, "best") == 2
    assert fit_threshold(curve, "macs", 4.0) == 3
    assert fit_threshold(curve, "latency", 100.0) == 2
    assert fit_threshold(curve, "accuracy_drop", 0.0) == 3
    assert fit_threshold(curve, "accuracy_drop", 0.25) == 4
    assert fit_threshold(curve, "accuracy_drop", -0.25) == 2  # better than without exits
    assert fit_threshold(curve, "accuracy", 0.8) == 2


def test_equals_are_broken_towards_the_cheaper():
    curve = trade_off_curve(torch.rand(5), torch.ones(5), torch.ones(5), 1.0, 8.0)
    assert fit_threshold(curve, "best") == 5
    assert curve.exit_rate[5] == 1


def test_a_budget_below_the_delegator_cannot_be_reached():
    with pytest.raises(
        AimNotReachableError, match=r"a mean cost of 0\.5 is below the delegator's own 1, which"
    ):
        fit_threshold(example_curve(), "macs", 0.5)


@pytest.mark.parametrize(("aim", "value"), [("accuracy", 1.2), ("accuracy_drop", -0.45)])
def test_a_quality_above_the_best_cannot_be_reached(aim, value):
    with pytest.raises(
        AimNotReachableError,
        match=r"quality 1\.2 is not reached at any threshold; .* 1 at exit rate 0\.500",
    ):
        fit_threshold(example_curve(), aim, value)


@pytest.mark.parametrize("aim", AIMS[1:])
@pytest.mark.parametrize("value", [None, math.nan])
def test_an_aim_without_its_value_is_an_error(aim, value):
    with pytest.raises(ValueError, match=f"aim '{aim}' needs a value"):
        fit_threshold(example_curve(), aim, value)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_aim_is_an_error():
    with pytest.raises(ValueError, match="unknown aim 'flops'; known: 'best', 'macs', 'latency'"):
        fit_threshold(example_curve(), "flops", 1.0)


# OperatingPoint


def point(threshold, **more):
    fields = {
        "name": "fast",
        "threshold": threshold,
        "aim": "macs",
        "value": 2e8,
        "exit_rate": 0.26,
        "quality": 0.8,
        "cost": 1.9e8,
        "cost_unit": "macs",
        "num_samples": 5000,
        "data": "validation",
        "date": "2026-01-01",
    }
    return OperatingPoint(**{**fields, **more})


@pytest.mark.parametrize("threshold", [0.7, 1 / 3, 0.0, math.inf, -math.inf])
@pytest.mark.parametrize("more", [{}, {"guarantee": 0.95}, {"aim": "best", "value": None}])
def test_operating_points_survive_json(threshold, more):
    original = point(threshold, **more)
    text = json.dumps(original.to_dict(), allow_nan=False)
    assert OperatingPoint.from_dict(json.loads(text)) == original


def test_fields_that_do_not_fit_are_an_error():
    fields = point(0.5).to_dict()
    del fields["date"]
    with pytest.raises(ValueError, match=r"missing fields \['date'\], unknown fields \['when'\]"):
        OperatingPoint.from_dict({**fields, "when": "now"})


def test_a_point_without_a_guarantee_may_leave_it_out():
    fields = point(0.5).to_dict()
    del fields["guarantee"]
    assert OperatingPoint.from_dict(fields) == point(0.5)


# controlled_threshold


def population(n, generator, grid=None):
    """Confidence u in [0, 1]; the expert is right, and the rough prediction wrong at .3 (1 - u).

    So the drop at threshold t is .15 (1 - t)^2, which passes .05 at t = 1 - sqrt(1/3).
    """
    confidence = torch.rand(n, generator=generator)
    if grid:
        confidence = (confidence * grid).floor() / grid
    wrong = torch.rand(n, generator=generator) < 0.3 * (1 - confidence)
    return confidence, 1 - wrong.float(), torch.ones(n)


def true_drop(threshold, grid):
    if grid is None:
        return 0.15 * (1 - min(threshold, 1.0)) ** 2
    levels = [level / grid for level in range(grid)]
    return sum(0.3 * (1 - level) / grid for level in levels if level >= threshold)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [None, 16])
def test_the_guarantee_holds_over_calibration_sets_and_is_not_vacuous(grid):
    generator, trials = torch.manual_seed(0), 400
    drops = [
        true_drop(controlled_threshold(*population(400, generator, grid), 0.05, 0.9), grid)
        for _ in range(trials)
    ]
    broken = sum(drop > 0.05 for drop in drops) / trials
    assert broken <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / trials)
    assert sum(drops) / trials > 0.02  # much of the allowed drop is used
    if grid is None:
        assert broken > 0.02  # the level is not far below the one asked for


@given(st.integers(0, 10**6), st.floats(0.02, 0.3), st.floats(0.5, 0.99))
def test_the_bound_is_the_exact_binomial_test(seed, drop, guarantee):
    confidence, rough, expert = population(120, torch.manual_seed(seed), grid=8)
    threshold = controlled_threshold(confidence, rough, expert, drop, guarantee)

    def passes(threshold):
        harmful = int(((rough == 0) & (expert == 1) & (confidence >= threshold)).sum())
        tail = sum(
            math.comb(120, i) * drop**i * (1 - drop) ** (120 - i) for i in range(harmful + 1)
        )
        return tail <= 1 - guarantee

    levels = [math.inf, *sorted(set(confidence.tolist()), reverse=True)]
    good = [level for level in levels if passes(level)]
    assert threshold == (min(good) if good else math.inf)


def test_too_few_samples_guarantee_nothing():
    assert controlled_threshold(torch.rand(10), torch.ones(10), torch.ones(10), 0.05) == math.inf


def test_harmless_exits_are_all_allowed():
    confidence = torch.rand(200, generator=torch.manual_seed(0))
    wrong_anyway = controlled_threshold(confidence, torch.zeros(200), torch.zeros(200), 0.05)
    assert wrong_anyway == confidence.min().item()


@pytest.mark.parametrize("name", ["drop", "guarantee"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_probabilities_out_of_range_are_an_error(name, value):
    settings = {"drop": 0.1, "guarantee": 0.9, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\), got {value}"):
        controlled_threshold(torch.rand(5), torch.ones(5), torch.ones(5), **settings)


@pytest.mark.parametrize("name", ["rough_quality", "expert_quality"])
def test_qualities_between_right_and_wrong_are_an_error(name):
    arrays = {"rough_quality": torch.ones(2), "expert_quality": torch.ones(2)}
    arrays[name] = torch.tensor([1.0, 0.5])
    with pytest.raises(ValueError, match=rf"{name} must be 1 \(right\) or 0 \(wrong\)"):
        controlled_threshold(torch.rand(2), **arrays, drop=0.1)


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_disagree_guarantee_nothing():
    with pytest.raises(ValueError, match=r"rough_quality has shape \(3, 1\), but there are 3 samp"):
        controlled_threshold(torch.rand(3), torch.ones(3, 1), torch.ones(3), 0.1)


@given(samples)
def test_corpus_curve_is_the_loop_at_every_threshold(rows):
    """A quality that is no mean: the ratio of two sums."""
    table = torch.tensor(rows, dtype=torch.float64)
    confidence, rough, expert, cost = table.T
    words = torch.arange(1, len(rows) + 1, dtype=torch.float64)
    counts = [torch.stack([right * words, words + right], 1) for right in (rough, expert)]

    def ratio(sums):
        return sums[:, 0] / sums[:, 1]

    curve = corpus_trade_off_curve(confidence, *counts, ratio, 2.0, cost)
    assert curve.threshold.tolist() == [math.inf, *sorted(set(confidence.tolist()), reverse=True)]
    for threshold, exit_rate, quality, spent in zip(*curve, strict=True):
        exits = confidence >= threshold
        chosen = torch.where(exits[:, None], *counts).sum(0, keepdim=True)
        assert float(exits.double().mean()) == pytest.approx(float(exit_rate))
        assert float(ratio(chosen)) == pytest.approx(float(quality))
        assert 2.0 + float((cost * ~exits).mean()) == pytest.approx(float(spent))


@pytest.mark.usefixtures("unchecked")
def test_corpus_curve_refuses():
    confidence, counts = torch.rand(3), torch.ones(3, 2)

    def curve(one=counts, other=counts, quality=lambda sums: sums[:, 0]):
        return corpus_trade_off_curve(confidence, one, other, quality, 1.0, 1.0)

    with pytest.raises(
        ValueError, match=r"rough_statistics \(2, 2\) and expert_statistics \(3, 2\)"
    ):
        curve(counts[:2])
    with pytest.raises(ValueError, match="a row for each of 3 samples"):
        curve(counts[:2], counts[:2])
    with pytest.raises(ValueError, match="2 values that are not finite"):
        curve(other=counts * torch.tensor([[1.0], [math.nan], [1.0]]))
    with pytest.raises(ValueError, match=r"quality gave \(\) for 4 operating points"):
        curve(quality=lambda sums: sums.sum())
