"""Networks side by side: equal to the plain loop, outputs, gradients and running statistics."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from vision.networks import side_by_side as module
from vision.networks.network import Network, build_network
from vision.networks.side_by_side import Together, run_side_by_side

SMALL = ("small_resnet", {"width": 3, "stages": 2})
GROUPS = ("cifar_resnet", {"depth": 11, "width": 8, "groups": 2, "group_width": 32})
SHAPE = (3, 8, 8)


def members(name, options, s=3, seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList(build_network(Network(name, options=options), 5) for _ in range(s))


def views(n, s=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(s)]


def loop(networks, images):
    return torch.stack([m(x) for m, x in zip(networks, images, strict=True)], 1)


@pytest.mark.parametrize(("name", "options"), [SMALL, GROUPS], ids=["basic", "grouped"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_loop(name, options, training):
    networks = members(name, options).double().train(training)
    oracle, images = deepcopy(networks), views(6)
    together = Together(networks, SHAPE)
    assert together.side_by_side(6)
    expected = loop(oracle, images)
    expected.square().sum().backward()
    outputs = together(images)
    outputs.square().sum().backward()
    torch.testing.assert_close(outputs, expected)
    for own, other in zip(networks.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    for own, other in zip(networks.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(own, other)
    counts = [b for name, b in networks.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {int(training)}


def test_each_network_sees_its_own_images():
    networks = members(*SMALL).double().eval()
    images = views(4)
    together = Together(networks, SHAPE)
    with torch.no_grad():
        whole = together(images)
        swapped = together([images[1], images[0], images[2]])
        same = together(images[0])
    torch.testing.assert_close(swapped[:, 2], whole[:, 2])
    assert not torch.allclose(swapped[:, 0], whole[:, 0])
    torch.testing.assert_close(same, loop(networks, [images[0]] * 3))


def test_inference_follows_the_parameters():
    networks = members(*SMALL).eval()
    together, images = Together(networks, SHAPE), views(2)[0].float()
    with torch.inference_mode():
        before = together(images)
        assert together.inference_copy() is together.inference_copy()
    with torch.no_grad():
        next(networks[1].parameters()).mul_(2)  # as an optimiser does
    with torch.inference_mode():
        after = together(images)
        torch.testing.assert_close(after, loop(networks, [images] * 3))
    assert not torch.equal(before[:, 1], after[:, 1])
    networks.load_state_dict(members(*SMALL, seed=5).state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(together(images), loop(networks, [images] * 3))


def test_large_batches_run_in_the_loop(monkeypatch):
    networks = members(*SMALL).eval()
    together = Together(networks, SHAPE)
    limit = module.SIDE_BY_SIDE_BELOW / together.macs
    assert together.side_by_side(int(limit) - 1)
    assert not together.side_by_side(int(limit) + 1)
    monkeypatch.setattr(module, "SIDE_BY_SIDE_BELOW", together.macs)
    monkeypatch.setattr(module, "run_side_by_side", None)  # would fail if it were called
    images = views(3)[0].float()
    torch.testing.assert_close(together(images), loop(networks, [images] * 3))


class Order(nn.Module):
    """Joins features behind one another: side by side the networks' features would be mixed."""

    def __init__(self, mode):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(8, 5)
        self.mode = mode

    def forward(self, x):
        if self.mode == "cat":
            x = torch.cat([self.first(x), self.second(x)], 1).mean((2, 3))
        else:  # random in training, between the layers
            noise = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) if self.training else 0.5
            x = torch.cat([(self.first(x) * noise + self.second(x)).mean((2, 3))] * 2, 1)
        return self.head(x)


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 5, 8), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.conv(x).flatten(1) * self.scale


class Normalised(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize(
    "build",
    [lambda: Order("cat"), lambda: Order("noise"), OwnParameter, Normalised],
    ids=["order of features", "noise", "own parameter", "unknown layer"],
)
def test_what_cannot_be_side_by_side_runs_in_the_loop(build):
    networks = nn.ModuleList(build() for _ in range(2))
    together = Together(networks, SHAPE)
    assert together.wide is None
    assert not together.side_by_side(1)
    images = views(3)[0].float()
    networks.eval()
    torch.testing.assert_close(together(images), loop(networks, [images] * 2))


def test_the_trial_leaves_networks_and_random_state_alone():
    networks = members(*SMALL)
    before, state = deepcopy(networks.state_dict()), torch.get_rng_state()
    assert Together(networks, SHAPE).wide is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in networks.state_dict().items())
    assert networks.training


def test_networks_of_other_shapes_or_functions_run_in_the_loop():
    wider = build_network(Network("small_resnet", options={"width": 4, "stages": 2}), 5)
    for other in (wider, nn.Sequential(nn.Flatten(), nn.Linear(192, 5))):
        networks = nn.ModuleList([*members(*SMALL, s=1), other]).eval()
        together, images = Together(networks, SHAPE), views(3)[0].float()
        assert together.wide is None
        torch.testing.assert_close(together(images), loop(networks, [images] * 2))
    networks = members(*SMALL)
    networks[1].blocks[0].act = nn.SiLU()  # the same parameters, another function
    assert Together(networks, SHAPE).wide is None


def test_a_single_network_has_nothing_beside_it():
    [network] = members(*SMALL, s=1)
    together = Together([network], SHAPE)
    assert together.wide is None
    assert together(views(2)[0].float()).shape == (2, 1, 5)


def test_images_they_do_not_take_fail_when_they_run():
    networks = members("small_resnet", {"width": 3})
    together = Together(networks, (1, 8, 8))
    assert together.wide is None
    with pytest.raises(RuntimeError, match="channels"):
        together(torch.zeros(2, 1, 8, 8))


def test_run_side_by_side_needs_no_limit():
    networks = members(*SMALL).double().eval()
    wide, images = Together(networks, SHAPE).wide, views(40)
    torch.testing.assert_close(run_side_by_side(wide, networks, images), loop(networks, images))


def test_batches_of_different_sizes_run_in_the_loop():
    networks = members(*SMALL).double().eval()
    together = Together(networks, SHAPE)
    images = [view[: 2 + j] for j, view in enumerate(views(4))]
    outputs = together.each(images)
    for network, image, output in zip(networks, images, outputs, strict=True):
        assert torch.equal(output, network(image))
