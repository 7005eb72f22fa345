"""Images that are not square: height and width, the same in training, predictions, exports and counts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vision.data.augmentation import AUGMENTATIONS, Augmentation
from vision.data.images import ImageSet
from vision.data.preprocess import Preprocess
from vision.data.section import Data
from vision.data.sides import sides_of
from vision.export.runner_images import decode
from vision.recipe import load_recipe, recipe_from_dict
from vision.recipe_networks import run_macs, untrained
from vision.serve.decoding import resizing_bytes


def preprocess(size=(12, 20), resize="crop", channels=3):
    return Preprocess(size, channels, (0.0,) * channels, (1.0,) * channels, resize)


def test_the_crop_is_the_middle_of_a_picture_just_large_enough():
    """1.15 times 12 x 20 is 13 x 23, which the picture is scaled to cover."""
    ready = preprocess()
    assert ready.before_crop == (13, 23)
    assert ready.shortened(230, 130) == (23, 13)
    assert ready.shortened(230, 260) == (23, 26)  # too high: the width decides
    assert ready.shortened(460, 130) == (46, 13)  # too wide: the height does
    assert ready.needed_side == 23
    assert preprocess(resize="exact").needed_side == 20
    picture = Image.new("L", (46, 26), 0)
    picture.paste(255, (6, 2, 40, 24))  # what a crop of 20 x 12, twice as large, sees is white
    shown = preprocess(channels=1).fit(picture)
    assert shown.size == (20, 12)
    assert np.asarray(shown)[2:-2, 3:-3].min() > 250


@pytest.mark.parametrize("resize", ["exact", "crop"])
def test_an_export_sees_the_same(tmp_path, resize):
    draw = np.random.default_rng(0)
    for size in ((12, 20), (33, 7), (16, 16)):
        ready = preprocess(size, resize)
        stored = json.loads(json.dumps(ready.to_dict()))
        assert Preprocess.from_dict(stored) == ready
        for shape in ((5, 9), (40, 13), (13, 40), (size[0], size[1]), (100, 101)):
            path = tmp_path / "a.bmp"
            Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)
            loaded = ready.load(path)
            assert loaded.shape == (3, *size)
            np.testing.assert_array_equal(decode(path, stored), loaded.numpy())


def test_one_side_is_a_square():
    one, two = preprocess(16), preprocess((16, 16))
    draw = np.random.default_rng(0)
    for shape in ((5, 9), (40, 13), (16, 16), (100, 101)):
        picture = Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8))
        assert np.array_equal(np.asarray(one.fit(picture)), np.asarray(two.fit(picture)))
        assert resizing_bytes(*shape, one) == resizing_bytes(*shape, two)
    assert str(sides_of(16)) == str(sides_of([16, 16])) == "16 x 16"


@pytest.mark.parametrize("name", [*AUGMENTATIONS, None])
def test_views_have_the_sides(name):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 13, 26), np.uint8))
    draw = Augmentation([name] if name else [], (12, 20))
    whole = ImageSet(torch.arange(4), ["a"] * 4, preprocess(), list(pixels), augmentation=draw)
    assert whole[0, 7]["image"].shape == (3, 12, 20)
    if name != "random_resized_crop":
        assert whole[0]["image"].equal(pixels[0, :, 0:12, 3:23])


def test_a_recipe_counts_at_its_sides():
    def macs(size):
        recipe = load_recipe("traffic_signs", [f"data.size={size}"])
        return run_macs(untrained(recipe))

    wide, high, square = macs("[32, 64]"), macs("[64, 32]"), macs("32")
    assert wide == high
    assert wide.controls["expert"] == pytest.approx(2 * square.controls["expert"], rel=0.01)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("[8]", r"size is one side, or height and width; got \[8\]"),
        ("[8, 0]", r"at least 1 and at most 16384; got \(8, 0\)"),
        ("[8, 9000]", "data.size"),
        ("[8, 8, 3]", "one side, or height and width"),
    ],
)
def test_sides_that_are_none(size, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("traffic_signs", [f"data.size={size}"])


def test_a_network_that_asks_for_more_than_the_shorter_side():
    with pytest.raises(ValueError, match=r"delegator.size=24 is above data.size=\[16, 32\]"):
        load_recipe("traffic_signs", ["data.size=[16, 32]", "delegator.size=24"])
    recipe = recipe_from_dict(
        {"delegator": "resnet18", "experts": "resnet18", "data": {"size": [16, 32]}}
    )
    assert recipe.data.preprocess() == Preprocess((16, 32), 1, (0.0,), (1.0,))
    assert Data(size=8).sides == (8, 8)
