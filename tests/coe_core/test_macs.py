"""Multiply-adds against hand counts, published numbers and torch's own counter."""

import copy
import itertools

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from coe_core import UncountedOperatorError, count_macs, mixture_macs


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


HAND_COUNTS = {
    "linear": (nn.Linear(20, 30), (1, 20), 20 * 30),
    "linear, no bias, batch, tokens": (nn.Linear(20, 30, bias=False), (2, 5, 20), 10 * 20 * 30),
    "linear of a vector": (nn.Linear(20, 30), (20,), 20 * 30),
    "convolution": (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 16, 16), 16 * 16 * 8 * 3 * 9),
    "stride": (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 16, 16), 8 * 8 * 8 * 3 * 9),
    "dilation": (nn.Conv2d(3, 8, 3, dilation=2, bias=False), (1, 3, 16, 16), 12 * 12 * 8 * 27),
    "groups": (nn.Conv2d(8, 16, 3, groups=4), (2, 8, 10, 10), 2 * 8 * 8 * 16 * 2 * 9),
    "depthwise": (nn.Conv2d(8, 8, 5, groups=8), (1, 8, 10, 10), 6 * 6 * 8 * 25),
    "1d": (nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 6 * 4 * 3),
    "3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 9),
    "transposed, groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
    "embedding": (Call(lambda x: functional.embedding(x.long(), x.new_zeros(9, 5))), (2, 3), 0),
    "lstm": (nn.LSTM(8, 16), (5, 2, 8), 5 * 2 * 4 * (8 * 16 + 16 * 16)),
    "lstm, two layers, both ways": (
        nn.LSTM(8, 16, num_layers=2, bidirectional=True),
        (5, 2, 8),
        5 * 2 * 2 * 4 * (8 * 16 + 16 * 16 + 32 * 16 + 16 * 16),
    ),
    "gru": (nn.GRU(8, 16), (5, 2, 8), 5 * 2 * 3 * (8 * 16 + 16 * 16)),
    "lstm cell": (nn.LSTMCell(8, 16), (2, 8), 2 * 4 * (8 * 16 + 16 * 16)),
    "matrix by vector": (Call(lambda x: x @ x[0]), (8, 8), 64),
    "added matrix by vector": (Call(lambda x: torch.addmv(x[0], x, x[0], beta=2)), (8, 8), 64),
    "dot product": (Call(lambda x: x @ x), (8,), 8),
    "einsum": (Call(lambda x: torch.einsum("nd,md->nm", x, x)), (3, 8), 3 * 3 * 8),
}


@pytest.mark.parametrize("name", HAND_COUNTS)
def test_hand_counts(name):
    module, shape, expected = HAND_COUNTS[name]
    assert count_macs(module, torch.zeros(shape)) == expected


@pytest.mark.parametrize("name", HAND_COUNTS)
def test_hand_counts_in_inference_mode(name):
    module, shape, expected = HAND_COUNTS[name]
    with torch.inference_mode():
        assert count_macs(copy.deepcopy(module), torch.zeros(shape)) == expected


ATTENTION = 2 * 5 * 5 * 16  # scores and their use, over all heads, for 5 tokens of width 16


def test_scaled_dot_product_attention():
    x = torch.zeros(1, 4, 5, 4)
    assert count_macs(Call(functional.scaled_dot_product_attention), x, x, x) == ATTENTION
    mask = torch.zeros(5, 5)
    masked = Call(lambda q: functional.scaled_dot_product_attention(q, q, q, attn_mask=mask))
    assert count_macs(masked, x) == ATTENTION


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention(need_weights, batch_first):
    shape = (1, 5, 16) if batch_first else (5, 1, 16)
    x = torch.zeros(shape)
    module = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    assert count_macs(module, x, x, x, need_weights=need_weights) == 5 * 4 * 16 * 16 + ATTENTION


def test_transformer_layers_and_their_fused_path_is_put_back():
    feed_forward = 2 * 5 * 16 * 32
    attention = 5 * 4 * 16 * 16 + ATTENTION
    encoder = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)
    decoder = nn.TransformerDecoderLayer(16, 4, dim_feedforward=32, batch_first=True)
    x = torch.zeros(1, 5, 16)
    assert torch.backends.mha.get_fastpath_enabled()
    assert count_macs(nn.TransformerEncoder(encoder, 2), x) == 2 * (attention + feed_forward)
    assert count_macs(decoder, x, x) == 2 * attention + feed_forward
    assert torch.backends.mha.get_fastpath_enabled()


PUBLISHED = {  # millions, from the papers or the model zoos, with attention
    "resnet18": (torchvision.models.resnet18, 1814, 1),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 57, 1),
    "mobilenetv3_large_100": (lambda: timm.create_model("mobilenetv3_large_100"), 217, 2),
    "tinynet_e": (lambda: timm.create_model("tinynet_e"), 24, 1, 106),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224"), 1254, 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    build, millions, within, *size = PUBLISHED[name]
    size = size[0] if size else 224
    with torch.device("meta"):
        model, image = build(), torch.zeros(1, 3, size, size)
    assert count_macs(model, image) / 1e6 == pytest.approx(millions, abs=within)


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.resnet18,
        lambda: timm.create_model("mobilenetv3_small_050"),
        lambda: timm.create_model("vit_tiny_patch16_224", depth=2),
    ],
)
def test_half_of_what_torch_counts(build):
    model = build().eval()
    x = torch.zeros(1, 3, 224, 224)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # Of shapes, for torch 2.10, which counts none for it.
    own = {attention: lambda q, k, v, *_, **__: 4 * q.numel() * k[2]}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=own) as counter:
        model(x)
    assert count_macs(model, x) == counter.get_total_flops() // 2


