"""Images that are none: without a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.prediction.predictor import _several, decode_image, diverged, picture_of


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


def test_a_picture_that_pillow_opened_is_set_upright_as_its_file_is(preprocess, tmp_path):
    exif, path = Image.Exif(), tmp_path / "x.jpg"
    exif[0x0112] = 6
    Image.effect_noise((20, 30), 90).save(path, exif=exif)
    from_file = decode_image(preprocess, path)
    with Image.open(path) as picture:
        assert decode_image(preprocess, picture).equal(from_file)
        assert decode_image(preprocess, ImageOps.exif_transpose(picture)).equal(from_file)


def test_pictures_that_cannot_be_decoded_any_more(preprocess, tmp_path):
    """Pillow opens a file without reading its pixels; what is wrong with them is said as of a file."""
    path = tmp_path / "x.png"
    Image.effect_noise((40, 40), 90).save(path)
    closed = Image.open(path)
    closed.close()
    path.write_bytes(path.read_bytes()[:300])
    for picture in (closed, Image.open(path)):
        with pytest.raises(
            UnreadableImageError, match=r"cannot read the image in memory: \w+Error: "
        ):
            decode_image(preprocess, picture)
    with pytest.raises(UnreadableImageError, match="300 x 300 pixels, above the limit of 89999"):
        decode_image(preprocess, Image.new("L", (300, 300)), max_pixels=89_999)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("images", [None, 3, 2.5, object(), np.float32(1)])
def test_what_is_no_image_at_all(preprocess, images):
    message = rf"cannot be of type {type(images).__name__}; give a file's name or bytes, a Pillow"
    with pytest.raises(ValueError, match=rf"images {message}"):
        _several(images)
    with pytest.raises(ValueError, match=rf"an image {message}"):
        decode_image(preprocess, images)


def test_images_in_any_row():
    row = ["a.png", b"b"]
    for images in (row, tuple(row), iter(row), dict.fromkeys(row), (name for name in row)):
        assert list(_several(images)) == row
    assert _several("a.png") == ["a.png"]
    assert len(_several(np.zeros((5, 4, 4, 3), np.uint8))) == 5


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
