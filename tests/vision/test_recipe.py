"""Recipes: what is refused, and that every shipped one runs through the real command line."""

import csv
import dataclasses
import gzip
import re

import numpy as np
import pytest
from PIL import Image

from vision.networks.network import Network
from vision.recipe import load_recipe, recipe_from_dict, unused_settings
from vision.run import load_run
from vision.shipped import find_recipe, shipped_recipes
from vision.training.finetuning import with_own_statistics


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocs=3", "unknown key 'train.epocs'; nearest: train.epochs"),
        ("trian.epochs=3", "unknown key 'trian'; nearest: train"),
        ("data.nme=x", "unknown key 'data.nme'; nearest: data.name"),
        ("experts=[{nam: x}]", "unknown key 'experts.nam'; nearest: experts.name"),
        ("controls.a.optons={}", "unknown key 'controls.a.optons'; nearest: controls.a.options"),
        ("train.lr=abc", "train.lr: expected float, got abc"),
        ("train.epochs=2.5", "train.epochs: expected int, got 2.5"),
        ("objective.scope=bath", "objective.scope: expected one of .'batch', 'queue', 'dataset'."),
        ("data=3", "data holds 3; expected keys and values"),
        ("train=", "train holds None; expected keys and values"),
        ("delegator.options=3", "delegator.options: expected dict, got 3"),
        ("experts.options.width.x=3", "'width' holds 2, not keys"),
        ("width", "override 'width' is not of the form key=value"),
        ("a=[b", r"override 'a=\[b' is not YAML"),
        ("experts=[{name: vgg11}, {name: vgg11}]", "lists 2 networks for num_experts=4"),
        ("num_experts=0", "num_experts must be at least 1, got 0"),
        ("train.epochs=0", "train.epochs and train.batch_size must be at least 1"),
        ("data.augmentation=[shfit]", "shift"),
    ],
)
def test_refused(override, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_recipe("digits", [override])
    assert "\n" not in str(raised.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match=r"'digit'; nearest: digits.*; `coe-vision recipes` lists"):
        load_recipe("digit")


def test_missing_networks(tmp_path):
    with pytest.raises(ValueError, match="missing delegator, experts"):
        recipe_from_dict({"num_experts": 2})
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"list\.yaml is not a recipe"):
        load_recipe(str(tmp_path / "list.yaml"))


def test_a_network_by_its_name_alone():
    recipe = load_recipe("digits", ["delegator=resnet18", "experts=vgg11", "controls.a=vgg13"])
    assert recipe.delegator == Network("resnet18")
    assert recipe.expert_networks == [Network("vgg11")] * 4
    assert recipe.controls["a"] == Network("vgg13")


def test_overrides_and_plain_values():
    recipe = load_recipe("digits", ["experts.options.width=6", "train.lr=1e-2", "seed=7"])
    assert recipe.expert_networks[3].options == {"width": 6, "stages": 3}
    assert (recipe.train.lr, recipe.seed) == (0.01, 7)
    assert recipe_from_dict(recipe.to_dict()) == recipe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experts.name=resnet81"], "unknown network 'resnet81'; nearest: resnet18"),
        (["experts.name=torchvision/resnt50"], "nearest: resnet50"),
        (["experts.options.widht=3"], "small_resnet.*widht"),
        (["experts={name: torchvision/resnet18}"], "takes images of 3 channels, the data have 1"),
        (["train.optimizer=sdg"], "sdg"),
        (["train.precision=int3"], "int3"),
        (["objective.focus=2"], "focus must be in"),
        (["train.batch_size=5000"], "batch size 5000 with .* makes no full batch"),
    ],
)
def test_refused_before_training(cli, tmp_path, capsys, overrides, message):
    assert cli("train", "digits", *overrides, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


@pytest.mark.slow
def test_different_experts_in_one_team(cli, tmp_path):
    experts = "[test_resnet, {name: torchvision/mobilenet_v3_small}]"
    overrides = [f"experts={experts}", "num_experts=2", "data.channels=3", "data.size=32"]
    overrides += ["train.batch_size=100", "data.train_fraction=0.18", "train.epochs=1"]
    assert cli("train", "digits", *overrides, "controls={}", "--out", tmp_path / "run") == 0
    first, second = load_run(tmp_path / "run").networks.team.experts
    assert type(first) is not type(second)


NUM_IMAGES = 40  # per split: two batches of 16


def image_folder(root, splits):
    """Ten classes, images of noise of several sizes."""
    random = np.random.default_rng(0)
    for split in splits:
        for index in range(NUM_IMAGES):
            folder = root / split / f"class_{index % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (32 + index % 3, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")


