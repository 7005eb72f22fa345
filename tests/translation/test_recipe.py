"""Recipes of translation: what is refused and how, short forms, and that every shipped one is one."""

import dataclasses
from typing import get_args, get_type_hints

import pytest

from coe_core.agreement import Agreement
from coe_core.labels import LabelKind
from coe_core.objective import Scores
from coe_core.weights import Scope
from translation.recipe import load_recipe, recipe_from_dict
from translation.recipe_sections import Objective
from translation.recipe_texts import Direction
from translation.run import Run, RunError, load_run
from translation.shipped import shipped_recipes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.updats=3", "unknown key 'training.updats'; nearest: training.updates"),
        ("trainin.updates=3", "unknown key 'trainin'; nearest: training"),
        ("experts.embed_dmi=3", "unknown key 'experts.embed_dmi'; nearest: experts.embed_dim"),
        ("training.updates=0", r"training.updates must be in \[1, 1000000000\], got 0"),
        ("training.lr=fast", "training.lr: expected float, got fast"),
        ("training.adam_betas=[0.9]", r"training.adam_betas must be two numbers, got \[0.9\]"),
        ("seed=-1", r"seed must be in \[0, 4294967295\], got -1"),
        ("experts.embed_dim=63", "experts: embed_dim 63 is no multiple of attention_heads 4"),
        ("num_experts=0", r"num_experts must be in \[1, 1024\], got 0"),
        ("controls.team={}", "missing key 'controls.team.embed_dim'"),
        ("objective.focus=2", r"objective.focus must be in \[0, 1\], got 2"),
        ("objective.labels=famlies", "objective.labels: expected one of .*'balanced'"),
        ("languages.source=d/e", "'d/e' is no name of a language"),
        ("languages.source=[]", "languages.source must name one language or several, each once"),
        ("languages.source=en", "nothing to translate from en into en"),
        ("languages.source=fr", "texts.corpus=numbers has the languages de and en only"),
        ("languages.temperature=0", r"languages.temperature must be in \[1, 100\], got 0"),
        ("texts.path=x", "numbers are made of nothing; leave it out"),
        ("texts.lowercase=true", "texts.lowercase is for texts.corpus=iwslt14 only"),
        ("texts.tests=[a,train]", "train, valid and tests must be different texts"),
        ("texts.valid=../x", "'../x' is no name of a text"),
        ("vocabulary.size=1", r"vocabulary.size must be in \[8, 1000000\], got 1"),
        ("aims=[]", "aims: name at least one"),
        ("aims=macs", "aim 'macs' needs a number"),
        ("generation.timed=macs=50%", "generation.timed: 'macs=50%' is none of the aims"),
        ("training.select=best training.validate=none", "go by validations: set training.validate"),
        ("objective.groups=source", "objective.groups: there is one direction only"),
        ("controls.single.one_per=direction", "there is one direction only; leave it out"),
    ],
)
def test_refused(override, message):
    with pytest.raises(ValueError, match=message) as raised:
        load_recipe("demo", override.split())
    assert "\n" not in str(raised.value)


SIZES = dict(embed_dim=8, ffn_embed_dim=8, encoder_layers=1, decoder_layers=1, attention_heads=2)
SMALL = {
    "languages": {"source": ["de", "fr"], "target": "en"},
    "vocabulary": {"size": 100},
    "delegator": SIZES,
    "experts": SIZES,
    "training": {"updates": 10, "max_tokens": 100, "lr": 0.1},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": [SIZES, SIZES]}, "lists 2 networks for num_experts=4"),
        (
            {"experts": [SIZES, SIZES | {"embed_dim": 16}], "num_experts": 2},
            r"experts\[1\]: experts may differ in encoder_layers and decoder_layers only",
        ),
        (
            {
                "experts": [SIZES, SIZES | {"encoder_layers": 2}],
                "num_experts": 2,
                "objective": {"shared_start": 0.5},
            },
            "objective.shared_start needs equal experts",
        ),
        ({"controls": {"expert-1": SIZES}}, "no control or ensemble can be called 'expert-1'"),
        (
            {"controls": {"a": SIZES}, "ensembles": {"a": {"network": SIZES}}},
            "a is a control and an ensemble",
        ),
        (
            {"controls": {"a": SIZES | {"attention_heads": 3}}},
            r"controls\.a: embed_dim 8 is no multiple of attention_heads 3",
        ),
        (
            {"controls": {"a": SIZES | {"embed_dim": 2, "attention_heads": 1}}},
            r"controls\.a: embed_dim must be in \[4, 65536\], got 2",
        ),
    ],
)
def test_networks_that_do_not_go_together(change, message):
    with pytest.raises(ValueError, match=message):
        recipe_from_dict({**SMALL, **change})


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="recipe: missing delegator, training"):
        recipe_from_dict({k: v for k, v in SMALL.items() if k not in ("delegator", "training")})


def test_short_forms_and_plain_values():
    recipe = recipe_from_dict({**SMALL, "aims": "best", "texts": {"tests": "news"}})
    assert recipe.languages.target == ["en"]
    assert recipe.texts.names == ["train", "valid", "news"]
    assert recipe.aims == ["best"]
    assert len(recipe.expert_networks) == 4
    assert recipe_from_dict(recipe.to_dict()) == recipe


def test_directions():
    many = recipe_from_dict(
        {**SMALL, "languages": {"source": ["de", "en"], "target": ["en", "fr"]}}
    )
    assert list(map(str, many.languages.directions)) == ["de-en", "de-fr", "en-fr"]
    assert many.languages.tagged
    assert many.languages.sides == ("src", "tgt")
    assert load_recipe("demo").languages.sides == Direction("de", "en")


def test_names_of_trainings():
    recipe = recipe_from_dict(
        {
            **SMALL,
            "controls": {"one": SIZES, "each": {**SIZES, "one_per": "direction"}},
            "ensembles": {"two": {"network": SIZES}},
        }
    )
    names = [name for name, _ in recipe.trained()]
    assert names == ["one", "each.de-en", "each.fr-en", "two.0", "two.1"]


def test_choices_are_those_of_the_core():
    hints = get_type_hints(Objective)
    for name, choices in (
        ("scope", Scope),
        ("scores", Scores),
        ("labels", LabelKind),
        ("agreement", Agreement),
    ):
        assert get_args(hints[name]) == get_args(choices)


def test_every_shipped_recipe_is_one():
    recipes = {name: load_recipe(name) for name in shipped_recipes()}
    assert {"demo", "iwslt14", "multi30k", "tatoeba", "wmt14"} <= recipes.keys()
    for recipe in recipes.values():
        assert recipe.controls
        assert dataclasses.asdict(recipe)["training"]["updates"] >= 1000


def test_layout_of_a_run(tmp_path):
    run = Run(tmp_path, load_recipe("multi30k"))
    assert [run.subset(name) for name in run.recipe.texts.names] == [
        "train",
        "valid",
        "test",
        "test1",
        "test2",
    ]
    assert run.controls["single-sum"] == [tmp_path / "networks/single-sum.pt"]


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="there is no run in it"):
        load_run(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        load_run(tmp_path / "none")
    (tmp_path / "recipe.yaml").write_text("[1]")
    with pytest.raises(RunError, match="is not a recipe"):
        load_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text((shipped_recipes()["demo"]).read_text())
    with pytest.raises(RunError, match="is not trained yet; continue it with"):
        load_run(tmp_path)
    assert load_run(tmp_path, trained=False).recipe.num_experts == 3
