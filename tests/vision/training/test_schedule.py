"""The learning rate over the steps: published warm-up, cosine and steps; what was before stays."""

import math

import pytest
import torch

from vision.recipe import Train
from vision.training.schedule import learning_rate_schedule


def rates(train, num_steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=train.lr)
    schedule = learning_rate_schedule(optimizer, train, num_steps)
    values = []
    for _ in range(num_steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(values) < num_steps:
            schedule.step()
    return values


def test_published_cifar():
    train = Train(epochs=300, lr=0.1, warmup=20 / 300, start_lr=0.005, final_lr=1e-4)
    lrs = rates(train, 3000)
    assert lrs[0] == pytest.approx(0.005)
    assert max(lrs) == lrs[199] == pytest.approx(0.1)
    assert lrs[-1] == pytest.approx(1e-4)
    half = lrs[199 + 1400]
    assert half == pytest.approx(1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi / 2)) / 2, rel=1e-2)
    assert lrs[199:] == sorted(lrs[199:], reverse=True)


def test_defaults_are_one_cycle():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=100, pct_start=0.1, cycle_momentum=False
    )
    expected = []
    for step in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 99:
            cycle.step()
    assert rates(Train(epochs=10, lr=0.2, warmup=0.1), 100) == pytest.approx(expected)


def test_published_efficientnet():
    train = Train(epochs=10, lr=0.256, warmup=0.1, start_lr=0.016, decay=0.97, decay_epochs=0.8)
    lrs = rates(train, 100)  # ten steps an epoch: every eight steps times .97
    assert lrs[0] == pytest.approx(0.016)
    assert lrs[4] == pytest.approx(0.016 + (0.256 - 0.016) * 4 / 9)
    assert lrs[10] == pytest.approx(0.256 * 0.97)
    assert lrs[99] == pytest.approx(0.256 * 0.97**12)
    assert lrs[16] / lrs[15] == pytest.approx(0.97)


def test_no_warmup_starts_at_the_top():
    for train in (Train(epochs=4, lr=0.1, warmup=0.0), Train(lr=0.1, warmup=0.0, decay=0.5)):
        assert rates(train, 40)[1] == pytest.approx(0.1, rel=0.01)