def idx_files(root):
    random = np.random.default_rng(0)
    for stem in ("train", "t10k"):
        for kind, magic, shape, high in (
            ("images-idx3", 2051, (NUM_IMAGES, 28, 28), 256),
            ("labels-idx1", 2049, (NUM_IMAGES,), 10),
        ):
            values = random.integers(0, high, shape, dtype=np.uint8)
            if kind.startswith("labels"):
                values = (np.arange(NUM_IMAGES) % 10).astype(np.uint8)
            head = np.array([magic, *shape], dtype=">i4").tobytes()
            with gzip.open(root / f"{stem}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + values.tobytes())


@pytest.mark.slow
def test_every_shipped_recipe_runs_two_steps(cli, tmp_path):
    """Those of published size are tried in test_ensembles and test_dry_run."""
    names = [name for name in shipped_recipes() if "paper/" not in find_recipe(name).read_text()]
    names = [name for name in names if not name.startswith("imagenet/")]
    assert {"digits", "cifar10", "fashion_mnist", "clothing"} <= set(names)
    for name in names:
        kind = load_recipe(name).data.name
        folders = [tmp_path / name / part for part in kind.split("+")]
        for folder in folders:
            folder.mkdir(parents=True)
            if folder.name == "fashion_mnist":
                idx_files(folder)
            elif folder.name != "digits":
                image_folder(folder, ("train", "test"))
        path = f"data.path={':'.join(map(str, folders))}"
        shrink = (
            ["data.train_fraction=0.03"] if kind == "digits" else [path, "data.train_fraction=1"]
        )
        steps = [*shrink, "train.epochs=1", "data.workers=0"]
        steps.append(f"train.batch_size={15 * len(folders)}")
        run = tmp_path / "runs" / name
        assert cli("train", name, *steps, "--out", run) == 0, name
        recipe = load_run(run, team=False).recipe
        shipped = with_own_statistics(load_recipe(name))  # as a run stores it
        assert recipe.expert_networks == shipped.expert_networks
        assert recipe == dataclasses.replace(shipped, data=recipe.data, train=recipe.train)
        rows = list(csv.DictReader((run / "metrics/metrics.csv").read_text().splitlines()))
        assert (rows[-1]["epoch"], rows[-1]["step"]) == ("0", "1"), f"{name} did not take two steps"


@pytest.mark.parametrize(
    ("recipe", "overrides", "lines"),
    [
        ("digits", ["objective.temperature=2"], ["objective.temperature has no effect with these"]),
        ("digits", ["objective.temperature=2", "objective.labels=soft"], []),
        ("digits", ["objective.queue_size=9"], ["objective.queue_size has no effect without"]),
        ("digits", ["objective.settling=0.2"], ["objective.settling has no effect but for"]),
        ("digits", ["train.teacher_weight=0.3"], ["train.teacher_weight has no effect without"]),
        ("digits", ["train.statistics_epochs=2"], ["train.statistics_epochs has no effect"]),
        ("digits", ["train.decay_epochs=2"], ["train.decay_epochs has no effect"]),
        ("digits", ["train.decay_epochs=2", "train.decay=0.9"], []),
        (
            "divide/digits_terms",
            ["num_experts=3", "objective.focus=0.2"],
            ["num_experts has no effect without", "objective.focus has no effect without"],
        ),
    ],
)
def test_settings_without_effect_are_told(recipe, overrides, lines):
    unused = unused_settings(load_recipe(recipe, overrides))
    assert len(unused) == len(lines)
    assert all(map(str.startswith, unused, lines))


def test_no_shipped_recipe_has_settings_without_effect():
    shipped = shipped_recipes()
    assert len(shipped) > 20
    assert not any(unused_settings(load_recipe(name)) for name in shipped)
