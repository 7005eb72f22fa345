"""Selection labels by families of classes, through training: when they settle, and resumed exactly."""

import pytest
import torch

from vision.recipe import load_recipe
from vision.run import load_checkpoint
from vision.training.train import train

FAST = ["data.train_fraction=0.15", "train.epochs=4", "controls={}", "objective.labels=families"]


def trained(folder, *overrides, **options):
    train(load_recipe("digits", [*FAST, *overrides]), folder, **options)
    return load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.slow
def test_resume_across_settling_is_exact(tmp_path):
    late = ["objective.settling=0.4", "objective.shared_start=0"]
    whole = trained(tmp_path / "whole", *late)
    first = trained(tmp_path / "parts", *late, stop_after=1)
    assert (first["families.family"] == -1).all()
    assert first["families.confusion"].sum() > 0
    parts = trained(tmp_path / "parts", *late, resume=True)
    assert sorted(torch.bincount(parts["families.family"]).tolist()) == [2, 2, 3, 3]
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_with_a_shared_start_they_settle_at_its_end(tmp_path):
    state = trained(tmp_path / "run", "objective.shared_start=0.5", stop_after=2)
    assert (state["families.family"] == -1).all()
    state = trained(tmp_path / "run", "objective.shared_start=0.5", resume=True)
    assert (state["families.family"] >= 0).all()


@pytest.mark.slow
def test_more_experts_than_classes(tmp_path):
    with pytest.raises(ValueError, match="10 classes cannot be parted into 11 families"):
        trained(tmp_path / "run", "num_experts=11")


@pytest.mark.parametrize("value", [0, 1.0])
def test_settling_is_a_part_of_the_training(value):
    with pytest.raises(ValueError, match=r"objective\.settling must be above 0"):
        load_recipe("digits", [f"objective.settling={value}"])
