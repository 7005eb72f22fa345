"""Whatever a recipe, an override or a checkpoint's recipe holds: a recipe, or one line."""

import string
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe_core.support.plain_values import parse_yaml, plain
from vision.recipe import Recipe, load_recipe, recipe_from_dict
from vision.shipped import shipped_recipes

fuzz = pytest.mark.fuzz
SMALL = {"name": "small_resnet", "options": {"width": 2, "blocks": [1, 2]}, "size": 8}
RECIPE = {
    "delegator": SMALL,
    "experts": [SMALL, SMALL],
    "num_experts": 2,
    "data": {"name": "digits", "size": 8, "mean": [0.5], "std": [0.5], "augmentation": ["shift"]},
    "objective": {"focus": 0.5, "shares": [1.0, 2.0], "labels": "hard"},
    "train": {"epochs": 3, "lr": 0.1, "teacher": None, "precision": "auto", "compile": False},
    "controls": {"a": SMALL},
    "ensembles": {"b": {"network": SMALL, "s": 2, "regularisers": {"weight_decay": "none"}}},
    "budget": {"mmacs": 1.0, "exit_rate": 0.5},
    "seed": 0,
}
TEXT = shipped_recipes()["divide/digits"].read_text()
PIECES = [
    *"{}[]:,&*!|>-?#%@`'\"\\\t\n ",
    "<<",
    "~",
    "null",
    "no",
    "1e-3",
    ".nan",
    "0x",
    "!!int",
    "\x00",
]
PIECES += [
    "train",
    "delegator",
    "experts",
    "options",
    "name",
    "resnet18",
    "*wide",
    "&wide",
    "é",
    "\ud7ff",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(
        [10**30, -(10**400), "1e-3", "1e999", "hf-hub:x/y", "\ud800", "a\0b", "", "auto"]
    ),
)
names = st.one_of(
    st.text(max_size=6), st.integers(), st.booleans(), st.sampled_from([*RECIPE, "s"])
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(names, inner, max_size=3),
        st.tuples(inner),
        st.sets(st.integers(), max_size=2),
    ),
    max_leaves=6,
)


def places(nested, above=()):
    """Keys of everything in the recipe."""
    for key, inner in nested.items() if isinstance(nested, dict) else enumerate(nested):
        yield (*above, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*above, key))


PLACES = list(places(RECIPE))


def replaced(nested, keys, value):
    copy = dict(nested) if isinstance(nested, dict) else list(nested)
    copy[keys[0]] = value if len(keys) == 1 else replaced(nested[keys[0]], keys[1:], value)
    return copy


def one_line(call):
    """The recipe, or None after a message of one line that says something."""
    begin = time.process_time()
    try:
        recipe = call()
    except ValueError as error:
        message = str(error)
        assert message.strip()
        assert len(message.splitlines()) == 1, message
        assert len(message) < 2000, message
        assert not any(word in message for word in ("Traceback", "pydantic", "validation error")), (
            message
        )
        recipe = None
    assert time.process_time() - begin < 20
    return recipe


@fuzz
@given(st.sampled_from(PLACES), values)
def test_any_value_anywhere(keys, value):
    recipe = one_line(lambda: recipe_from_dict(replaced(RECIPE, keys, value)))
    if recipe is not None:
        assert recipe_from_dict(plain(recipe.to_dict())) == recipe
        assert recipe_from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@fuzz
@given(st.dictionaries(names, values, max_size=3))
def test_any_dict(extra):
    one_line(lambda: recipe_from_dict({**RECIPE, **extra}))
    one_line(lambda: recipe_from_dict(extra))


@fuzz
@given(
    st.lists(
        st.tuples(st.integers(0, len(TEXT)), st.integers(0, 9), st.sampled_from(PIECES)), max_size=4
    )
)
def test_any_change_of_a_text(tmp_path_factory, changes):
    text = TEXT
    for place, length, piece in changes:
        text = text[:place] + piece + text[place + length :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8")
    one_line(lambda: load_recipe(str(path)))


@fuzz
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(PIECES), max_size=30).map("".join).map(str.encode)
)
def test_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    one_line(lambda: load_recipe(str(path)))
    one_line(lambda: parse_yaml(content.decode("latin-1"), "text"))


@fuzz
@given(
    st.one_of(
        st.sampled_from([".".join(map(str, keys)) for keys in PLACES]),
        st.text(string.ascii_lowercase + "._ =", max_size=12),
    ),
    st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=8).map("".join)),
)
def test_any_override(key, text):
    recipe = one_line(lambda: load_recipe("digits", [f"{key}={text}"]))
    assert recipe is None or isinstance(recipe, Recipe)
