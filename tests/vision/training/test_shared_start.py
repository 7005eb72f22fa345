"""Experts that start as one network: copies until the split, equal to a plain network, then apart."""

from dataclasses import replace

import pytest
import torch

from vision.recipe import load_recipe
from vision.run import load_run
from vision.training.train import train


def trained(folder, shared_start, *overrides, **options):
    recipe = load_recipe("digits", ["data.train_fraction=0.3", "train.epochs=4", *overrides])
    recipe = replace(recipe, objective=replace(recipe.objective, shared_start=shared_start))
    train(recipe, folder, **options)
    return load_run(folder).networks.team.experts


def difference(a: torch.nn.Module, b: torch.nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).detach().abs().max().item() for p, q in pairs)


@pytest.mark.slow
def test_experts_are_copies_until_the_split(tmp_path):
    experts = trained(tmp_path / "run", 0.75, stop_after=3)
    # The copies are made at the start of a step, so the last shared step is still to be copied.
    assert all(difference(experts[1], other) == 0 for other in experts[2:])
    assert difference(experts[0], experts[1]) < 0.1


@pytest.mark.slow
def test_experts_specialise_after_the_split(tmp_path):
    experts = trained(tmp_path / "run", 0.5, "objective.focus=0.9")
    assert all(difference(experts[0], other) > 1e-3 for other in experts[1:])


@pytest.mark.slow
def test_copies_that_train_alike_stay_alike(tmp_path):
    """Focus 0: the copies, their momentum and their batches are equal, so nothing sets them apart."""
    experts = trained(tmp_path / "run", 0.5, "objective.focus=0.0")
    assert all(difference(experts[0], other) < 1e-6 for other in experts[1:])


@pytest.mark.slow
def test_resume_across_the_split_is_exact(tmp_path):
    whole = trained(tmp_path / "whole", 0.5)
    trained(tmp_path / "parts", 0.5, stop_after=1)
    trained(tmp_path / "parts", 0.5, resume=True, stop_after=2)
    parts = trained(tmp_path / "parts", 0.5, resume=True)
    assert all(difference(a, b) == 0 for a, b in zip(whole, parts, strict=True))


def test_needs_equal_experts():
    networks = "experts=[{name: small_resnet}, {name: small_resnet, options: {width: 2}}]"
    with pytest.raises(ValueError, match="needs equal experts"):
        load_recipe("digits", [networks, "num_experts=2", "objective.shared_start=0.5"])


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_is_a_part_of_the_training(value):
    with pytest.raises(ValueError, match=r"shared_start must be in \[0, 1\)"):
        load_recipe("digits", [f"objective.shared_start={value}"])
