"""The paper's own networks and rules: sizes to the last digit that it prints, and every refusal."""

import math

import pytest

from vision.divide.division import divide_network
from vision.divide.published import DIVISION_RULES, PUBLISHED, apply_rule, published_network
from vision.networks.network import Network
from vision.networks.size import constructor_arguments, network_size

# Specification, section 7: parameters in M / conv + linear GMACs of all s networks together.
GOLDEN = {
    "resnet_110": ("1.148 .167", "1.30 .19", "1.17 .17"),
    "wrn_16_8": ("10.963 1.548", "12.35 1.75", "11.00 1.57"),
    "wrn_28_10": ("36.481 5.243", "35.77 5.15", "36.54 5.27"),
    "wrn_40_10": ("55.844 8.074", "54.75 7.92", "55.91 8.10"),
    "resnext_29_8x64d": ("34.427 5.387", "35.12 5.47", "36.52 5.64"),
    "shake_shake_26_2x96d": ("26.193 3.777", "23.83 3.37", "26.84 3.81"),
    "densenet_bc_190": ("25.625 9.302", "25.23 9.12", "25.91 9.30"),
    "pyramidnet_272": ("26.211 4.489", "28.75 5.15", "32.60 6.19"),
    "efficientnet_b0_cifar": ("4.020 .228", "4.12 .23", "4.29 .25"),
    "resnext_101_64x4d": ("83.591 16.854", "88.61 18.68", "98.65 22.32"),
    "se_resnext_101_64x4d": ("88.299 16.294", "98.04 17.61", "117.53 20.23"),
    "efficientnet_b7": ("66.348 10.536", "67.76 10.42", "70.89 12.50"),
}
CASES = [
    (name, s, what, printed.split()[what])
    for name, sizes in GOLDEN.items()
    for s, printed in zip((1, 2, 4), sizes, strict=True)
    for what in (0, 1)
]
# The specification's Shake-Shake has, for s > 1 only, exactly 64 width**2 parameters per network
# more, without convolution cost (23.83 - 23.31 = 2 * .262, 26.84 - 26.25 = 4 * .147). After the mean over
# places, linear layers with 64 width**2 weights would be as large (4 width -> 8 width -> 4 width) and
# cost no multiply-adds to speak of, but it describes none. The MACs agree. Reached: 23.308 and 26.250.
UNEXPLAINED = {("shake_shake_26_2x96d", 2, 0): 23.308, ("shake_shake_26_2x96d", 4, 0): 26.250}


@pytest.fixture(scope="module")
def sizes():
    """Each network is divided once."""
    known = {}

    def size(name: str, s: int) -> tuple[float, float]:
        if (name, s) not in known:
            paper = published_network(name)
            new = apply_rule(paper.rule, constructor_arguments(paper.network), s)
            divided = Network(paper.network.name, options={**paper.network.options, **new})
            total = network_size(divided, paper.num_classes, paper.image_size).times(s)
            known[name, s] = total.parameters / 1e6, total.macs / 1e9
        return known[name, s]

    return size


def allowance(printed: str) -> float:
    """1 %, or half of the last printed digit where that is more (.17 is all that is said)."""
    return max(0.01 * float(printed), 0.5 * 10 ** -len(printed.partition(".")[2]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "s", "what", "printed"), CASES)
def test_golden_sizes(sizes, request, name, s, what, printed):
    if (name, s, what) in UNEXPLAINED:
        assert sizes(name, s)[what] == pytest.approx(UNEXPLAINED[name, s, what], abs=5e-4)
        request.applymarker(
            pytest.mark.xfail(strict=True, reason="parameters that the specification leaves open")
        )
    assert sizes(name, s)[what] == pytest.approx(float(printed), abs=allowance(printed))


def test_the_golden_sizes_are_all_of_section_7():
    assert len(CASES) == 12 * 3 * 2
    assert set(GOLDEN) <= set(PUBLISHED)


@pytest.mark.slow
def test_se_resnext_at_416_pixels():
    division = divide_network("paper/se_resnext_101_64x4d", 2, image_size=416)
    assert division.total.macs / 1e9 == pytest.approx(60.69, rel=0.01)


@pytest.mark.parametrize("s", [2, 4])
def test_the_unexplained_parameters_of_shake_shake_are_64_width_squared(sizes, s):
    width = {2: 64, 4: 48}[s]
    printed = float(GOLDEN["shake_shake_26_2x96d"][int(math.log2(s))].split()[0])
    reached = sizes("shake_shake_26_2x96d", s)[0]
    assert printed - reached == pytest.approx(s * 64 * width**2 / 1e6, abs=0.005)


