"""Exit rules: by confidence, or by what an expert is expected to gain."""

import json

import pytest
import torch

from coe_core import (
    ExitRule,
    OperatingPoint,
    confidence,
    controlled_threshold,
    fit_gain,
    trade_off_curve,
)


def planted(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Four classes, two experts; the expert helps with classes 0 and 1 only, whatever the confidence."""
    generator = torch.Generator().manual_seed(seed)
    rough = 2 * torch.randn(n, 4, generator=generator)
    helped = rough.argmax(1) < 2
    chance = torch.rand(n, generator=generator)
    rough_right = chance < 0.5
    final_right = torch.where(helped, chance < 0.9, chance < 0.5)
    selection = torch.randn(n, 2, generator=generator)
    return {
        "rough_logits": rough,
        "selection_logits": selection,
        "rough_right": rough_right.float(),
        "final_right": final_right.float(),
    }


@pytest.mark.slow
def test_the_planted_gain_is_found_and_calibrated():
    rule, new = fit_gain(**planted(4000)), planted(4000, seed=1)
    gain = rule.model.gain(new["rough_logits"], new["selection_logits"])
    helped = new["rough_logits"].argmax(1) < 2
    assert float(gain[helped].mean()) == pytest.approx(0.4, abs=0.04)
    assert float(gain[~helped].mean()) == pytest.approx(0, abs=0.03)
    assert gain[helped].min() > gain[~helped].max()


@pytest.mark.slow
def test_exits_of_little_gain_cost_less_than_exits_of_much_confidence():
    rule, new = fit_gain(**planted(4000)), planted(4000, seed=1)
    rights = new["rough_right"], new["final_right"], 0.0, 1.0
    quality = {}
    for kind, by in {"gain": rule, "max_probability": ExitRule()}.items():
        curve = trade_off_curve(
            by.confidence(new["rough_logits"], new["selection_logits"]), *rights
        )
        quality[kind] = float(curve.quality[(curve.exit_rate - 0.45).abs().argmin()])
    assert quality["gain"] > quality["max_probability"] + 0.05


def test_an_expert_that_harms_is_told_too():
    data = planted(2000)
    data["rough_right"], data["final_right"] = data["final_right"], data["rough_right"]
    rule = fit_gain(**data)
    by = rule.confidence(data["rough_logits"], data["selection_logits"])
    helped = data["rough_logits"].argmax(1) < 2
    assert float(by[helped].mean()) > 0.65  # above 1/2: better not to run it
    assert 0 <= float(by.min()) <= float(by.max()) <= 1


def test_nothing_to_gain():
    data = planted(100)
    data["final_right"] = data["rough_right"]
    by = fit_gain(**data).confidence(data["rough_logits"], data["selection_logits"])
    assert by.tolist() == pytest.approx([0.5] * 100, abs=0.02)


@pytest.mark.slow
def test_the_guarantee_holds_on_samples_that_the_rule_was_not_fitted_on():
    """With thresholds from other samples than the rule's, a drop is exceeded as rarely as is promised."""
    rule, new = fit_gain(**planted(200)), planted(20_000, seed=999)
    by = rule.confidence(new["rough_logits"], new["selection_logits"])
    harmful = new["final_right"] > new["rough_right"]
    exceeded, trials, ended = 0, 60, 0.0
    for seed in range(trials):
        data = planted(400, seed=seed + 1)
        confidence = rule.confidence(data["rough_logits"], data["selection_logits"])
        rights = data["rough_right"], data["final_right"]
        threshold = controlled_threshold(confidence, *rights, drop=0.05, guarantee=0.9)
        exits = by >= threshold
        ended += float(exits.float().mean()) / trials
        exceeded += bool((exits & harmful).float().mean() > 0.05)
    assert exceeded <= 0.2 * trials
    assert ended > 0.4  # half of the samples gain nothing from an expert


@pytest.mark.parametrize("kind", ["max_probability", "margin", "entropy"])
def test_the_other_kinds_are_the_confidence(kind):
    logits = torch.randn(5, 3)
    assert torch.equal(ExitRule(kind).confidence(logits, logits), confidence(logits, kind))


def test_stored_as_data_and_read_back():
    data = planted(200)
    rule = fit_gain(**data)
    point = OperatingPoint(
        "fast", 0.5, "macs", 1.0, 0.5, 0.8, 1.0, "macs", 9, "d", "2026-01-01", exit_rule=rule
    )
    again = OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict())))
    assert again == point
    assert hash(again.exit_rule) == hash(rule)
    logits = data["rough_logits"], data["selection_logits"]
    assert torch.equal(again.exit_rule.confidence(*logits), rule.confidence(*logits))
    plain = OperatingPoint("a", 0.5, "best", None, 0.5, 0.8, 1.0, "macs", 9, "d", "2026-01-01")
    assert "exit_rule" not in plain.to_dict()  # as older versions wrote it


def test_order_of_the_other_classes_does_not_matter_and_one_class_is_enough():
    rule = fit_gain(**planted(200))
    logits = torch.tensor([[3.0, 1, 0, -1], [3.0, -1, 1, 0]])
    first, second = rule.confidence(logits, torch.zeros(2, 2)).tolist()
    assert first == pytest.approx(second, abs=1e-6)
    zero = torch.zeros(16, 1)
    right = torch.arange(16) % 2
    assert (
        fit_gain(zero, zero, right.float(), torch.ones(16)).confidence(zero, zero).isfinite().all()
    )


def damaged(**changes) -> dict:
    return {**json.loads(json.dumps(fit_gain(**planted(50)).to_dict())), **changes}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "luck"}, "unknown confidence 'luck'"),
        ({"kind": "gain"}, "not an exit rule: it has the fields kind, expected classes"),
        ({"kind": "margin", "mean": []}, "not an exit rule"),
        ({"mean": "x"}, "mean must be a list of numbers"),
        ({"mean": ["x"] * 6}, "mean must be a number"),
        ({"deviation": [0.0] * 6}, "6 numbers with deviations above 0"),
        ({"mean": [0.0] * 5}, "goes by 6 numbers"),
        ({"classes": [[1.0]]}, "classes must be two lists of numbers"),
        ({"classes": [[1.0], []]}, "classes must be two lists of equal length"),
        ({"experts": [["inf"], [0.0]]}, "experts must be finite numbers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_damaged_rules_are_refused(values, message):
    if values.get("kind") is None:
        values = damaged(**values)
    with pytest.raises(ValueError, match=message):
        ExitRule.from_dict(values)


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    with pytest.raises(ValueError, match="has a model of the gain where it goes by gain"):
        ExitRule("gain")
    with pytest.raises(ValueError, match="unknown confidence 'luck'"):
        ExitRule("luck")
    data = planted(50)
    with pytest.raises(ValueError, match="7 samples are too few"):
        fit_gain(**{name: array[:7] for name, array in data.items()})
    with pytest.raises(ValueError, match=r"final_right must be 1 \(right\) or 0"):
        fit_gain(**{**data, "final_right": 2 * torch.ones(50)})
    with pytest.raises(ValueError, match="rough_logits are not finite in 50 of 50"):
        fit_gain(**{**data, "rough_logits": torch.full((50, 4), torch.nan)})
    rule = fit_gain(**data)
    with pytest.raises(ValueError, match="fitted with 4 classes, not 5"):
        rule.confidence(torch.zeros(1, 5), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="fitted with 2 experts, not 3"):
        rule.confidence(torch.zeros(1, 4), torch.zeros(1, 3))
