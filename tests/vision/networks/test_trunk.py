"""Networks cut in two, and teams whose delegator hands its features or its rough logits to the experts."""

import copy

import pytest
import torch
from torch import nn

from coe_core import Delegation, infer, scale_gradient
from vision.data.preprocess import Preprocess
from vision.networks.network import Network, build_network
from vision.networks.own.small_resnet import SmallResNet
from vision.networks.team import Team, Trunked
from vision.networks.trunk import Adapted, cut_network, places_to_cut
from vision.recipe import recipe_from_dict
from vision.recipe_networks import build_team


class Skips(nn.Module):
    """The input goes on beside the first layer's output."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.second(self.first(x) + x).mean((2, 3))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(x if x.sum() > 0 else -x).mean((2, 3))


class Functional(nn.Module):
    """Dropout by a function, which is nothing in evaluation."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 64), nn.Linear(64, 64)

    def forward(self, x, scale=None):
        x = self.first(x)
        if scale is not None:
            x = x * scale
        return self.second(nn.functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize(
    ("name", "place", "channels"),
    [
        ("small_resnet", "blocks.1", 32),
        ("timm/resnet10t", "layer1", 64),
        ("timm/vit_tiny_patch16_224", "blocks.2", None),
        ("torchvision/mobilenet_v3_small", "features.3", 24),
    ],
)
def test_both_parts_are_the_whole(name, place, channels):
    size = 224 if "vit" in name else 64
    network = build_network(Network(name), 7).eval()
    trunk, rest = cut_network(network, place)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        features = trunk(images)
        assert torch.equal(rest(features), network(images))
    assert channels in (None, features.shape[1])
    parts = [*trunk.parameters(), *rest.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in network.parameters()}  # nothing is copied


def test_a_part_follows_the_mode_of_training():
    trunk, rest = cut_network(Functional(), "first")
    features = trunk(torch.rand(3, 4))
    assert not torch.equal(rest(features), rest(features))
    own = copy.deepcopy(rest).eval()
    assert torch.equal(own(features), own(features))
    assert not torch.equal(rest(features), rest(features))  # the copy changed nothing of it


@pytest.mark.parametrize(
    ("network", "place", "message"),
    [
        (
            SmallResNet(10, width=2),
            "block.1",
            "no module 'block.1'; nearest: blocks.1.*behind stem, b",
        ),
        (Skips(), "first", "cannot be cut behind 'first', as more than its output goes on.*second"),
        (Branches(), "first", "cannot be cut: its forward cannot be followed"),
        (SmallResNet(10, width=2), "head", "cannot be cut behind 'head'"),
    ],
)
def test_where_a_network_cannot_be_cut(network, place, message):
    with pytest.raises(ValueError, match=message):
        cut_network(network, place)


def test_places_lead_to_parts():
    network = SmallResNet(10, width=2).eval()
    places = places_to_cut(network)
    assert {"stem", "blocks.0", "blocks.1", "blocks"} <= set(places)
    images = torch.rand(1, 3, 8, 8)
    for place in places:
        trunk, rest = cut_network(network, place)
        assert torch.allclose(rest(trunk(images)), network(images))


def small(width: int, **options) -> dict:
    return {"name": "small_resnet", "options": {"width": width, **options}}


def team(num_experts: int = 3, delegator: dict | None = None, experts=None, **hand_over) -> Team:
    values = {
        "delegator": delegator or small(2),
        "experts": experts or small(4),
        "num_experts": num_experts,
        "hand_over": hand_over,
    }
    recipe = recipe_from_dict(values)
    return build_team(recipe, recipe.expert_networks, 10, Preprocess(16, 3, (0.5,) * 3, (0.5,) * 3))


def test_experts_of_a_trunk_see_its_features_and_add_the_rough_logits():
    torch.manual_seed(0)
    parted = team(trunk="blocks.0", rough_logits=True).eval()
    images = torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        features = parted.delegator.trunk(images)
        rough = parted.delegator(images)[:, :10]
        by_hand = torch.stack([expert(features) for expert in parted.experts], 1) + rough[:, None]
        out = parted(images)
        assert torch.equal(out.expert_logits, by_hand)
        selected = out.selection_logits.argmax(1)
        inferred = parted.infer(images, 2.0)
    assert torch.allclose(inferred.prediction, by_hand[torch.arange(6), selected], atol=1e-5)
    assert torch.equal(inferred.selected_expert, selected)


def test_inference_in_groups_is_that_of_single_images():
    torch.manual_seed(1)
    parted = team(trunk="blocks.0", rough_logits=True).eval()
    images = torch.rand(9, 3, 16, 16)
    with torch.inference_mode():
        confidences = parted.infer(images, 2.0).confidence
        threshold = float(confidences.median())
        together = parted.infer(images, threshold)
        alone = [parted.infer(image[None], threshold).prediction for image in images]
    assert 0 < together.exits.sum() < 9
    assert torch.allclose(together.prediction, torch.cat(alone), atol=1e-4)


@pytest.mark.parametrize(("factor", "share"), [(None, 1 / 3), (1.0, 1.0), (0.0, 0.0)])
def test_the_gradient_into_the_trunk_is_scaled(factor, share):
    torch.manual_seed(0)
    images, grads = torch.rand(4, 3, 16, 16), []
    for scaled in (False, True):
        torch.manual_seed(0)
        parted = team(trunk="blocks.0", trunk_gradient=factor)
        handed = parted.hand_over(images)
        seen = parted.for_experts(handed) if scaled else handed.features
        parted.experts[0](seen).square().sum().backward()
        grads.append(parted.delegator.trunk.body.stem[0].weight.grad)
    full, scaled_grad = grads
    assert torch.allclose(scaled_grad, share * full, rtol=1e-4, atol=1e-6)


def test_no_gradient_goes_back_by_the_rough_logits():
    whole = team(rough_logits=True)
    out = whole(torch.rand(4, 3, 16, 16))
    out.expert_logits.sum().backward()
    assert all(p.grad is None for p in whole.delegator.parameters())


def test_a_delegator_of_other_channels_is_adapted_and_counted():
    from coe_core import count_macs

    same, other = team(delegator=small(4), trunk="blocks.0"), team(trunk="blocks.0")
    assert isinstance(same.delegator, Trunked)
    assert not isinstance(same.delegator.branch, Adapted)
    assert isinstance(other.delegator.branch, Adapted)
    features = torch.zeros(1, 4, 16, 16)
    own = count_macs(other.delegator.branch, features)
    rest = count_macs(other.delegator.branch.rest, torch.zeros(1, 2, 16, 16))
    assert own == rest + 4 * 2 * 16 * 16  # a 1x1 convolution from 4 to 2 channels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trunk": "layer1"}, r"hand_over.trunk, experts\[0\]: the network has no module 'layer1'"),
        (
            {"trunk": "blocks.0", "branch": "x"},
            "hand_over.trunk, delegator: the network has no module",
        ),
        (
            {"trunk": "blocks.0", "branch": "blocks.1"},
            "rest takes features of 4 x 8 x 8, the trunk.*16",
        ),
        ({"branch": "blocks.1"}, "are of a shared trunk: name hand_over.trunk"),
        ({"trunk": "blocks.0", "trunk_gradient": -1}, "hand_over.trunk_gradient"),
        ({"trunk": "blocks.0", "turnk": 1}, "unknown key 'hand_over.turnk'"),
        (
            {"trunk": "blocks.0", "experts": [small(4), small(4), small(6)]},
            r"experts\[2\] does not fit the trunk.*6 x 16 x 16, the trunk gives 4 x 16 x 16",
        ),
        (
            {"trunk": "blocks.0", "delegator": {**small(2), "size": 8}},
            "see images of one size, not of 8, ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        team(**given)


def test_infer_hands_on_what_the_delegator_gives():
    def delegate(batch):
        return Delegation(batch * 0, batch.abs(), torch.ones(len(batch), 1), batch * 10)

    result = infer(delegate, [lambda x: x + 1], torch.tensor([0.5, 0.9]), threshold=0.8)
    assert result.prediction.tolist() == [6.0, 0.0]


def test_handed_rows_are_as_many_as_the_samples():
    def delegate(batch):
        return Delegation(batch * 0, batch.abs(), torch.ones(len(batch), 1), batch[:1])

    with pytest.raises(ValueError, match="hands 1 rows to the experts, but there are 2 samples"):
        infer(delegate, [lambda x: x], torch.tensor([0.5, 0.9]), threshold=0.8)


@pytest.mark.parametrize("factor", [-0.5, float("nan"), float("inf")])
def test_gradient_factors_that_mean_nothing(factor):
    with pytest.raises(ValueError, match="factor must be finite and at least 0"):
        scale_gradient(torch.ones(2), factor)