@pytest.mark.parametrize(
    ("name", "option", "expected"),
    [
        ("resnet_110", "width", {1: 16, 2: 12, 4: 8, 8: 6, 16: 4}),
        ("se_resnet_164", "width", {2: 12, 4: 8}),
        ("wrn_28_10", "width", {1: 160, 2: 112, 4: 80, 8: 48}),
        ("wrn_16_8", "width", {2: 96, 4: 64}),
        ("resnext_29_8x64d", "groups", {2: 4, 4: 2, 8: 1}),
        ("resnext_101_64x4d", "cardinality", {1: 64, 2: 32, 4: 16}),
        ("densenet_bc_190", "growth_rate", {2: 28, 4: 20}),
        ("shake_shake_26_2x96d", "width", {2: 64, 4: 48, 8: 32, 16: 24}),
        ("wrn_50_2", "base_width", {2: 64}),
        ("wrn_50_3", "base_width", {2: 128}),
        (
            "resnet_50",
            "channels",
            {2: [44, 88, 176, 352], 4: [32, 64, 128, 256], 8: [24, 48, 96, 192]},
        ),
        ("efficientnet_b0", "stem", {1: 32, 2: 24, 4: 16}),
        ("efficientnet_b3", "head", {1: 1280, 2: 920, 4: 640}),
    ],
)
def test_published_widths(name, option, expected):
    paper = published_network(name)
    for s, value in expected.items():
        divided = apply_rule(paper.rule, {"stem": 16, **paper.network.options, **_table(paper)}, s)
        assert divided[option] == value, s


def _table(paper):
    if paper.rule != "efficientnet":
        return {}
    return {"channels": (16, 24, 40, 80, 112, 192, 320), "stem": 32, "head": 1280, "divisor": 8}


def test_widening_factor_twelve():
    widths = [apply_rule("widening", {"width": 192, "stem": 16}, s)["width"] for s in (1, 2, 4)]
    assert widths == [16 * k for k in (12, 8, 6)]


@pytest.mark.parametrize(("s", "last"), [(1, 864), (2, 628), (4, 464)])
def test_last_block_of_pyramidnet(s, last):
    alpha = apply_rule("added_channels", {"alpha": 200}, s)["alpha"]
    assert 4 * round(16 + alpha) == last


def test_wrn_50_2_shrinks_as_published():
    assert divide_network("paper/wrn_50_2", 2).total.parameters / 1e6 == pytest.approx(51, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if name not in GOLDEN and "net_b" not in name]
)
def test_networks_without_golden_sizes_divide_by_two(name):
    division = divide_network(f"paper/{name}", 2)
    assert division.rule in DIVISION_RULES
    assert division.changed
    assert 0.65 < division.total.macs / division.undivided_size.macs < 1.3


def test_one_network_is_the_undivided_one():
    division = divide_network("paper/resnet_110", 1, weight_decay=1e-4)
    assert division.total == division.undivided_size
    assert division.changed == {}
    assert division.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("name", "s", "options", "message"),
    [
        ("wrn_28_11", 2, {}, r"no network 'wrn_28_11'; nearest: wrn_28_10.*pyramidnet_272"),
        (
            "resnext_29_8x64d",
            3,
            {},
            r"cannot share 8 groups among s=3.*divisible by \[1, 2, 4, 8\]",
        ),
        ("resnext_29_8x64d", 16, {}, r"cannot share 8 groups among s=16"),
        ("resnet_110", 3, {}, r"published for s in \[1, 2, 4, 8, 16\] with width=16, got s=3"),
        ("resnet_110", 2, {"width": 20}, r"published for width=16 or 64, not for 20; rule 'solve'"),
        ("wrn_50_2", 4, {}, r"published for s in \[1, 2\] with base_width=128, got s=4"),
        ("efficientnet_b0", 3, {}, r"published for s in \[1, 2, 4\], got s=3"),
        ("efficientnet_b0", 2, {"channels": [8] * 7}, r"stage channels \[16, 24.*got \[8, 8"),
        ("wrn_28_10", 2, {"width": 100}, r"multiples of 16, got 100"),
        ("wrn_28_10", 2, {"width": 16}, r"too narrow to divide into 2.*width=16, stem=16"),
        ("densenet_bc_190", 4, {"growth_rate": 1}, r"too narrow to divide into 4.*growth_rate=1"),
    ],
)
def test_refusals(name, s, options, message):
    with pytest.raises(ValueError, match=message):
        divide_network(Network(f"paper/{name}", options=options), s)


def test_rules_on_other_networks():
    wide = Network("cifar_resnet", options={"depth": 10, "width": 64, "bottleneck": False})
    assert divide_network(wide, 2, rule="widening").divided.options["width"] == 48
    with pytest.raises(
        ValueError, match=r"unknown rule 'widning'; nearest: widening; there are solve"
    ):
        divide_network(wide, 2, rule="widning")
    with pytest.raises(ValueError, match=r"unknown rule 'grwth'; nearest: growth"):
        apply_rule("grwth", {}, 2)
    with pytest.raises(ValueError, match=r"divides growth_rate, which this network's"):
        divide_network(wide, 2, rule="growth")
