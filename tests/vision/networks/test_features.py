"""The input of a network's classifier, read off while it runs."""

import pytest
import torch
from torch import nn

from vision.networks.features import ClassifierInput
from vision.networks.network import Network, build_network
from vision.networks.trunk import cut_network


@pytest.mark.parametrize("name", ["small_resnet", "timm/resnet10t", "torchvision/squeezenet1_1"])
def test_features_of_networks_of_all_libraries(name):
    network = build_network(Network(name), 14).eval()
    seen = ClassifierInput(network, 14)
    with torch.no_grad():
        logits = network(torch.rand(2, 3, 64, 64))
    assert seen.features.shape == (2, seen.num_features)
    assert logits.shape == (2, 14)
    assert not seen.features.requires_grad


def test_they_are_what_the_last_layer_sees():
    network = build_network(Network("small_resnet", options={"width": 2}), 5).eval()
    seen = ClassifierInput(network, 5)
    logits = network(torch.rand(3, 3, 32, 32))
    assert torch.allclose(network.head[-1](seen.features), logits)


def test_behind_a_trunk():
    network = build_network(Network("small_resnet", options={"width": 2}), 5).eval()
    parts = cut_network(network, "blocks.0")
    seen = ClassifierInput(parts.rest, 5)
    parts.rest(parts.trunk(torch.rand(3, 3, 32, 32)))
    assert seen.features.shape == (3, 8)


@pytest.mark.slow
def test_compiled_networks_are_read_off_too():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    seen = ClassifierInput(network, 3)
    network.compile(backend="eager")
    for value in (1.0, 2.0):
        network(torch.full((2, 1, 2, 2), value))
        assert torch.equal(seen.features, torch.full((2, 4), value))


def test_a_network_without_such_a_layer():
    with pytest.raises(ValueError, match="no last layer of 7 outputs"):
        ClassifierInput(nn.Linear(3, 2), 7)