ELEMENTWISE = [
    *[getattr(nn, name)() for name in ("ReLU", "GELU", "SiLU", "Hardswish", "Hardsigmoid")],
    *[getattr(nn, name)() for name in ("Mish", "PReLU", "Sigmoid", "Softplus", "Softmax2d")],
    *[nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.InstanceNorm2d(4), nn.GLU(1)],
    *[nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(3)],
    *[nn.Upsample(None, 2, mode) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")],
    *[nn.PixelShuffle(2), nn.ReflectionPad2d(1), nn.Dropout(), nn.Flatten(), nn.Unfold(2)],
]


@pytest.mark.parametrize("module", ELEMENTWISE, ids=lambda module: type(module).__name__)
def test_element_wise_work_does_not_count(module):
    assert count_macs(module, torch.zeros(1, 4, 8, 8)) == 0


def test_a_batch_counts_all_its_samples():
    model = torchvision.models.squeezenet1_1()
    macs = count_macs(model, torch.zeros(1, 3, 64, 64))
    assert count_macs(model, torch.zeros(3, 3, 64, 64)) == 3 * macs


def test_the_module_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout()))
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    count_macs(model, torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert [part.training for part in model.modules()] == [True, True, False, True, True]
    assert torch.equal(torch.get_rng_state(), rng)
    assert len(before) == 7
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_module_is_left_as_it_was_after_an_error():
    model = nn.Linear(3, 4).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(model, torch.zeros(1, 5))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_fused_path_that_was_off_stays_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        count_macs(nn.Linear(3, 4), torch.zeros(1, 3))
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_no_graph_is_built():
    outputs = []
    linear = nn.Linear(3, 4)
    count_macs(Call(lambda x: outputs.append(linear(x))), torch.zeros(1, 3, requires_grad=True))
    assert not outputs[0].requires_grad


def test_inputs_on_another_device_than_the_module_are_a_clear_error():
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    with pytest.raises(RuntimeError, match="meta"):
        count_macs(model, torch.zeros(1, 3))


numbers = itertools.count()


def custom_operator():
    @torch.library.custom_op(f"coe_test::mystery{next(numbers)}", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    return mystery


def test_an_unknown_operator_is_an_error_that_names_it():
    mystery = custom_operator()
    name = mystery._qualname.replace("::", r"\.")
    with pytest.raises(UncountedOperatorError, match=rf"'{name}'\] are not known; register a form"):
        count_macs(nn.Sequential(nn.Linear(4, 4), Call(mystery)), torch.zeros(4, 4))


def test_a_registered_operator_counts():
    mystery = custom_operator()
    packet = getattr(torch.ops.coe_test, mystery._qualname.split("::")[1])
    torch.utils.flop_counter.register_flop_formula(packet)(lambda shape, **_: 2 * shape[0] ** 3)
    assert count_macs(Call(mystery), torch.zeros(4, 4)) == 64


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.linalg.svd(x), "aten._linalg_svd"),
        (lambda x: torch.cdist(x, x), "aten._cdist_forward"),
        (lambda x: torch.fft.fft(x), "aten._fft_r2c"),
    ],
)
def test_operators_with_uncounted_products_are_errors(function, name):
    with pytest.raises(UncountedOperatorError, match=name):
        count_macs(Call(function), torch.eye(4))


# mixture_macs


def test_mixture_by_hand():
    assert mixture_macs(10.0, [100.0, 200.0], 0.25) == pytest.approx(10 + 0.75 * 150)
    assert mixture_macs(10.0, [100.0, 200.0], 0.25, [0.9, 0.1]) == pytest.approx(10 + 0.75 * 110)
    assert mixture_macs(10.0, torch.tensor([100.0]), 1.0) == 10
    assert mixture_macs(10, [100, 300], 0, torch.tensor([1, 0])) == 110


@pytest.mark.parametrize("exit_rate", [-0.1, 1.1, float("nan")])
def test_an_exit_rate_out_of_range_is_an_error(exit_rate):
    with pytest.raises(ValueError, match=rf"exit_rate must be in \[0, 1\], got {exit_rate}"):
        mixture_macs(1.0, [1.0], exit_rate)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ([0.5], "got 1 parts with sum 0.5 for 2 experts"),
        ([0.5, 0.6], "got 2 parts with sum 1.1 for 2 experts"),
        ([1.5, -0.5], "none below 0"),
        ([float("nan"), 1.0], "with sum nan"),
    ],
)
def test_a_load_that_does_not_fit_is_an_error(load, message):
    with pytest.raises(ValueError, match=message):
        mixture_macs(1.0, [1.0, 2.0], 0.5, load)


def test_no_experts_are_an_error():
    with pytest.raises(ValueError, match="expert_macs is empty"):
        mixture_macs(1.0, [], 0.5)


def test_batch_normalisation_on_the_meta_device():
    """It is not run there; one that does not fit still fails."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    images = torch.zeros(2, 3, 8, 8)
    assert count_macs(network, images) == count_macs(network.to("meta"), images.to("meta"))
    with pytest.raises(RuntimeError):
        count_macs(nn.BatchNorm2d(4).to("meta"), images.to("meta"))
