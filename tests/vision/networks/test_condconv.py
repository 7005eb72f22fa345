"""Mixed kernels: what they compute, what they cost, what becomes of the network around them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from coe_core import count_macs
from vision.networks.condconv import RoutedConv2d, replace_convolutions
from vision.networks.network import Network, build_network
from vision.networks.size import network_size


@pytest.mark.parametrize("groups", [1, 4])
def test_every_image_has_its_own_kernel(groups):
    torch.manual_seed(0)
    mixed = RoutedConv2d(nn.Conv2d(4, 8, 3, 2, 1, groups=groups), num_experts=3)
    images = torch.randn(5, 4, 7, 7)
    alpha = torch.sigmoid(images.mean((2, 3)) @ mixed.routing.weight.T + mixed.routing.bias)
    kernels = mixed.conv.weight.view(3, 8, 4 // groups, 3, 3)
    for image, weight, out in zip(images, alpha, mixed(images), strict=True):
        kernel = torch.einsum("e,eoihw->oihw", weight, kernels)
        alone = conv2d(image[None], kernel, weight @ mixed.conv.bias, 2, 1, groups=groups)[0]
        torch.testing.assert_close(out, alone, atol=1e-5, rtol=1e-5)


def test_macs_by_hand():
    # 3x3, 4 -> 8 at stride 2 of 8x8: 16 positions; mixing 3 kernels; routing 4 -> 3; bias is mixed too.
    mixed = RoutedConv2d(nn.Conv2d(4, 8, 3, 2, 1), num_experts=3)
    kernel = 4 * 8 * 9
    assert count_macs(mixed, torch.zeros(1, 4, 8, 8)) == 16 * kernel + 3 * (kernel + 8) + 4 * 3
    assert count_macs(mixed, torch.zeros(2, 4, 8, 8)) == 2 * (16 * kernel + 3 * (kernel + 8) + 12)


@pytest.mark.slow
def test_macs_of_timms_own():
    """EfficientNet-B0 with its blocks of CondConv: routing once a block, mixing for each convolution."""
    plain = build_network(Network("efficientnet_b0"), 10)
    extra = 0
    for stage in (4, 5, 6):  # timm's last three
        for block in plain.blocks[stage]:
            kernels = (block.conv_pw, block.conv_dw, block.conv_pwl)
            extra += 4 * (block.conv_pw.in_channels + sum(c.weight.numel() for c in kernels))
    # Where stages become CondConv timm leaves their squeeze-and-excitation as it is.
    cost = [network_size(Network(f"efficientnet_{n}"), 10, 64).macs for n in ("b0", "cc_b0_4e")]
    assert cost[1] - cost[0] == extra


def test_starts_at_the_scale_of_the_convolution():
    torch.manual_seed(0)
    plain, images = nn.Conv2d(16, 64, 3, padding=1, bias=False), torch.randn(8, 16, 9, 9)
    new, kept = (RoutedConv2d(plain, 4, keep_weights=keep)(images) for keep in (False, True))
    out, new, kept = (t.detach() for t in (plain(images), new, kept))
    assert 0.8 < float(new.std() / out.std()) < 1.25
    assert float((kept - out).std()) < 0.3 * float(out.std()) < float((new - out).std())


def test_where():
    network = build_network(Network("mobilenetv3_small_050"), 10)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert replace_convolutions(network, 2, where=r"^blocks\.[3-4]\.\d+\.conv") == 15
    mixed = {n for n, m in network.named_modules() if isinstance(m, RoutedConv2d)}
    assert mixed == {n for n in names if n.startswith(("blocks.3", "blocks.4")) and ".se." not in n}

    default = build_network(Network("mobilenetv3_small_050", condconv=2), 10)
    mixed = [n for n, m in default.named_modules() if isinstance(m, RoutedConv2d)]
    assert mixed
    assert not any(".se." in n or "head" in n or "stem" in n for n in mixed)
    assert default.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condconv": 1}, "condconv mixes at least 2 kernels, got 1"),
        (
            {"condconv": 4, "condconv_where": "block5"},
            r"no convolution of SmallResNet to replace where 'block5' matches; it has stem.0, blocks",
        ),
        ({"condconv": 4, "condconv_where": "("}, r"'\(' is no regular expression: missing \)"),
        (  # re takes 20 s for it
            {"condconv": 4, "condconv_where": r"^(([a-z0-9._])+)+!$"},
            r"no convolution of SmallResNet to replace where",
        ),
        (
            {"condconv": 4, "condconv_where": r"^(([a-z0-9._])+)+!$"},
            "the regular expression .* takes more than .* s on one name",
        ),
        (
            {"activation": "mish", "activation_options": {"where": r"^(([a-z0-9._])+)+!$"}},
            "the regular expression .* takes more than .* s on one name",
        ),
        (
            {"activation": "mish", "activation_options": {"where": "("}},
            r"'\(' is no regular expression: missing \)",
        ),
        (
            {"activation": "mish", "activation_options": {"where": 3}},
            "where must be a regular expression, got 3",
        ),
    ],
)
def test_refused(options, message, monkeypatch):
    if "takes" in message:
        monkeypatch.setattr("vision.networks.names._SECONDS", 1e-9)
    with pytest.raises(ValueError, match=f"network 'small_resnet': {message}"):
        build_network(Network("small_resnet", **options), 10)
