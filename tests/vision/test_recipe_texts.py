"""The text and the values of a recipe of anyone: absurd ones are refused in one line, types are kept."""

import functools

import pytest

from coe_core.support.plain_values import MAX_BYTES, MAX_DEPTH
from vision.recipe import load_recipe
from vision.shipped import shipped_recipes

SMALL = {"name": "small_resnet", "options": {"width": 1, "stages": 2}}


RECIPE = {"delegator": SMALL, "experts": [SMALL], "num_experts": 2, "controls": {"a": SMALL}}


RECIPE["ensembles"] = {"of 2": {"network": SMALL, "s": 2, "rule": "none"}}


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
