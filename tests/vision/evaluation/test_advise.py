"""Advice from a short training: what is trained, what is compared, and what is refused."""

import json

import pytest

from vision.evaluation.advise import expected_winner, shortened, small_recipe
from vision.evaluation.study import PointResult
from vision.recipe import load_recipe

SHORT = ["data.train_fraction=0.2", "train.batch_size=32", "num_experts=2", "train.epochs=2"]


def test_the_command(cli, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli("advise", "digits", *SHORT, "--seen", 400, "--out", out) == 0
    shown = capsys.readouterr().out
    advice = json.loads((out / "advice.json").read_text())
    assert f"expect the {advice['expected']} to win" in shown
    assert "law: routable " in shown
    assert advice["expected"] in ("collaboration", "cascade", "single network")
    assert advice["num_samples"] == 150  # half of the held-out images
    assert [(p["system"], p["exits"]) for p in advice["points"]] == [
        (system, exits) for system in ("CoE", "cascade") for exits in (0.0, 0.1, 0.25)
    ]
    law = advice["law"]
    assert law["gain"] - law["loss"] + law["pooling"] == pytest.approx(law["above_mean_expert"])


def point(system, above, error=0.5, exits=0.0):
    return PointResult(system, exits, exits, 1e6, 80.0, above, error)


def test_who_is_expected_to_win():
    assert expected_winner([]) == "single network"
    assert expected_winner([point("CoE", None, None)]) == "single network"
    assert expected_winner([point("CoE", 0.9), point("cascade", 0.9)]) == "single network"
    assert expected_winner([point("CoE", -3.0), point("cascade", 1.1)]) == "cascade"
    assert expected_winner([point("CoE", 1.5), point("cascade", 1.1)]) == "cascade"
    assert expected_winner([point("CoE", 1.7), point("cascade", 1.1)]) == "collaboration"
    with_exits = [point("CoE", 0.1), point("CoE", 2.0, exits=0.25), point("cascade", 0.2)]
    assert expected_winner(with_exits) == "collaboration"


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
