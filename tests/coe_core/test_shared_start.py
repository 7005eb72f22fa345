"""Experts that are one network: the same steps as training that network alone, buffers and momentum too."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from coe_core import UnequalExpertsError, are_one, check_one, share_gradient, start_as_one


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_shared_experts_train_as_the_first_alone(optimizer):
    torch.manual_seed(0)
    experts = nn.ModuleList(network() for _ in range(3))
    assert not are_one(experts)
    start_as_one(experts)
    alone = deepcopy(experts[0])
    steps = optimizer(experts.parameters(), lr=0.1), optimizer(alone.parameters(), lr=0.1)
    for _ in range(4):
        x = torch.randn(8, 3)
        for model, step in zip((experts[0], alone), steps, strict=True):
            step.zero_grad()
            model(x).square().mean().backward()
            if model is not alone:
                share_gradient(experts)
            step.step()
        check_one(experts)
    assert are_one([experts[2], alone])
    assert experts[1][1].running_mean.abs().sum() > 0
    # From here each goes its own way, with the momentum of the shared part.
    x = torch.randn(8, 3)
    for model, step in zip((experts, [alone]), steps, strict=True):
        step.zero_grad()
        sum((j + 1) * expert(x).square().mean() for j, expert in enumerate(model)).backward()
        step.step()
    assert are_one([experts[0], alone])
    assert not are_one(experts[:2])


def test_gradients_keep_their_storage():
    """Data-parallel wrappers hold them in buckets."""
    experts = [nn.Linear(2, 1), nn.Linear(2, 1)]
    sum(expert(torch.ones(1, 2)).sum() * j for j, expert in enumerate(experts, start=1)).backward()
    kept = experts[1].weight.grad
    share_gradient(experts)
    assert kept is experts[1].weight.grad
    assert kept.tolist() == [[1.0, 1.0]]
    experts[0].weight.grad = None
    share_gradient(experts)
    assert experts[1].weight.grad is None


def test_errors():
    with pytest.raises(ValueError, match="expert 1 is not built as expert 0"):
        start_as_one([nn.Linear(2, 1), nn.Linear(3, 1)])
    with pytest.raises(
        UnequalExpertsError, match=r"trains 2 experts as one .* turn the shared start"
    ):
        check_one([nn.Linear(2, 1), nn.Linear(2, 1)])
    check_one([nn.Linear(2, 1)])
