"""Networks by name, and the team: what runs in groups equals what runs one by one."""

import pytest
import torch

from vision.networks.network import Network, build_network
from vision.networks.outputs import check_outputs
from vision.networks.own.small_resnet import SmallResNet
from vision.networks.team import Team


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("small_resnet", 8, {"width": 2, "blocks": 2, "stages": 2, "stem_stride": 2}),
        ("small_resnet", 7, {"width": 2}),
        ("test_resnet", 32, {}),
        ("timm/test_vit", 32, {"img_size": 32}),
        ("mobilenetv3_small_050", 32, {"drop_rate": 0.1}),
        ("torchvision/shufflenet_v2_x0_5", 32, {}),
        ("squeezenet1_1", 32, {}),
    ],
)
def test_builds_by_name(name, size, options):
    network = build_network(Network(name, options=options), 13).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 3, size, size)).shape == (2, 13)


def test_several_outputs_in_training_are_off():
    network = build_network(Network("googlenet"), 5).train()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.slow
def test_networks_of_more_layers_than_any_has_are_given_up(monkeypatch):
    monkeypatch.setattr("vision.networks.network.MAX_PARTS", 1000)
    for name, options in (
        ("shake_shake", {"depth": 10_000 * 6 + 2}),
        ("timm/vit_tiny_patch16_224", {"depth": 10_000, "embed_dim": 3}),
        ("timm/test_resnet", {"layers": [10_000, 1, 1, 1]}),
    ):
        with pytest.raises(ValueError, match=r"more than 1000 layers; lower its options"):
            build_network(Network(name, options=options), 10)
    with pytest.raises(ValueError, match="stages must be at most 16, got 1000000"):
        build_network(Network("small_resnet", options={"stages": 1_000_000}), 10)
    for _ in range(40):  # the count is of each network
        build_network(Network("small_resnet"), 10)


def test_channels():
    assert build_network(Network("test_resnet"), 4, channels=1)(torch.rand(2, 1, 32, 32)).shape == (
        2,
        4,
    )
    with pytest.raises(ValueError, match=r"takes images of 3 channels, the data have 1; set data"):
        build_network(Network("torchvision/resnet18"), 4, channels=1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network("resnet81"), "unknown network 'resnet81'; nearest: resnet18"),
        (Network("torchvision/convnext_tin"), "nearest: convnext_tiny"),
        (Network("timm/small_resnet"), "unknown network 'timm/small_resnet'"),
        (Network("resnet18", options={"widht": 3}), "'resnet18' with options.*widht"),
        (Network("torchvision/resnet18", options={"widht": 3}), "with options.*widht"),
        (Network("small_resnet", options={"width": 0}), "width must be at least 1, got 0"),
    ],
)
def test_refused(network, message):
    with pytest.raises(ValueError, match=message):
        build_network(network, 10)


@pytest.mark.parametrize(
    ("network", "size", "count", "message"),
    [
        (
            Network("test_resnet", options={"global_pool": ""}),
            32,
            2,
            "cannot be trained on images of 3 x",
        ),
        (Network("test_resnet"), 32, 1, "batches of one image, which batch normalisation cannot"),
        (Network("small_resnet"), 32, 1, None),
        (Network("torchvision/googlenet"), 64, 2, None),
    ],
)
def test_outputs_are_tried_before_training(network, size, count, message):
    built = build_network(network, 5)
    weights = {name: value.clone() for name, value in built.state_dict().items()}
    state, images = torch.get_rng_state(), torch.zeros(count, 3, size, size)
    if message is None:
        check_outputs(built, images, 5, "expert 0")
    else:
        with pytest.raises(ValueError, match=message) as raised:
            check_outputs(built, images, 5, "expert 0")
        assert "\n" not in str(raised.value)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in built.state_dict().items())


def test_networks_that_return_several_outputs_are_refused():
    with pytest.raises(ValueError, match=r"options.aux_logits is refused: .*one row of logits"):
        build_network(Network("torchvision/inception_v3", options={"aux_logits": True}), 5)

    class Two(torch.nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(
        ValueError, match="expert 0 returns a tuple of 2 for 2 images, not one row of 5"
    ):
        check_outputs(Two(), torch.zeros(2, 5), 5, "expert 0")
    with pytest.raises(
        ValueError, match="expert 0 returns an array of 2 x 5 for 2 images, not one row of 6"
    ):
        check_outputs(torch.nn.Identity(), torch.zeros(2, 5), 6, "expert 0")


def test_small_resnet_by_hand():
    network = SmallResNet(num_classes=10, in_chans=1, width=2, stages=2)
    # Stem 9*2; block at 2: 2 convolutions of 9*4; block of 4: 9*8 + 9*16 and the shortcut 8; head 4*10 + 10.
    convolutions = 18 + 72 + 72 + 144 + 8
    norms = 2 * (2 + 2 + 2 + 4 + 4 + 4)
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms + 50


@pytest.fixture
def team():
    """Three unlike experts with lived-in batch normalisation, for 10 classes."""
    torch.manual_seed(0)
    names = [
        Network("small_resnet", options={"width": 4}),
        Network("test_resnet"),
        Network("torchvision/shufflenet_v2_x0_5"),
    ]
    small = Network("small_resnet", options={"width": 4})
    built = Team(build_network(small, 13), [build_network(n, 10) for n in names], 10)
    with torch.no_grad():
        for _ in range(3):
            built(torch.randn(16, 3, 32, 32))
        # So that selections and confidences vary from image to image.
        built.eval().delegator.head[-1].weight.mul_(5)
        built.delegator.head[-1].bias -= built.delegator(torch.randn(64, 3, 32, 32)).mean(0)
    return built


def test_delegator_outputs_split(team):
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        rough, selection = team.delegate(images)
        both = team.delegator(images)
        out = team(images)
    assert rough.shape == (4, 10)
    assert selection.shape == (4, 3)
    assert torch.equal(torch.cat([rough, selection], 1), both)
    assert out.expert_logits.shape == (4, 3, 10)


@pytest.mark.parametrize("rough_weight", [0.0, 0.7])
@pytest.mark.parametrize("place", ["all exit", "half", "none exits"])
def test_infer_equals_one_by_one(team, place, rough_weight):
    images = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        out = team(images)
        confidences = out.rough_logits.softmax(1).amax(1)
        threshold = {"all exit": 0.0, "half": float(confidences.median()), "none exits": 1.1}[place]
        grouped = team.infer(images, threshold, rough_weight=rough_weight)
        alone = [team.infer(image[None], threshold, rough_weight=rough_weight) for image in images]
    assert torch.allclose(grouped.prediction, torch.cat([a.prediction for a in alone]), atol=1e-5)
    assert torch.equal(grouped.exits, torch.cat([a.exits for a in alone]))
    selected = out.selection_logits.argmax(1)
    assert torch.equal(grouped.selected_expert, selected)
    assert len(selected.unique()) > 1
    expected_exits = {"all exit": 8, "half": 5, "none exits": 0}[place]
    assert abs(int(grouped.exits.sum()) - expected_exits) <= 1
    final = out.expert_logits[torch.arange(8), selected] + rough_weight * out.rough_logits
    expected = torch.where(grouped.exits[:, None], out.rough_logits, final)
    assert torch.allclose(grouped.prediction, expected, atol=1e-5)
