"""PWLU: the formula, its gradients, its layouts and types, its two phases."""

import io

import pytest
import torch
from torch import nn

from vision.networks.pwlu.layer import PWLU, start_learning
from vision.networks.pwlu.operator import piecewise_linear, plain_piecewise_linear


def parameters(channels, intervals, dtype=torch.float64):
    """Bounds about -1 and 1, the rest normal."""
    draw = [-torch.rand(channels) - 0.5, torch.rand(channels) + 0.5]
    draw += [torch.randn(channels, intervals + 1), torch.randn(channels), torch.randn(channels)]
    return [value.to(dtype).requires_grad_() for value in draw]


def by_hand(x, left, right, knots, slope0, slope1):
    """docs/method.md, section 8, for one number."""
    intervals = len(knots) - 1
    width = (right - left) / intervals
    if x < left:
        return (x - left) * slope0 + knots[0]
    if x >= right:
        return (x - right) * slope1 + knots[-1]
    i = min(int((x - left) // width), intervals - 1)
    return knots[i] + (x - left - i * width) / width * (knots[i + 1] - knots[i])


def test_formula():
    torch.manual_seed(0)
    values = [p.detach() for p in parameters(3, 5)]
    x = torch.linspace(-2, 2, 60, dtype=torch.float64).view(4, 3, 5)
    expected = x.clone()
    for place in range(60):
        n, c, i = place // 15, place // 5 % 3, place % 5
        expected[n, c, i] = by_hand(x[n, c, i], *(value[c] for value in values))
    torch.testing.assert_close(piecewise_linear(x, *values), expected)
    torch.testing.assert_close(plain_piecewise_linear(x, *values, 1), expected)


def test_exact_at_its_knots():
    knots = torch.tensor([[3.0, -1.0, 0.5, 2.0, -4.0]])
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    bound = torch.ones(1)
    assert torch.equal(piecewise_linear(x, -bound, bound, knots, bound, bound, None), knots[0])


@pytest.mark.slow
@pytest.mark.parametrize("intervals", [1, 4, 16])
@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 3, 4), 1), ((5, 3), 1), ((2, 3, 4), -1), ((7,), None)]
)
def test_gradients_against_finite_differences(shape, dim, intervals):
    torch.manual_seed(intervals)
    values = parameters(1 if dim is None else shape[dim], intervals)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: piecewise_linear(*a, dim), (x, *values))


_CHANCE = torch.Generator().manual_seed(0)


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_CHANCE)


