"""Files of every kind -> pixels; the refusals; normalisation."""

import io
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from vision.data.preprocess import Preprocess, UnreadableImageError

RGB = Preprocess(4, 3, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
GREY = Preprocess(4, 1, (0.5,), (0.5,))


def save(path, image, **options):
    image.save(path, **options)
    return path


def corner(size=(8, 8), mode="RGB", colour="white", ground="black"):
    """One quarter of the picture, top left, in another colour."""
    image = Image.new(mode, size, ground)
    image.paste(colour, (0, 0, size[0] // 2, size[1] // 2))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.asarray(corner((8, 6)))
    # Inverse of what the orientation asks for, by its definition in the EXIF standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(np.asarray(RGB.decode(path)), upright)
    assert np.array_equal(np.asarray(GREY.decode(path)), upright[..., 0])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", corner(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert RGB.load(path).shape == (3, 4, 4)


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    red, green, blue = RGB.load(path).float().mean((1, 2)).tolist()
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257, 65535]] * 4, dtype=np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    assert GREY.load(path)[0, 0].tolist() == [0, 1, 128, 255]
    assert RGB.load(path)[:, 0, 3].tolist() == [255, 255, 255]


def test_32_bit_integers_count_as_16_bit(tmp_path):
    values = np.array([[-5, 257, 65535, 70000]] * 4, dtype=np.int32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    assert GREY.load(path)[0, 0].tolist() == [0, 1, 255, 255]


def test_floating_point_is_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.zeros((4, 4), dtype=np.float32)))
    with pytest.raises(UnreadableImageError, match=r"a\.tif.*no agreed range"):
        GREY.load(path)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "LA", "RGBA"])
@pytest.mark.parametrize("preprocess", [RGB, GREY])
def test_every_mode_is_converted(tmp_path, mode, preprocess):
    path = save(tmp_path / "a.png", corner().convert(mode))
    image = preprocess.load(path)
    assert image.dtype == torch.uint8
    assert image.shape == (preprocess.channels, 4, 4)
    assert image[:, 0, 0].tolist() == [255] * preprocess.channels
    assert image[:, 3, 3].tolist() == [0] * preprocess.channels


def test_transparent_pixels_are_laid_over_white(tmp_path):
    rgba = save(tmp_path / "rgba.png", Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    la = save(tmp_path / "la.png", Image.new("LA", (4, 4), (0, 0)))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette = save(tmp_path / "p.png", palette, transparency=0)
    for path in (rgba, la, palette):
        assert RGB.load(path).unique().tolist() == [255]
        assert GREY.load(path).unique().tolist() == [255]
    opaque = save(tmp_path / "opaque.png", Image.new("RGBA", (4, 4), (10, 20, 30, 255)))
    assert RGB.load(opaque)[:, 0, 0].tolist() == [10, 20, 30]


def test_truncated_not_an_image_and_missing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = save(tmp_path / "whole.jpg", Image.fromarray(noise)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"cut\.jpg.*truncated"):
        RGB.load(tmp_path / "cut.jpg")
    for name in ("text.jpg", "empty.jpg"):
        with pytest.raises(UnreadableImageError, match=rf"{name}.*cannot identify"):
            RGB.load(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: no such file"):
        RGB.load_for_training(tmp_path / "gone.jpg")


def test_damaged_header_of_any_kind_is_named(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "png")
    content = bytearray(buffer.getvalue())
    content[16:20] = struct.pack(">I", 0)  # width 0, checksum now wrong
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"a\.png"):
        RGB.load(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "limit", [20, 60]
)  # Pillow itself raises above twice the limit, warns above it
def test_too_many_pixels_are_an_error(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png", Image.new("L", (8, 8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImageError, match=r"a\.png.*(exceeds limit|above the limit)"):
        GREY.load(path)


def test_too_elongated_for_a_crop(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("L", (100, 1)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    crop = Preprocess(10, 1, (0,), (1,), "crop")
    with pytest.raises(UnreadableImageError, match=r"a\.png: 100 x 1 is too elongated"):
        crop.load(path)


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.jpg", "cut")))
    assert (error.path, error.reason) == ("a.jpg", "cut")
    assert (
        str(UnreadableImageError("whole message")) == "whole message"
    )  # as loader workers re-raise


def test_exact_keeps_pixels_and_stretches(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    path = save(tmp_path / "same.png", Image.fromarray(pixels))
    assert np.array_equal(GREY.load(path)[0].numpy(), pixels)
    assert torch.equal(GREY.load_for_training(path), GREY.load(path))
    wide = save(tmp_path / "wide.png", corner((16, 8), "L"))
    assert GREY.load(wide)[0, 0, 0] > 240
    assert GREY.load(wide)[0, 0, 3] < 15


def test_crop_takes_the_centre_and_training_keeps_the_sides(tmp_path):
    crop = Preprocess(20, 1, (0,), (1,), "crop")
    image = Image.new("L", (92, 46), 0)
    image.paste(255, (23, 0, 69, 46))  # the central square is white
    path = save(tmp_path / "a.png", image)
    assert crop.shorter_side == 23
    assert crop.load_for_training(path).shape == (1, 23, 46)
    assert crop.load(path).shape == (1, 20, 20)
    assert crop.load(path).float().mean() > 250
    small = save(tmp_path / "small.png", Image.new("L", (3, 2), 7))  # enlarged
    assert crop.load(small).unique().tolist() == [7]


def test_published_evaluation_size():
    assert Preprocess(224, 3, (0,) * 3, (1,) * 3, "crop").shorter_side == 257


def test_normalise_by_hand_and_memory_format():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    out = RGB.normalise(images.contiguous(memory_format=torch.channels_last))
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-1.0, 3.0, 0.2]))
    assert RGB.normalise(images.contiguous()).is_contiguous()


def test_dict_is_plain_and_comes_back():
    fields = RGB.to_dict()
    assert Preprocess.from_dict(json.loads(json.dumps(fields))) == RGB
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    buffer.seek(0)
    assert Preprocess.from_dict(torch.load(buffer, weights_only=True)) == RGB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "at least 1; got 0"),
        ({"channels": 2}, "channels is 1 .* or 3 .*; got 2"),
        ({"resize": "fit"}, '"exact" or "crop"; got \'fit\''),
        ({"mean": (0.5,)}, "1 values of mean for 3 channels"),
        ({"std": (0.5, 0.0, 1.0)}, "std must be above 0"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocess.from_dict({**RGB.to_dict(), **change})
