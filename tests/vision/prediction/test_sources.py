"""Images that are none: without a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.prediction.predictor import decode_image, diverged, picture_of


@pytest.fixture
def preprocess():
    return Preprocess(size=8, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0, 3), (4, 4, 0)])
def test_arrays_without_pixels(preprocess, shape):
    pixels = np.zeros(shape, np.uint8)
    for call in (lambda: picture_of(pixels), lambda: decode_image(preprocess, pixels)):
        with pytest.raises(ValueError, match=r"an image of .* has no pixels"):
            call()


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_pictures_without_pixels(preprocess, size):
    with pytest.raises(UnreadableImageError, match=r"of the user: \d x \d: it has no pixels"):
        decode_image(preprocess, Image.new("RGB", size), "of the user")


def test_the_limit_of_pixels(preprocess, tmp_path):
    Image.new("L", (300, 300)).save(tmp_path / "x.png")
    assert decode_image(preprocess, tmp_path / "x.png", max_pixels=90_000).shape == (3, 8, 8)
    with pytest.raises(UnreadableImageError, match="300 x 300 pixels, above the limit of 89999"):
        decode_image(preprocess, tmp_path / "x.png", max_pixels=89_999)


def test_a_limit_above_pillows(preprocess, tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"x\.png: .*pixels"):
        decode_image(preprocess, tmp_path / "x.png")
    assert decode_image(preprocess, tmp_path / "x.png", max_pixels=10**6).shape == (3, 8, 8)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_the_error_of_a_network_that_diverged():
    line = "runs/a: expert 2 gives values that are not finite; it has diverged: train it again with"
    assert str(diverged(Path("runs/a"), "expert 2")).startswith(line)
