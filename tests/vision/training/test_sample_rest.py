"""Experts on their portion and a drawn part of the rest: what they see, and resumed exactly."""

import pytest
import torch

from vision.recipe import load_recipe
from vision.run import load_checkpoint
from vision.training.module import CoETraining
from vision.training.train import train

FAST = ["data.train_fraction=0.2", "train.epochs=2", "controls={}", "objective.focus_warmup=0.5"]


def trained(folder, *overrides, **options):
    train(load_recipe("digits", [*FAST, *overrides]), folder, **options)
    return load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.slow
def test_each_expert_sees_its_portion_and_the_drawn_part(tmp_path, monkeypatch):
    seen = []
    run = CoETraining._run_experts

    def spy(self, handed, target, truth, drawn):
        losses = run(self, handed, target, truth, drawn)
        seen.append((None if drawn is None else drawn, losses, len(target)))
        return losses

    monkeypatch.setattr(CoETraining, "_run_experts", spy)
    trained(tmp_path, "objective.sample_rest=0.25")
    before, after = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(drawn is None for drawn, _, _ in before)  # while the focus rises
    for drawn, losses, n in after:
        assert torch.equal(losses.loss != 0, drawn.runs)
        assert torch.equal(losses.evidence != 0, drawn.runs)
        work = drawn.runs.sum(0)
        assert work.min() == work.max() < n / 2


def test_losses_are_those_of_every_expert_on_every_image(tmp_path):
    module = make_module("objective.sample_rest=0.5").eval()
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    target = torch.arange(12) % 10
    with torch.no_grad():
        handed = module.networks.required_team.hand_over(images)
        drawn = module.objective.draw(handed.selection_logits, progress=1.0)
        some = module._run_experts(handed, target, target, drawn)
        full = module._run_experts(handed, target, target, None)
    assert full.logits.shape == (12, 4, 10)
    torch.testing.assert_close(some.loss, full.loss.where(drawn.runs, 0))
    torch.testing.assert_close(some.evidence, full.evidence.where(drawn.runs, 0))


def make_module(*overrides):
    recipe = load_recipe("digits", [*FAST, *overrides]).to_dict()
    preprocess = {"size": 8, "channels": 1, "mean": [0.5], "std": [0.5], "resize": "exact"}
    return CoETraining(recipe, [str(digit) for digit in range(10)], preprocess, 200)


@pytest.mark.slow
def test_resume_is_exact(tmp_path):
    option = "objective.sample_rest=0.3"
    whole = trained(tmp_path / "whole", option)
    trained(tmp_path / "parts", option, stop_after=1)
    parts = trained(tmp_path / "parts", option, resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("value", [0, 1.5, -0.1])
def test_it_is_a_part(value):
    with pytest.raises(ValueError, match=r"objective\.sample_rest must be"):
        load_recipe("digits", [f"objective.sample_rest={value}"])
