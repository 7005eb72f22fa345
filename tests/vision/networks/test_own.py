"""Our own networks: noise whose means and gradients are known, shapes, and every refusal."""

import pytest
import torch

from vision.networks.network import Network, build_network
from vision.networks.own.cifar import CifarResNet, cifar_densenet
from vision.networks.own.scaled import deep_stem_resnext, scaled_efficientnet
from vision.networks.own.shaken import PyramidNet, ShakeDrop, ShakeShake

SMALL = [
    Network("cifar_resnet", options={"depth": 11, "width": 4, "squeeze": True}),
    Network("cifar_resnet", options={"depth": 8, "width": 4, "bottleneck": False}),
    Network("cifar_resnet", options={"depth": 11, "width": 16, "groups": 4, "group_width": 8}),
    Network(
        "cifar_resnet", options={"depth": 11, "width": 4, "drop_rate": 0.3, "drop_path_rate": 0.5}
    ),
    Network("cifar_densenet", options={"growth_rate": 4, "blocks": [2, 2, 2], "drop_rate": 0.1}),
    Network("shake_shake", options={"width": 4, "depth": 8}),
    Network("pyramidnet", options={"depth": 11, "alpha": 10}),
    Network("scaled_efficientnet", options={"channel_multiplier": 0.25, "small_images": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 35])
@pytest.mark.parametrize("network", SMALL, ids=lambda network: network.name)
def test_train_and_evaluate(network, size, channels):
    torch.manual_seed(0)
    built = build_network(network, 7, channels)
    images = torch.randn(3, channels, size, size)
    built(images).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())
    with torch.no_grad():
        logits = built.eval()(images)
        assert logits.shape == (3, 7)
        torch.testing.assert_close(logits[1:2], built(images[1:2]), rtol=1e-4, atol=1e-5)


def test_shake_drop_in_evaluation_is_its_mean():
    torch.manual_seed(0)
    drop, x = ShakeDrop(0.4), torch.ones(20000, 1, 1, 1)
    assert drop(x).mean().item() == pytest.approx(drop.eval()(x)[0].item(), abs=0.02)


def test_shake_drop_gradient_has_other_noise():
    torch.manual_seed(0)
    x = torch.ones(20000, 1, 1, 1, requires_grad=True)
    out = ShakeDrop(1.0)(x)
    out.sum().backward()
    assert out.min() < -0.99
    assert out.max() > 0.99
    assert 0 <= x.grad.min() < 0.01
    assert 0.99 < x.grad.max() <= 1
    assert x.grad.mean().item() == pytest.approx(0.5, abs=0.02)
    correlation = torch.corrcoef(torch.stack([out.flatten(), x.grad.flatten()]))[0, 1]
    assert abs(correlation) < 0.05


def test_shake_drop_of_rate_zero_does_nothing():
    x = torch.randn(4, 2, 3, 3)
    assert torch.equal(ShakeDrop(0.0)(x), x)
    assert torch.equal(ShakeDrop(0.0).eval()(x), x)


def test_shake_drop_rises_to_the_last_unit():
    rates = [
        m.rate for m in PyramidNet(10, depth=20, alpha=6).modules() if isinstance(m, ShakeDrop)
    ]
    assert rates == pytest.approx([0.5 * unit / 6 for unit in range(1, 7)])


def test_shake_shake_mixes_at_random_only_in_training():
    torch.manual_seed(0)
    built = ShakeShake(10, width=4, depth=8)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(built(images), built(images))
        assert torch.equal(built.eval()(images), built(images))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CifarResNet(10, depth=12), r"depth=12.*not 9 m \+ 2.*near are 11 and 20"),
        (lambda: CifarResNet(10, depth=11, bottleneck=False), r"not 6 m \+ 2 or 6 m \+ 4"),
        (lambda: CifarResNet(10, depth=1), r"depth=1 .*near are 11"),
        (lambda: CifarResNet(10, width=0), r"width must be at least 1, got 0"),
        (
            lambda: CifarResNet(10, depth=8, bottleneck=False, groups=2),
            r"groups=2 needs bottleneck",
        ),
        (
            lambda: CifarResNet(10, width=8, group_width=4),
            r"width=8 with group_width=4 leaves 32/64",
        ),
        (lambda: cifar_densenet(10, growth_rate=0), r"growth_rate must be at least 1, got 0"),
        (lambda: PyramidNet(10, depth=30), r"depth=30 is not 9 n \+ 2.*near are 29 and 38"),
        (lambda: PyramidNet(10, stem=0), r"stem must be at least 1.*got 0"),
        (lambda: ShakeShake(10, depth=9), r"depth=9 is not 6 m \+ 2"),
        (lambda: ShakeShake(10, width=1), r"width must be at least 2.*got 1"),
        (lambda: ShakeDrop(1.5), r"probability in \[0, 1\], got 1.5"),
        (lambda: scaled_efficientnet(10, variant="b9"), r"variant 'b9' is not one of"),
        (lambda: scaled_efficientnet(10, channels=[8]), r"channels of 7 stages, got 1"),
        (lambda: scaled_efficientnet(10, channel_multiplier=0.0), r"above 0, got 8 and 0.0"),
        (lambda: deep_stem_resnext(10, layers=(1, 1)), r"four stages, got layers of 2"),
        (lambda: deep_stem_resnext(10, stem=63), r"stem must be even, got 63"),
        (lambda: deep_stem_resnext(10, groups=0), r"at least 1, got 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_deep_stem_resnext_runs():
    built = deep_stem_resnext(5, layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), groups=2, stem=8)
    assert built.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
