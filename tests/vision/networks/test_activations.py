"""Other activations in networks of timm, torchvision and our own."""

import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from coe_core import count_macs
from vision.networks.activations import ByWidth, replace_activations
from vision.networks.network import Network, build_network
from vision.networks.pwlu.layer import PWLU, start_learning
from vision.networks.size import network_size


def kinds(network: nn.Module, kind: type) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, kind)]


@pytest.mark.slow
def test_timm_with_fused_norms():
    network = timm.create_model("mobilenetv3_small_050", num_classes=5)
    before = [m for m in network.modules() if type(m) in (nn.ReLU, nn.Hardswish)]
    gates = kinds(network, nn.Hardsigmoid)
    assert len(before) > 20
    assert replace_activations(network, "pwlu", intervals=4) == len(before)
    assert isinstance(network.bn1.act, PWLU)
    assert network.bn1.act.num_channels == network.conv_stem.out_channels
    assert not kinds(network, nn.Hardswish)
    assert kinds(network, nn.Hardsigmoid) == gates  # of squeeze-and-excitation
    # In the statistics phase every activation is a ReLU; then, on these images, nearly.
    relu = timm.create_model("mobilenetv3_small_050", num_classes=5)
    replace_activations(relu, "relu")
    relu.load_state_dict(network.state_dict(), strict=False)
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network.eval()(images), relu.eval()(images))
    start_learning(network)
    assert not torch.equal(network(images), relu(images))


def test_one_module_called_at_several_widths():
    network = torchvision.models.resnet50(num_classes=5)
    assert replace_activations(network, "pwlu", intervals=4) == 17
    block = network.layer1[0].relu
    assert isinstance(block, ByWidth)
    assert [m.num_channels for m in block.values()] == [64, 256]
    assert isinstance(network.relu, PWLU)
    assert replace_activations(network, "relu") == 17  # and back
    assert not kinds(network, (PWLU, ByWidth))
    assert torch.isfinite(network(torch.randn(2, 3, 32, 32))).all()


def test_channels_last_in_shape():
    """Linear layers on [n, h, w, c], as in ConvNeXt and Swin."""

    class Last(nn.Sequential):
        def forward(self, images):
            return super().forward(images.permute(0, 2, 3, 1))

    network = Last(timm.layers.Mlp(3, 6, 5))
    assert replace_activations(network, "pwlu") == 1
    assert (network[0].act.num_channels, network[0].act.dim) == (6, -1)
    start_learning(network)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 8, 8, 5)


def test_where_and_whole_layers():
    network = build_network(Network("small_resnet", options={"width": 4}), 5)
    assert replace_activations(network, "silu", where=r"^blocks\.[01]") == 2
    assert isinstance(network.stem[2], nn.ReLU)
    assert replace_activations(network, "pwlu", per_channel=False) == 4
    assert {m.knots.shape for m in kinds(network, PWLU)} == {(17,)}
    assert replace_activations(network, "prelu") == 4
    assert [m.num_parameters for m in kinds(network, nn.PReLU)] == [4, 4, 8, 16]


def test_counts_no_multiply_adds():
    plain, learned = (
        network_size(Network("small_resnet", activation=name), 10, 32) for name in (None, "pwlu")
    )
    assert learned.macs == plain.macs
    assert learned.parameters == plain.parameters + (16 + 16 + 32 + 64) * 21
    network = build_network(Network("small_resnet", activation="pwlu"), 10)
    start_learning(network)
    assert count_macs(network, torch.zeros(1, 3, 32, 32)) == plain.macs


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Network("small_resnet", activation="relo"),
            "unknown activation 'relo': choose of pwlu, prel",
        ),
        (
            Network("small_resnet", activation="pwlu", activation_options={"interval": 3}),
            "activation pwlu with options {'interval': 3}: .*unexpected keyword",
        ),
    ],
)
def test_refused(network, message):
    with pytest.raises(ValueError, match=f"network 'small_resnet': {message}"):
        build_network(network, 10)
    with pytest.raises(ValueError, match="has no activation module where 'x' matches to replace"):
        replace_activations(nn.Sequential(nn.ReLU()), "pwlu", where="x")
    with pytest.raises(ValueError, match="takes no image of the sizes tried"):
        replace_activations(nn.Sequential(nn.Linear(7, 7), nn.ReLU()), "pwlu")


@pytest.mark.usefixtures("operators_once")
@pytest.mark.slow
def test_exports_to_onnx(tmp_path):
    """Plain operators that say what the module says, with any number of images."""
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = build_network(Network("small_resnet", options={"width": 2}, activation="pwlu"), 5)
    network.train()(torch.randn(16, 3, 16, 16))
    start_learning(network)
    with torch.no_grad():
        for act in kinds(network, PWLU):
            act.knots.normal_()
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, 16, 16),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},),
            verbose=False,
        )
    program.save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    images = 3 * torch.randn(5, 3, 16, 16)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, network(images).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_under_torch_compile():
    """The operator is one node of the graph, forward and backward."""
    torch.manual_seed(0)
    act = PWLU(4)
    act.start_learning()
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    compiled = torch.compile(act, backend="aot_eager", fullgraph=True)
    out = compiled(x)
    assert torch.equal(out, act(x))
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.equal(grad, torch.autograd.grad(act(x).square().sum(), x)[0])
