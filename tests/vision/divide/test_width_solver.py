"""The width solver: budgets met, knobs found, and messages that name numbers and alternatives."""

import math

import pytest

from vision.divide.division import divide_network
from vision.divide.regularisers import DEFAULTS, REGULARISER_RULES, divide_regularisers
from vision.networks.network import Network, build_network
from vision.networks.size import constructor_arguments, network_size
from vision.recipe import recipe_from_dict


def net(name: str, **options) -> Network:
    return Network(name, options=options)


WRN = {"depth": 10, "width": 160, "stem": 16, "bottleneck": False}
OWN = [
    (net("small_resnet", width=64), "width"),
    (net("cifar_resnet", **WRN), "width"),
    (net("cifar_resnet", depth=11, width=64, groups=8), "width"),
    (net("cifar_densenet", growth_rate=24, blocks=[2, 2]), "growth_rate"),
    (net("pyramidnet", depth=11, alpha=60), "alpha"),
    (net("shake_shake", depth=8), "width"),
]
LIBRARY = [
    (net("scaled_efficientnet", small_images=True), 32, "channel_multiplier"),
    (net("resnet18"), 64, "channels"),
    (net("convnext_atto", depths=(1, 1, 1, 1)), 64, "dims"),
    (net("vit_tiny_patch16_224", depth=2), 224, "embed_dim"),
    (net("densenet121", block_config=(2, 4), growth_rate=48), 64, "growth_rate"),
    (net("torchvision/resnet50"), 64, "width_per_group"),
    (net("torchvision/mobilenet_v3_small"), 64, "width_mult"),
]


def check(division, match, knob):
    before, after = (getattr(s, match) for s in (division.undivided_size, division.total))
    assert after == pytest.approx(before, rel=0.03)
    assert knob in division.changed
    assert division.rule == "solve"


@pytest.mark.slow
@pytest.mark.parametrize("match", ["macs", "parameters"])
@pytest.mark.parametrize(("network", "knob"), OWN, ids=lambda v: getattr(v, "name", v))
def test_budget_is_met_within_three_percent(network, knob, match):
    check(divide_network(network, 2, match), match, knob)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "size", "knob"), LIBRARY, ids=lambda v: getattr(v, "name", v))
def test_networks_of_the_libraries(network, size, knob):
    check(divide_network(network, 2, image_size=size), "macs", knob)


@pytest.mark.slow
@pytest.mark.parametrize("s", [2, 3, 4, 5, 7, 8, 12, 16])
def test_any_s(s):
    wide = net("cifar_resnet", **WRN)
    division = divide_network(wide, s)
    assert division.total.macs == pytest.approx(division.undivided_size.macs, rel=0.03)


@pytest.mark.slow
def test_channels_are_multiples_of_eight_where_the_budget_allows():
    width = divide_network(net("cifar_resnet", **WRN), 4).divided.options["width"]
    assert width % 8 == 0
    dims = divide_network(
        net("convnext_tiny", depths=(1, 1, 1, 1)), 2, image_size=32
    ).divided.options["dims"]
    assert all(dim % 8 == 0 for dim in dims)


@pytest.mark.slow
def test_attention_heads_keep_dividing_the_width():
    division = divide_network(net("vit_tiny_patch16_224", depth=2), 3, image_size=224)
    assert division.divided.options["embed_dim"] % 3 == 0


