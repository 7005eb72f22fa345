"""Torch's own optimisers are built as timm builds them: same groups, same order, same settings."""

from dataclasses import replace

import pytest
import timm.optim
from torch import nn

from vision.recipe import Train
from vision.training.optimizer import build_optimizer


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "rmsprop"])
def test_as_timm_builds_it(network, name, decay):
    train = Train(optimizer=name, weight_decay=decay, lr=0.3, momentum=0.8)
    ours = build_optimizer(train, network)
    theirs = timm.optim.create_optimizer_v2(
        network, opt=name, lr=0.3, weight_decay=decay, momentum=0.8
    )
    assert type(ours) is type(theirs)
    assert ours.state_dict() == theirs.state_dict()
    groups = zip(ours.param_groups, theirs.param_groups, strict=True)
    assert all(a["params"][i] is b["params"][i] for a, b in groups for i in range(len(a["params"])))


@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_parts_keep_their_own_weight_decay(network, name):
    other = nn.Linear(2, 2)
    parts = [(network, 0.1), (other, 0.0)]
    optimizer = build_optimizer(Train(optimizer=name), nn.ModuleList([network, other]), parts)
    decays = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert decays == [(4, 0.0), (2, 0.1), (2, 0.0)]


def test_an_unknown_optimizer():
    with pytest.raises(ValueError, match="not found in registry"):
        build_optimizer(replace(Train(), optimizer="unknown"), nn.Linear(2, 1))
