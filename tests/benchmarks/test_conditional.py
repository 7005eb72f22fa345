"""benchmarks/conditional.py: what its networks compute, and the multiply-adds that it counts for them."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from coe_core import count_macs

FOLDER = Path(__file__).parents[2] / "benchmarks"
SIZE, WIDTH, IMAGES = 32, 8, 16


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:  # the script finds what stands beside it
        patch.syspath_prepend(FOLDER)
        return importlib.import_module("conditional")


@pytest.fixture(scope="module")
def images():
    return torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def built(benchmark, name):
    torch.manual_seed(0)
    return benchmark.Conditional(WIDTH, benchmark.VARIANTS[name]).eval()


def names(benchmark):
    return list(benchmark.VARIANTS)


@pytest.mark.parametrize("number", range(9))
@torch.no_grad()
def test_every_variant_classifies_each_image_by_itself(benchmark, images, number):
    assert len(names(benchmark)) == 9
    network = built(benchmark, names(benchmark)[number])
    drawn = benchmark.draw(network, IMAGES, SIZE)
    logits = network(images, drawn)
    assert logits.shape == (IMAGES, benchmark.CLASSES)
    alone = torch.cat([network(images[i : i + 1], [s[i : i + 1] for s in drawn]) for i in range(4)])
    torch.testing.assert_close(logits[:4], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["CondConv", "dynamic convolution"])
@torch.no_grad()
def test_mixed_kernels_are_the_same_as_products(benchmark, images, kind):
    published, fast = built(benchmark, kind), built(benchmark, f"{kind}, as products")
    fast.load_state_dict(published.state_dict())
    torch.testing.assert_close(published(images), fast(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masked_layers_are_the_same_as_skipped_ones(benchmark, images):
    masked = built(benchmark, "layer skipping, masked")
    skipped = built(benchmark, "layer skipping, really")
    skipped.load_state_dict(masked.state_dict())
    drawn = benchmark.draw(masked, IMAGES, SIZE)
    torch.testing.assert_close(masked(images, drawn), skipped(images, drawn), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_position", [False, True])
@torch.no_grad()
def test_rows_go_through_the_drawn_expert_alone(benchmark, by_position):
    layer = benchmark.ExpertsPerceptron(6, by_position)
    x = torch.randn(3, 6, 2, 2)
    places = (3, 2, 2) if by_position else (3,)
    chosen = torch.randint(benchmark.EXPERTS, places)
    drawn = 8.0 * nn.functional.one_hot(chosen, benchmark.EXPERTS).float()
    out = layer(x, drawn)
    gate = drawn.softmax(-1).amax()
    for i, row, column in [(0, 0, 0), (1, 1, 0), (2, 1, 1)]:
        expert = layer.experts[int(chosen[i, row, column] if by_position else chosen[i])]
        torch.testing.assert_close(out[i, :, row, column], gate * expert(x[i, :, row, column]))


@torch.no_grad()
def test_half_of_the_channels_are_kept_and_half_of_the_layers_run(benchmark, images):
    layer = benchmark.GatedPerceptron(8)
    x = torch.randn(2, 8, 3, 3)
    seen = []
    layer.narrow.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.gate.bias.fill_(9.0)  # no score is 0
    layer.widen.bias.fill_(9.0)
    layer(x)
    assert ((seen[0] != 0).any(-1).any(-1).sum(1) == 16).all()
    network = built(benchmark, "layer skipping, masked")
    for scores in benchmark.draw(network, IMAGES, SIZE):
        assert ((scores.view(-1, 8) > 0).sum(1) == 4).all()


def test_multiply_adds_by_hand(benchmark):
    """A block of c channels over p positions: 9 c p for the depthwise convolution, 8 c c p for the rest."""
    positions, depths = [64, 16, 4], benchmark.DEPTHS
    widths = [WIDTH, 2 * WIDTH, 4 * WIDTH]
    ends = 48 * WIDTH * 64 + benchmark.CLASSES * widths[-1]
    ends += sum(4 * a * 2 * a * p for a, p in zip(widths, positions[1:], strict=False))
    spatial = sum(9 * c * p * d for c, p, d in zip(widths, positions, depths, strict=True))
    dense = sum(8 * c * c * p * d for c, p, d in zip(widths, positions, depths, strict=True))
    gates = sum(4 * c * c * d for c, d in zip(widths, depths, strict=True))
    skips = sum(c * d for c, d in zip(widths, depths, strict=True))
    assert benchmark.counted("plain", WIDTH, SIZE) == ends + spatial + dense
    gated = benchmark.counted("channel gating, masked", WIDTH, SIZE)
    assert gated == ends + spatial + dense / 2 + gates
    really = benchmark.counted("layer skipping, really", WIDTH, SIZE)
    assert really == ends + (spatial + dense) / 2 + skips
    assert benchmark.counted("layer skipping, masked", WIDTH, SIZE) == really


def test_a_layer_that_runs_every_expert_on_its_rows_costs_one_of_them(benchmark, images):
    for name in ("mixture of experts, per image", "mixture of experts, per position"):
        network = built(benchmark, name)
        drawn = benchmark.draw(network, IMAGES, SIZE)
        assert count_macs(network, images, drawn) == IMAGES * benchmark.counted(name, WIDTH, SIZE)


@torch.inference_mode()
def test_all_systems_have_the_multiply_adds_of_the_plain_one(benchmark):
    images = torch.randn(8, 3, SIZE, SIZE)
    made, failed = benchmark.systems("eager", images, ["collaboration", "CondConv", "multi"])
    assert not failed
    assert made[0].name == "plain"
    assert len(made) == 6
    target = made[0].macs
    assert all(abs(system.macs / target - 1) < 0.1 for system in made)
    rows = benchmark.measure(made, images, 8, "eager", "thread", 1)
    assert rows[0]["relative"] == 1
    lines = benchmark.table(rows).splitlines()
    assert len(lines) == 2 + len(made)
    assert lines[0] == "| system | MMACs | 8: ms | relative |"