LAYOUTS = {
    "NCHW": (_numbers(2, 24, 9, 7), 1),
    "NCHW of 2 x 2": (_numbers(3, 5, 2, 2), 1),
    "channels_last": (_numbers(3, 24, 9, 7).to(memory_format=torch.channels_last), 1),
    "channels_last of 20": (_numbers(3, 20, 9, 7).to(memory_format=torch.channels_last), 1),
    "features": (_numbers(70, 6), 1),
    "features last": (_numbers(4, 9, 16), -1),
    "with gaps": (_numbers(4, 40, 9)[:, ::2, 1:], 1),
    "whole layer": (_numbers(3, 7, 12, 5), None),
    "one number": (torch.tensor(0.3), None),
    "none": (torch.empty(0, 3, 4, 4), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("intervals", [16, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_types(layout, intervals, dtype):
    """The loops against plain operators in double precision: values and all gradients."""
    x, dim = LAYOUTS[layout]
    x = (2 * x).to(dtype)
    torch.manual_seed(0)
    exact = parameters(1 if dim is None else x.shape[dim], intervals)
    values = [x.detach().requires_grad_(), *(p.detach().float().requires_grad_() for p in exact)]
    exact = [x.detach().double().requires_grad_(), *exact]
    out, expected = piecewise_linear(*values, dim), plain_piecewise_linear(*exact, dim)
    assert out.dtype == dtype
    if layout != "with gaps":
        assert out.stride() == x.stride()
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=5e-5, rtol=step)

    weight = torch.randn_like(out)
    gradients = torch.autograd.grad(out, values, weight)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, exact, weight.double()), strict=True
    ):
        if ours.numel():
            scale = float(theirs.abs().max()) + 1e-9
            assert float((ours.double() - theirs).abs().max()) < (1e-4 + step) * scale


def test_threads_change_nothing():
    torch.manual_seed(0)
    values = [p.detach().float().requires_grad_() for p in parameters(16, 16)]
    for x in (torch.randn(8, 16, 64, 64), torch.randn(2**15, 16)):
        results = []
        for threads in (1, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                out = piecewise_linear(x, *values)
                results.append([out.detach(), *torch.autograd.grad(out.sum(), values)])
            finally:
                torch.set_num_threads(before)
        for single_threaded, three_threaded in zip(*results, strict=True):
            torch.testing.assert_close(single_threaded, three_threaded)


def test_nan_stays_nan():
    values = [p.detach().float() for p in parameters(1, 4)]
    x = torch.tensor([float("nan")] * 20 + [0.0])
    for y in (piecewise_linear(x, *values, None), plain_piecewise_linear(x, *values, None)):
        assert y.isnan().tolist() == [True] * 20 + [False]


def test_statistics_then_learning():
    torch.manual_seed(0)
    act = PWLU(3)
    x = torch.randn(400, 3, 2, 2) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1) + 1
    mean, std = torch.zeros(3), torch.ones(3)
    for _ in range(4):
        assert torch.equal(act(x), x.relu())
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
        std = 0.9 * std + 0.1 * x.std((0, 2, 3), correction=0)
    torch.testing.assert_close(act.running_mean, mean)
    torch.testing.assert_close(act.running_std, std)
    act(x).sum().backward()
    assert all(bool((p.grad == 0).all()) for p in act.parameters())  # there, and 0
    act.eval()
    frozen = act.running_mean.clone()
    act(x)
    assert torch.equal(act.running_mean, frozen)

    assert start_learning(nn.Sequential(act)) == [act]
    assert start_learning(nn.Sequential(act)) == []
    torch.testing.assert_close(act.left, act.running_mean - 3 * act.running_std)
    torch.testing.assert_close(act.right, act.running_mean + 3 * act.running_std)
    knots = torch.stack(
        [torch.linspace(a, b, 17) for a, b in zip(act.left, act.right, strict=True)]
    ).detach()
    torch.testing.assert_close(act.knots.view(3, 17), knots.relu())
    # ReLU but in the interval around 0, where a straight line cuts the corner.
    width = ((act.right - act.left) / 16).view(3, 1, 1)
    torch.testing.assert_close(
        torch.where(x.abs() > width, act(x), x.relu()), x.relu(), atol=1e-5, rtol=1e-5
    )
    act.train()
    (act(x) + 1).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in act.parameters())


def test_phase_survives_saving():
    act, fresh = PWLU(2, intervals=3), PWLU(2, intervals=3)
    act.start_learning()
    with torch.no_grad():
        act.knots.normal_()
    file = io.BytesIO()
    torch.save(act.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.is_learning
    x = torch.randn(6, 2)
    assert torch.equal(fresh(x), act(x))
    assert not torch.equal(PWLU(2, intervals=3)(x), act(x))


def test_a_channel_that_never_varies():
    act = PWLU(2)
    act.running_std.zero_()
    act.start_learning()
    x = torch.randn(5, 2)
    torch.testing.assert_close(act(x), x.relu(), atol=1e-3, rtol=1e-3)


def test_spared_from_weight_decay():
    from timm.optim import create_optimizer_v2

    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), PWLU(4))
    groups = create_optimizer_v2(network, "sgd", lr=0.1, weight_decay=0.1).param_groups
    assert {len(g["params"]): g["weight_decay"] for g in groups} == {5: 0.0, 1: 0.1}


@pytest.mark.parametrize("arguments", [{"num_channels": 0}, {"intervals": 0}])
def test_refused(arguments):
    with pytest.raises(ValueError, match="intervals and num_channels must be at least 1"):
        PWLU(**arguments)
