"""Advice from a short training: what is trained, what is compared, and what is refused."""

import json
import math

import pytest

from vision.evaluation.advise import Lead, expected_winner, lead, shortened, small_recipe
from vision.evaluation.study import PointResult
from vision.recipe import load_recipe

SHORT = ["data.train_fraction=0.2", "train.batch_size=32", "num_experts=2", "train.epochs=2"]


@pytest.mark.slow
def test_the_command(cli, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli("advise", "digits", *SHORT, "--seen", 400, "--out", out) == 0
    shown = capsys.readouterr().out
    advice = json.loads((out / "advice.json").read_text())
    assert f"expect the {advice['expected']} to win" in shown
    assert "law: routable " in shown
    assert advice["expected"] in ("collaboration", "cascade", "single network")
    assert advice["num_samples"] == 300  # each half told by what was fitted on the other
    assert [(p["system"], p["exits"]) for p in advice["points"]] == [
        (system, exits) for system in ("CoE", "cascade") for exits in (0.0, 0.1, 0.25)
    ]
    law = advice["law"]
    assert law["gain"] - law["loss"] + law["pooling"] == pytest.approx(law["above_mean_expert"])


def point(system, above, error=0.5, macs=1e6):
    return PointResult(system, 0.0, 0.0, macs, 80.0, above, error)


def winner(*points):
    return expected_winner(list(points), cost=1e6)


def test_who_is_expected_to_win():
    assert winner() == "single network"
    assert winner(point("CoE", None, None)) == "single network"
    assert winner(point("CoE", 0.4), point("cascade", 0.4)) == "single network"
    assert winner(point("CoE", -3.0), point("cascade", 0.6)) == "cascade"
    assert winner(point("CoE", 1.0), point("cascade", 0.6)) == "cascade"
    assert winner(point("CoE", 1.2), point("cascade", 0.6)) == "collaboration"


def test_they_are_compared_at_the_cost_of_one_expert():
    points = [point("CoE", 5.0, macs=1.3e6), point("CoE", 0.1, macs=1.02e6)]
    assert lead(points, "CoE", 1e6) == Lead(0.1, 0.5)
    assert winner(*points) == "single network"
    assert Lead(1.0, 0.5).in_errors == 2
    assert Lead(0.0, 0.0).in_errors == 0
    assert Lead(-1.0, 0.0).in_errors == -math.inf


def test_first_fewer_epochs_then_fewer_images():
    recipe = load_recipe("digits", ["train.epochs=30"])
    assert shortened(recipe, 1000, 100_000).train.epochs == 30
    assert shortened(recipe, 1000, 10_000).train.epochs == 10
    assert shortened(recipe, 1000, 10_000).data.train_fraction == 1
    few = shortened(recipe, 10_000, 20_000)
    assert few.train.epochs == 4
    assert few.data.train_fraction == pytest.approx(0.5)
    assert shortened(recipe, 10_000, 1).data.train_fraction == pytest.approx(64 / 10_000)
    with pytest.raises(ValueError, match="seen must be at least 1, got 0"):
        shortened(recipe, 10, 0)


def test_a_folder_is_tried_with_the_networks_of_traffic_signs(tmp_path):
    recipe = small_recipe(str(tmp_path))
    assert recipe.data.path == str(tmp_path)
    assert recipe.delegator == load_recipe("traffic_signs").delegator
    assert recipe.data.validation >= 0.2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["controls={}"], "has the controls none: an advice compares with the networks"),
        (
            ["delegator=null", "experts=[]", "ensembles={a: {network: small_resnet, s: 2}}"],
            "has no delegator and experts: there is nothing to advise on",
        ),
    ],
)
def test_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        small_recipe("digits", tuple(overrides))


def test_an_unknown_recipe(cli, capsys):
    assert cli("advise", "digts") == 2
    assert "nearest: digits" in capsys.readouterr().err
