"""Weights of the classes in the loss of every network."""

import pytest
import torch

from vision.recipe import recipe_from_dict
from vision.training.class_weights import class_weights
from vision.training.module import CoETraining

NETWORK = {"name": "small_resnet", "options": {"width": 2}}
CLASSES = ["a", "b", "c"]


def module(weights, **train):
    recipe = recipe_from_dict(
        {
            "delegator": NETWORK,
            "experts": NETWORK,
            "num_experts": 2,
            "controls": {"expert": NETWORK},
            "train": {"epochs": 1, "batch_size": 4, **train},
        }
    )
    preprocess = recipe.data.preprocess().to_dict()
    return CoETraining(recipe.to_dict(), CLASSES, preprocess, 8, None, weights)


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_one_on_average_over_the_samples(power):
    targets = torch.tensor([0] * 6 + [1] * 2)
    weights = class_weights(targets, 3, power)
    assert float(weights[targets].mean()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(3**power)
    assert bool(weights.isfinite().all())  # of a class without samples, too


def test_the_loss_is_weighted_and_nothing_else_of_the_module():
    weights = torch.tensor([0.5, 1.0, 2.0])
    torch.manual_seed(0)
    plain, weighted = module(None), module(weights)
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = plain._loss(logits, target)
    assert torch.allclose(weighted._loss(logits, target), loss * weights[target])
    shares = torch.nn.functional.one_hot(target, 3).float()  # as MixUp makes them
    assert torch.allclose(weighted._loss(logits, shares), loss * weights[target])
    assert weighted.state_dict().keys() == plain.state_dict().keys()
    assert "weights" not in weighted.hparams