@pytest.mark.slow
def test_swin_is_mended_by_its_mlps():
    network = net("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    division = divide_network(network, 2, image_size=224)
    assert division.divided.options["embed_dim"] % 3 == 0
    assert division.total.macs == pytest.approx(division.undivided_size.macs, rel=0.03)


@pytest.mark.slow
def test_a_knob_may_be_chosen():
    division = divide_network(net("resnet26"), 2, image_size=64, knob="base_width")
    assert [*division.changed] == ["base_width"]
    assert division.total.macs == pytest.approx(division.undivided_size.macs, rel=0.03)


def test_a_factor_may_be_chosen_though_the_class_does_not_show_it():
    network = net("torchvision/mobilenet_v3_small")
    with pytest.raises(ValueError, match=r"too narrow to divide into s=99.*width_mult from 1.0"):
        divide_network(network, 99, image_size=32, knob="width_mult")


def test_s_of_one_changes_nothing():
    wide = net("small_resnet", width=8)
    division = divide_network(wide, 1)
    assert division.divided == wide
    assert division.total == division.undivided_size


def test_the_divided_network_is_a_recipe_entry():
    division = divide_network(net("small_resnet", width=64), 4)
    entry = {"name": division.divided.name, "options": division.divided.options}
    recipe = recipe_from_dict({"delegator": "small_resnet", "experts": entry, "num_experts": 4})
    assert recipe.experts == [division.divided]
    built = build_network(division.divided, 10)
    assert sum(p.numel() for p in built.parameters()) == division.divided_size.parameters


def test_sizes_on_the_meta_device_are_those_of_the_real_network():
    import torch

    from coe_core import count_macs

    network = net("shake_shake", width=8, depth=8)
    real = build_network(network, 10)
    size = network_size(network, 10, 32)
    assert size.parameters == sum(p.numel() for p in real.parameters())
    assert size.macs == count_macs(real, torch.zeros(1, 3, 32, 32))


def test_the_meta_device_is_not_initialised(monkeypatch):
    """Numbers that are not there would take half of the time."""

    def written(*_):
        pytest.fail("a tensor of the meta device was initialised")

    for name in ("_no_grad_normal_", "_no_grad_uniform_"):
        monkeypatch.setattr(f"torch.nn.init.{name}", written)
    network_size(net("scaled_efficientnet", small_images=True), 10, 32)


def test_constructor_arguments_are_those_of_the_class():
    assert constructor_arguments(net("resnext50_32x4d"))["cardinality"] == 32
    assert constructor_arguments(net("torchvision/resnext50_32x4d"))["groups"] == 32
    assert constructor_arguments(net("small_resnet", width=4))["width"] == 4
    assert constructor_arguments(net("small_resnet"))["blocks"] == 1


@pytest.mark.parametrize(
    ("network", "s", "options", "message"),
    [
        ("small_resnet", 0, {}, r"s must be at least 1, got 0"),
        ("small_resnet", -2, {}, r"s must be at least 1, got -2"),
        ("small_resnet", 1.5, {}, r"s must be at least 1, got 1.5; it counts networks"),
        ("small_resnet", 2, {"tolerance": -1}, r"above 0 and below 1, got -1; 0.03 is 3%"),
        ("small_resnet", 2, {"tolerance": math.nan}, r"above 0 and below 1, got nan"),
        ("small_resnet", 2, {"weight_decay": -1e-4}, r"weight_decay must be finite.*got -0.0001"),
        ("small_resnet", 2, {"weight_decay": math.inf}, r"weight_decay must be finite.*got inf"),
        ("resnet_110", 2, {}, r"unknown network 'resnet_110'.*goes by paper/resnet_110"),
        (
            "small_resnet",
            300,
            {},
            r"too narrow to divide into s=300.*width from 16 to 1.*at most s=\d+",
        ),
        (
            "small_resnet",
            4,
            {},
            r"too narrow to divide into s=4 within 3%: 8 as width.*\+3\.5% macs",
        ),
        ("vgg11", 2, {"image_size": 224}, r"vgg11 has no width knob.*resnet50 \(channels\)"),
        ("efficientnet_b0", 2, {}, r"efficientnet_b0 has no width knob.*scaled_efficientnet"),
        ("resnet81", 2, {}, r"unknown network 'resnet81'; nearest: resnet18"),
        ("small_resnet", 2, {"match": "mac"}, r"unknown match 'mac'; nearest: macs"),
        ("small_resnet", 2, {"knob": "widht"}, r"no knob 'widht'.*nearest: width"),
        ("vgg11", 2, {"image_size": 224, "knob": "kernel_size"}, r"no knob 'kernel_size'"),
        ("small_resnet", 2, {"rule": "slove"}, r"unknown rule 'slove'; nearest: solve"),
        (
            "small_resnet",
            2,
            {"rule": "planes", "knob": "width"},
            r"knob 'width' is for rule 'solve'",
        ),
        ("vit_tiny_patch16_224", 2, {}, r"does not take images of 32 x 32.*--size"),
    ],
)
def test_refusals(network, s, options, message):
    with pytest.raises(ValueError, match=message):
        divide_network(network, s, **options)


def test_pretrained_weights_are_refused():
    with pytest.raises(
        ValueError, match=r"resnet18: published weights do not fit.*pretrained=false"
    ):
        divide_network(Network("resnet18", pretrained=True), 2)


def test_a_bad_option_is_named():
    with pytest.raises(ValueError, match=r"'small_resnet' with options \{'widht': 8\}"):
        divide_network(net("small_resnet", widht=8), 2)


# Regularisers


def test_weight_decay_as_published():
    factors = [REGULARISER_RULES["exponential"](1.0, s) for s in (1, 2, 4)]
    assert factors == pytest.approx([1, 0.6065, 0.4724], abs=5e-5)


@pytest.mark.parametrize(
    ("option", "resnet", "factor"),
    [
        ("drop_rate", True, 1 / 4),
        ("drop_rate", False, 1 / 2),
        ("dropout", False, 1 / 2),
        ("drop_path_rate", True, 1 / 2),
        ("stochastic_depth_prob", False, 1 / 2),
        ("drop_block_rate", True, 1 / 2),
        ("shake_drop", False, 1 / 2),
        ("weight_decay", True, math.exp(-3 / 4)),
    ],
)
def test_each_regulariser_by_its_rule(option, resnet, factor):
    [divided] = divide_regularisers({option: 0.2, "depth": 3, "squeeze": True}, 4, resnet)
    assert divided.after == pytest.approx(0.2 * factor)
    [kept] = divide_regularisers({option: 0.2}, 4, resnet, {divided.kind: "none"})
    assert kept.after == 0.2


def test_regularisers_that_are_off_are_left_out():
    assert divide_regularisers({"drop_rate": 0.0, "weight_decay": 0}, 2) == ()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"dropuot": "none"}, r"unknown regulariser 'dropuot'; nearest: dropout"),
        ({"dropout": "squared"}, r"unknown rule 'squared' for dropout.*linear, sqrt, exponential"),
    ],
)
def test_unknown_regularisers_and_rules(rules, message):
    with pytest.raises(ValueError, match=message):
        divide_regularisers({}, 2, rules=rules)


