"""A runner decodes as the run does: the same pixels, and the same files refused."""

import os

import numpy as np
import pytest
from PIL import Image

import vision.data.opening
from vision.data.files import image_formats
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.export import runner_images as onnx_runner
from vision.export.pictures import telling_sizes, write_pictures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["exact", "crop"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16", "turned"])
def test_runner_decodes_as_the_run_does(tmp_path, channels, resize, mode):
    noise = np.random.default_rng(0).integers(0, 256, (37, 51, 4), dtype=np.uint8)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(path)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise[:, :, :3]).save(path, exif=exif)
    else:
        Image.fromarray(noise, "RGBA").convert("RGB" if mode == "CMYK" else "RGBA").convert(
            mode
        ).save(path)
    stats = (0.5,) * channels
    preprocess = Preprocess(13, channels, stats, stats, resize)
    decoded = onnx_runner.decode(path, preprocess.to_dict())
    assert decoded.shape == (channels, 13, 13)
    np.testing.assert_array_equal(decoded, preprocess.load(path).numpy())
    with Image.open(path) as picture:
        np.testing.assert_array_equal(onnx_runner.decode(picture, preprocess.to_dict()), decoded)
        np.testing.assert_array_equal(preprocess.load(picture).numpy(), decoded)


@pytest.mark.parametrize("resize", ["exact", "crop"])
@pytest.mark.parametrize(("mode", "progressive"), [("L", False), ("RGB", True), ("CMYK", False)])
def test_large_jpegs_are_reduced_while_they_are_loaded(
    tmp_path, monkeypatch, resize, mode, progressive
):
    path, turned = tmp_path / "a.jpg", Image.Exif()
    turned[0x0112] = 6
    picture = Image.effect_noise((31, 23), 90).resize((800, 656)).convert("RGB").convert(mode)
    picture.save(path, exif=turned, progressive=progressive)
    preprocess = Preprocess(16, 3, (0.5,) * 3, (0.5,) * 3, resize)
    whole = preprocess.load(path).short()
    for module in (onnx_runner, vision.data.opening):
        monkeypatch.setattr(module, "LARGE_JPEG", 800 * 656)
    assert preprocess.load(path).short().equal(whole)  # not above it
    for module in (onnx_runner, vision.data.opening):
        monkeypatch.setattr(module, "LARGE_JPEG", 800 * 656 - 1)
    needed = preprocess.needed_side
    assert preprocess.decode(path).size == (656, 800)
    assert preprocess.decode(path, needed=needed).size == (82, 100)  # an eighth: at least 4 x 18
    reduced = preprocess.load(path)
    assert (reduced.short() - whole).abs().max() <= 8
    np.testing.assert_array_equal(onnx_runner.decode(path, preprocess.to_dict()), reduced.numpy())


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_jpeg_is_cropped_where_the_whole_one_is(tmp_path, monkeypatch, orientation):
    path, turned = tmp_path / "a.jpg", Image.Exif()
    turned[0x0112] = orientation
    # Of its sides 18 x 23.9 are left before the crop, of half of them, 300 x 400, 18 x 24.
    picture = Image.effect_noise((18, 24), 90).resize((600, 799)).convert("RGB")
    picture.save(path, exif=turned, quality=95)
    preprocess = Preprocess(16, 3, (0.5,) * 3, (0.5,) * 3, "crop")
    whole = preprocess.load(path).short()
    for module in (onnx_runner, vision.data.opening):
        monkeypatch.setattr(module, "LARGE_JPEG", 0)
        monkeypatch.setattr(module, "LEAST", 16)
    reduced = preprocess.load(path)
    assert preprocess.decode(path, needed=preprocess.needed_side).size != (600, 799)
    assert (reduced.short() - whole).abs().max() <= 4
    np.testing.assert_array_equal(onnx_runner.decode(path, preprocess.to_dict()), reduced.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 28, 32, 96, 128, 176, 224, 256, 480])
def test_sizes_at_which_one_rounding_more_shows(tmp_path, side):
    preprocess = Preprocess(side, 3, (0.5,) * 3, (0.5,) * 3, "crop")
    sizes = telling_sizes(preprocess.shorter_side)
    draw = np.random.default_rng(0)
    for short, long in sizes:
        assert int(long * (preprocess.shorter_side / short)) != int(
            preprocess.shorter_side * long / short
        )
        for number, shape in enumerate([(short, long, 3), (long, short, 3)]):
            path = tmp_path / f"{number}.bmp"
            Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(path)
            decoded = onnx_runner.decode(path, preprocess.to_dict())
            np.testing.assert_array_equal(decoded, preprocess.load(path).numpy())


@pytest.mark.parametrize("resize", ["exact", "crop"])
def test_pictures_of_the_check(tmp_path, resize):
    import torch

    preprocess = Preprocess(32, 3, (0.5,) * 3, (0.5,) * 3, resize)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    paths = write_pictures(tmp_path, pixels, preprocess)
    assert len(paths) >= 14
    assert {path.suffix for path in paths} == {".png", ".jpg", ".tiff"}
    for path in paths:
        decoded = onnx_runner.decode(path, preprocess.to_dict())
        np.testing.assert_array_equal(decoded, preprocess.load(path).numpy())


def test_the_same_formats():
    assert set(onnx_runner._formats()) == set(image_formats().formats)


def test_what_is_no_image_is_refused_by_both(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.eps")
    (tmp_path / "eps.png").write_bytes((tmp_path / "picture.eps").read_bytes())
    Image.new("F", (9, 9)).save(tmp_path / "numbers.tiff")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:500])
    Image.new("L", (2, 60_000)).save(tmp_path / "long.png")
    preprocess = Preprocess(256, 1, (0.5,), (0.5,), "crop")
    for name, message in [
        ("missing.png", "no such file"),
        ("folder.png", "not a regular file|it is a folder, not a file"),
        ("pipe.png", "not a regular file|it is a pipe or a device, not a file"),
        ("text.png", "cannot identify"),
        ("empty.png", "cannot identify"),
        ("eps.png", "cannot identify"),
        ("numbers.tiff", "floating-point pixels have no agreed range"),
        ("cut.png", "truncated"),
        ("long.png", "too elongated|has too many pixels"),
    ]:
        with pytest.raises(onnx_runner.UnreadableImageError, match=message):
            onnx_runner.decode(tmp_path / name, preprocess.to_dict())
        with pytest.raises(UnreadableImageError, match=message):
            preprocess.load(tmp_path / name)
    assert onnx_runner.decode(whole, preprocess.to_dict()).shape == (1, 256, 256)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels(tmp_path, monkeypatch):
    Image.new("L", (101, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(onnx_runner.UnreadableImageError, match="101 x 100 pixels, above the limit"):
        onnx_runner.decode(tmp_path / "a.png", Preprocess(8, 1, (0.5,), (0.5,)).to_dict())
