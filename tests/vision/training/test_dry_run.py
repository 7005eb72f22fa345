"""train --dry-run; the ImageNet recipes through it: budgets at full size, steps at a small one."""

import re

import pytest

from vision.errors import RunError
from vision.recipe import load_recipe
from vision.recipe_networks import run_macs, untrained
from vision.shipped import find_recipe, shipped_recipes
from vision.training.dry_run import check_budget, mean_mmacs

IMAGENET = [name for name in shipped_recipes() if name.startswith("imagenet/")]


def test_there_are_recipes():
    stems = {"coe_194m", "coe_194m_k16", "coe_100m_pwlu_condconv", "cascade_194m", "single_208m"}
    assert {f"imagenet/{stem}" for stem in stems} == set(IMAGENET)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGENET)
def test_budget_at_full_size(name):
    recipe = load_recipe(name)
    macs = run_macs(untrained(recipe))
    assert check_budget(recipe, macs).startswith("budget met: ")
    assert abs(mean_mmacs(recipe, macs) / recipe.budget.mmacs - 1) < 0.03
    if recipe.has_team:  # and the parts: TinyNet E, experts of the size that the file names
        assert macs.delegator == pytest.approx(24e6, rel=0.04)
        rate, budget = recipe.budget.exit_rate, 1e6 * recipe.budget.mmacs
        assert macs.expert == pytest.approx(
            (budget - 24e6) / (1 - rate), rel=0.04
        )  # mixing kernels too
    head = find_recipe(name).read_text(encoding="utf-8").splitlines()
    assert "not run here" in head[0]
    assert f"train {name} data.path=FOLDER" in head[1]
    assert re.search("estimate|on paper", head[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGENET)
def test_two_steps_of_every_recipe(cli, capsys, name):
    small = ["data.size=32", "num_experts=2"] if "coe" in name else ["data.size=32"]
    recipe = load_recipe(name)
    small += [f"{part}.size=32" for part in ("delegator", "experts") if recipe.has_team]
    if not recipe.has_team:
        small.append("ensembles.of 1.network.size=32")
    assert cli("train", name, "--dry-run", *small, "budget=null", "train.batch_size=64") == 0
    shown = capsys.readouterr().out
    losses = re.search(r"two steps on 4 generated .* losses ([\d.]+), ([\d.]+)\n", shown)
    assert all(0 < float(loss) < 200 for loss in losses.groups())
    assert re.search(
        r"memory of a process: [\d.]+ MiB for .* and [\d.]+ [MK]iB for each image", shown
    )
    assert re.search(r"  8 processes: about [\d.]+ [MG]iB each\n", shown)
    assert "time for an epoch of 1,255,544 images here (CPU" in shown


@pytest.mark.slow
def test_activations_and_state_are_counted(cli, capsys):
    """By hand: one network without normalisation, in fp32, with plain SGD and momentum."""
    from vision.training.dry_run import two_steps
    from vision.training.train import train

    overrides = ["train.precision=32-true", "objective.shared_start=0", "controls={}"]
    recipe = load_recipe("digits", overrides)
    steps = two_steps(recipe, train)
    networks = untrained(recipe)
    parameters = sum(p.numel() for p in networks.parameters())
    assert steps.state_bytes == 4 * 3 * parameters  # weights, gradients, momentum
    pixels = 8 * 8 * 4  # a single-channel feature map of the size of the image
    assert steps.activation_bytes > 50 * pixels
    averaged = two_steps(load_recipe("digits", [*overrides, "train.ema_decay=0.9"]), train)
    assert averaged.state_bytes == 4 * 4 * parameters
    assert averaged.activation_bytes == steps.activation_bytes


def test_a_missed_budget_stops_before_any_step(cli, capsys, monkeypatch):
    monkeypatch.setattr("vision.training.dry_run.two_steps", None)
    budget = "budget={mmacs: 0.012, exit_rate: 0.5}"
    assert cli("train", "digits", "--dry-run", budget) == 2
    message = capsys.readouterr().err
    assert re.search(
        r"over or under its budget: 0\.01\d* MMACs per image with 50% of the images ending early; budget "
        r"0\.012 ± 3%\. Change the networks",
        message,
    )


def test_budget_settings():
    recipe = load_recipe("digits", ["budget={mmacs: 0.01001, exit_rate: 0.5}"])
    macs = run_macs(untrained(recipe))
    assert mean_mmacs(recipe, macs) == pytest.approx((macs.delegator + macs.expert / 2) / 1e6)
    with pytest.raises(RunError, match="over or under"):
        check_budget(load_recipe("digits", ["budget={mmacs: 1}"]), macs)
    for bad in ("{mmacs: 0}", "{mmacs: 1, exit_rate: 2}", "{mmacs: 1, tolerance: -1}"):
        with pytest.raises(ValueError, match="a budget has mmacs above 0"):
            load_recipe("digits", [f"budget={bad}"])
    with pytest.raises(ValueError, match=r"unknown key 'budget\.macs'; nearest: budget\.mmacs"):
        load_recipe("digits", ["budget={macs: 1}"])