def test_every_kind_has_a_rule():
    assert set(DEFAULTS.values()) <= set(REGULARISER_RULES)


def test_divided_regularisers_are_in_the_divided_network():
    wide = net("cifar_resnet", **WRN, drop_rate=0.3, drop_path_rate=0.2)
    divided = divide_network(wide, 4, weight_decay=5e-4)
    assert divided.divided.options["drop_rate"] == pytest.approx(0.075)
    assert divided.divided.options["drop_path_rate"] == pytest.approx(0.1)
    assert divided.weight_decay == pytest.approx(5e-4 * 0.4724, rel=1e-3)
    pyramid = divide_network(Network("paper/pyramidnet_272", options={"depth": 11}), 2).divided
    assert pyramid.options["shake_drop"] == pytest.approx(0.5 / math.sqrt(2))


# The command


def test_command_prints_sizes_and_regularisers(cli, capsys):
    arguments = ("width=64", "--weight-decay", "1e-3", "--regulariser", "weight_decay=linear")
    assert cli("divide", "small_resnet", "-s", 4, *arguments) == 0
    shown = capsys.readouterr().out
    for text in (
        "divided into 4 by rule solve",
        "4 divided",
        "0.00025",
        "linear",
        "name: small_resnet",
    ):
        assert text in shown


def test_command_on_a_paper_network(cli, capsys):
    assert cli("divide", "paper/wrn_16_8", "-s", 2, "--match", "parameters") == 2
    assert "--match has no effect" in capsys.readouterr().err
    assert cli("divide", "paper/wrn_16_8", "-s", 2) == 0
    shown = capsys.readouterr().out
    assert "by rule widening" in shown
    assert "options: {depth: 16, width: 96, stem: 16, bottleneck: false}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small_resnet", "-s", "0"], "s must be at least 1, got 0"),
        (["small_resnet", "-s", "2", "--match", "time"], "it is macs or parameters"),
        (["small_resnet", "-s", "2", "width=[1"], "is not YAML"),
        (["small_resnet", "-s", "2", "--regulariser", "dropout"], "unknown rule '' for dropout"),
        (["paper/nothing", "-s", "2"], "the paper has no network 'nothing'"),
    ],
)
def test_command_errors(cli, capsys, arguments, message):
    assert cli("divide", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
