"""What an ensemble's network became is stored: a run loads without the search for its width."""

import pytest
import torch

from vision.divide import ensemble as ensembles
from vision.divide.division import Division, divide_network
from vision.divide.report import parse_options
from vision.networks import network as network_module
from vision.networks.network import Network, build_network, no_larger_than
from vision.recipe_networks import Networks

RECIPE = {"ensembles": {"of 2": {"network": {"name": "small_resnet", "options": {"width": 8}}}}}
RECIPE["ensembles"]["of 2"]["tolerance"] = 0.2
IMAGES = {"size": 8, "channels": 1, "mean": [0.5], "std": [0.5], "resize": "exact"}


def networks(divisions=None):
    torch.manual_seed(0)
    return Networks(RECIPE, ["a", "b"], IMAGES, divisions)


def test_the_stored_division_is_not_solved_again(monkeypatch, tmp_path):
    built = networks()
    torch.save(built.divisions(), tmp_path / "divisions.pt")
    stored = torch.load(tmp_path / "divisions.pt", weights_only=True)

    def never(*_, **__):
        raise AssertionError("divided again")

    monkeypatch.setattr(ensembles, "divide_network", never)
    again = networks(stored)
    assert again.ensembles["of 2"].division == built.ensembles["of 2"].division
    weights, same = built.state_dict(), again.state_dict()
    assert [*weights] == [*same]
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    with pytest.raises(AssertionError, match="divided again"):
        networks()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s": 3}, "the stored division is into 3, the recipe's 2"),
        ({"s": "2"}, "s: expected int, got '2'"),
        ({"divided": {"name": "local-dir:x"}}, "unknown network 'local-dir:x'"),
        (
            {"divided": {"name": "test_resnet", "options": {"checkpoint_path": "x"}}},
            "options.checkpoint_path is refused",
        ),
        ({"divided": {"class_path": "os.system"}}, "unknown key 'divided.class_path'"),
        ({"divided_size": [1]}, "divided_size"),
        ({"regularisers": [["weight_decay", "x"]]}, "regularisers"),
        ({"run": "os.system"}, "unknown key 'run'"),
    ],
)
def test_a_stored_division_is_data(change, message):
    stored = networks().divisions()
    with pytest.raises(ValueError, match=message) as raised:
        networks({"of 2": {**stored["of 2"], **change}})
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_division_of_the_paper_survives():
    for name in ("wrn_16_8", "resnet_50", "efficientnet_b0_cifar"):
        division = divide_network(f"paper/{name}", 2, weight_decay=1e-4)
        again = Division.from_dict(division.to_dict())
        assert again.divided == division.divided
        assert again.weight_decay == division.weight_decay
        assert again.total == division.total


def test_options_of_the_command_line():
    options = parse_options(["width=64", "blocks=[2, 2]", "drop_rate=1e-1", "preset=230m #1"])
    assert options == {"width": 64, "blocks": [2, 2], "drop_rate": 0.1, "preset": "230m #1"}
    assert divide_network(Network("small_resnet", options={"width": 8}), 1).s == 1
    with pytest.raises(ValueError, match="option 'width' is not of the form key=value"):
        parse_options(["width"])
    with pytest.raises(ValueError, match=r"option 'a=\[' is not YAML"):
        parse_options(["a=["])


@pytest.mark.parametrize("s", [2, 8, 16])
def test_dividing_fits_into_the_bound_of_stored_weights(monkeypatch, s):
    """Of a run without a stored division: the search builds nothing above twice its networks' weights."""
    wide = Network("small_resnet", options={"width": 64})
    settings = {"image_size": 16, "tolerance": 0.3}
    division = divide_network(wide, s, **settings)
    member = sum(value.numel() for value in build_network(division.divided, 10).parameters())
    monkeypatch.setattr(network_module, "_LARGER", 2)
    monkeypatch.setattr(network_module, "_SPARE", 0)
    with no_larger_than(s * member):
        assert divide_network(wide, s, **settings) == division
    with no_larger_than(member // 8), pytest.raises(ValueError, match="far more weights"):
        build_network(division.divided, 10)
