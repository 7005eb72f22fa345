"""Recipes of ensembles: what is refused before training, and the published ones."""

import re

import pytest

from tests.vision.training.smallest_ensembles import RECIPE, SMALL, WIDE, recipe_file
from vision.recipe import load_recipe, recipe_from_dict
from vision.shipped import shipped_recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensembles": {"a": {"network": WIDE, "s": 0}}}, "s must be at least 1, got 0"),
        ({"ensembles": {"a": {"network": WIDE, "ss": 2}}}, "unknown key 'ensembles.a.ss'; nearest"),
        ({"ensembles": {"a": {"s": 2}}}, "missing key 'ensembles.a.network'"),
        ({"ensembles": {"a": 3}}, "ensembles.a holds 3; expected keys"),
        ({"ensembles": {}}, "missing delegator, experts; .* or ensembles"),
        ({"ensembles": {}, "delegator": None, "experts": []}, "nothing to train: name"),
        ({"experts": [SMALL], "delegator": None}, "experts without a delegator"),
        (
            {"ensembles": {"a": {"network": WIDE, "agreement_weight": 0}}},
            "agreement 'js' with agreement_weight 0 is without effect",
        ),
        (
            {"ensembles": {"a": {"network": WIDE, "agreement_weight": -1}}},
            "agreement_weight must be finite and at least 0, got -1",
        ),
        (
            {"ensembles": {"a": {"network": WIDE, "agreement_warmup": 2}}},
            "warmup is a part of the training, in .0, 1.; got 2",
        ),
        (
            {"ensembles": {"a": {"network": WIDE, "agreement": "jss"}}},
            "agreement: expected one of .'none', 'distil', 'js', 'mutual'., got jss; nearest: js",
        ),
        (
            {"delegator": SMALL, "experts": [SMALL], "objective": {"agreement": "js"}},
            "agreement 'js' with agreement_weight 0 is without effect",
        ),
        (
            {"delegator": SMALL, "experts": [SMALL], "objective": {"agreement_weight": 0.5}},
            "agreement_weight 0.5 without an agreement term",
        ),
        ({"controls": {"a.b": WIDE}}, "no control or ensemble can be called 'a.b': choose"),
        ({"controls": {"keys": WIDE}}, "no control or ensemble can be called 'keys': choose"),
        ({"train": {"lr": 0}}, "train.lr must be above 0, got 0"),
        ({"train": {"decay": 0.9, "final_lr": 0.1}}, "train.decay replaces the cosine"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe_from_dict({**RECIPE, **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["network.options.width=2", "s=16"], "ensembles.of 3: .*too narrow to divide into s=16"),
        (["rule=widning"], "ensembles.of 3: unknown rule 'widning'; nearest: widening"),
        (["rule=groups"], "ensembles.of 3: rule 'groups' divides groups or cardinality, which"),
        (["network=paper/wrn_28_11"], "ensembles.of 3: the paper has no network 'wrn_28_11'"),
        (["regularisers={dropuot: none}"], "ensembles.of 3: unknown regulariser 'dropuot'"),
        (["network={name: small_resnet, pretrained: true}"], "published weights do not fit"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_training(cli, tmp_path, capsys, entry, message):
    overrides = [f"ensembles.of 3.{change}" for change in ("rule=solve", *entry)]
    assert cli("train", recipe_file(tmp_path), *overrides, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


PUBLISHED = sorted(n for n in shipped_recipes() if re.search("divide/.*_(cifar|imagenet)", n))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name):
    """Every one loads; its header has the published score, its schedule is section 6's."""
    recipe = load_recipe(name)
    header = shipped_recipes()[name].read_text().splitlines()[0]
    assert re.search(r"published top-1 %, S = .*\d\d\.\d\d", header)
    assert f"{recipe.train.epochs:,} epochs" in header
    assert {e.network.name for e in recipe.ensembles.values()} == {
        next(iter(recipe.ensembles.values())).network.name
    }
    assert next(e.s for e in recipe.ensembles.values()) == 1  # the control beside it
    assert {e.agreement_weight for e in recipe.ensembles.values()} == {0.5}
    train, imagenet = recipe.train, recipe.data.name == "imagenet"
    assert train.batch_size == (256 if imagenet else 128)
    assert train.label_smoothing == (0.1 if imagenet else 0.0)
    warmup = recipe.ensembles["of 2"].agreement_warmup * train.epochs
    assert warmup == pytest.approx(60 if imagenet else {300: 40, 1800: 80}[train.epochs], abs=0.1)
    if not imagenet:
        rule = recipe.ensembles["of 2"].regularisers.get("weight_decay", "exponential")
        divided = recipe.data.name == "cifar10" or name == "divide/wrn_40_10_cifar100"
        assert rule == ("exponential" if divided else "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn_16_8_cifar100", "wrn_50_2_imagenet"])
def test_published_recipes_through_the_command(cli, capsys, name):
    assert cli("inspect", f"divide/{name}") == 0
    shown = capsys.readouterr().out
    assert "ensemble of 2, each of 2" in shown
    assert "divided into 2 by rule" in shown


def test_shipped_cpu_sizes_keep_the_budget():
    for name in ("divide/cifar10", "divide/digits"):
        recipe = load_recipe(name)
        classes = [str(label) for label in range(10)]
        for ensemble in recipe.ensembles.values():
            division = ensemble.divide(len(classes), recipe.data.preprocess(), 5e-4)
            assert division.network == recipe.controls["undivided"]
            assert division.total.macs == pytest.approx(division.undivided_size.macs, rel=0.05)
            if division.s == 4:
                assert division.divided == recipe.experts[0]


@pytest.mark.slow
def test_an_ensemble_without_its_undivided_network_is_noted(cli, tmp_path, capsys):
    alone = recipe_from_dict({**RECIPE, "ensembles": {"a": {"network": SMALL, "s": 2}}})
    assert alone.without_control == ["a"]
    beside = {"a": {"network": WIDE, "s": 2}, "b": {"network": SMALL, "s": 3, "rule": "none"}}
    assert recipe_from_dict({**RECIPE, "ensembles": beside}).without_control == []
    single = {"a": {"network": SMALL, "s": 2}, "of 1": {"network": SMALL, "s": 1}}
    assert recipe_from_dict({**RECIPE, "ensembles": single}).without_control == []
    for name in shipped_recipes():
        assert load_recipe(name).without_control == []
    changes = {"controls": {}, "ensembles": {"a": {"network": WIDE, "s": 4, "tolerance": 0.2}}}
    short = ["train.epochs=1", "data.train_fraction=0.1"]
    assert cli("train", recipe_file(tmp_path, changes), *short, "--out", tmp_path / "run") == 0
    assert cli("evaluate", tmp_path / "run", "--no-time") == 0
    assert "ensemble a has no control: train its undivided" in capsys.readouterr().out
