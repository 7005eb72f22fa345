"""Files of every kind -> pixels; the refusals; normalisation."""

import io
import json
import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vision.data.files import image_formats
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


def test_32_bit_integers_count_as_16_bit_where_they_are(tmp_path):
    values = np.array([[0, 257, 65535, 65535]] * 4, dtype=np.int32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    assert GREY.load(path)[0, 0].tolist() == [0, 1, 255, 255]
    for low, high in ((-5, 257), (0, 70000)):
        values[0, :2] = low, high
        save(path, Image.fromarray(values))
        with pytest.raises(UnreadableImageError, match=f"pixels from {low} to .* are no 16 bits"):
            GREY.load(path)


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


# Formats, and what is asked before anything is decoded


def chunk(kind, content):
    whole = kind + content
    return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))


def png(width, height, *others):
    """A grey PNG that says it has so many pixels, of which hardly any are there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    parts = [chunk(b"IHDR", header), *others, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def icon(content, count=1):
    entry = struct.pack("<4B2H2I", 8, 8, 0, 0, 1, 32, len(content), 6 + 16 * count)
    return struct.pack("<3H", 0, 1, count) + entry * count + content


def bitmap(width, height):
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 32, 0, 0, 0, 0, 0, 0)


def gif(width, height):
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    start = struct.pack("<6sHHBBB", b"GIF89a", 4, 4, 0x80, 0, 0) + bytes(6)
    return start + frame + bytes([2, 2, 0x4C, 1, 0, 0x3B])


def saved(kind, size=(300, 200), **options):
    buffer = io.BytesIO()
    mode = "RGBA" if kind == "ico" else "RGB"
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


SIDE = 2000
TOO_LARGE = {
    "png": png(SIDE, SIDE),
    "apng": png(SIDE, SIDE, chunk(b"acTL", struct.pack(">II", 2, 0))),
    "icon with a png": icon(png(SIDE, SIDE)),
    "icon with a bitmap": icon(bitmap(SIDE, 2 * SIDE)),
    "icon with two": icon(png(SIDE, SIDE), count=2),
    "gif": gif(SIDE, SIDE),
    "ppm": b"P6 2000 2000 255 " + bytes(100),
    "bmp": saved("bmp", (SIDE, SIDE)),
    "jpeg": saved("jpeg", (SIDE, SIDE)),
    "webp": saved("webp", (SIDE, SIDE)),
    "tiff": saved("tiff", (SIDE, SIDE), save_all=True, append_images=[Image.new("RGB", (9, 9))]),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch, kind):
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1]
    )
    (tmp_path / "a.img").write_bytes(TOO_LARGE[kind])
    with pytest.raises(
        UnreadableImageError, match="2000 x 2000 pixels, above the limit of 1000000"
    ):
        GREY.load(tmp_path / "a.img", max_pixels=10**6)
    assert decoded == []


def test_tiles_of_a_tiff_count_as_pixels(tmp_path):
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 322: 4000, 323: 4000, 324: 8, 325: 64}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(100)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnreadableImageError, match="4000 x 4000 pixels, above the limit"):
        GREY.load(tmp_path / "a.tif", max_pixels=10**6)


@pytest.mark.parametrize(
    "content",
    [png(0, 5), icon(png(0, 5)), gif(0, 0)[:6] + bytes(4) + gif(0, 0)[10:], b"P5 0 3 255 "],
)
def test_images_without_pixels_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*a\.png"):
        GREY.load(tmp_path / "a.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
REFUSED = {
    "eps": EPS,
    "pdf": b"%PDF-1.4\n" + bytes(50),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(100),
    "fits": b"SIMPLE  =                    T" + bytes(2880),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "icns": b"icns" + bytes(100),
    "psd": b"8BPS" + bytes(100),
    "tga": saved("tga"),
    "pcx": saved("pcx"),
    "im": saved("im"),
    "jpeg 2000": saved("jpeg2000"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_formats_that_are_not_meant_are_refused(tmp_path, kind, name):
    (tmp_path / name).write_bytes(REFUSED[kind])
    with pytest.raises(
        UnreadableImageError, match=r"cannot identify it as one of .*: JPEG, PNG, WEBP"
    ):
        RGB.load(tmp_path / name)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "gif", "tiff", "ppm", "ico", "mpo"])
def test_formats_that_are_meant_are_read(kind):
    assert RGB.load(io.BytesIO(saved(kind, (64, 48)))).shape == (3, 4, 4)


@pytest.mark.skipif("AVIF" not in image_formats().formats, reason="Pillow without AVIF")
def test_avif(tmp_path):
    path = save(tmp_path / "a.avif", corner((32, 32)))
    assert GREY.load(path)[0, 0, 0] > 240


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limits_above_pillows_own(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("L", (20, 20), 7))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match=r"too many pixels|above the limit of 100"):
        GREY.load(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is it warned of
        assert GREY.load(path, max_pixels=400).unique().tolist() == [7]
    with pytest.raises(UnreadableImageError, match="20 x 20 pixels, above the limit of 399"):
        GREY.load(path, max_pixels=399)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_special_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png is a FIFO, not a regular file"):
        RGB.load(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="is a folder"):
        RGB.load(tmp_path)
    with pytest.raises(UnreadableImageError, match="is a device"):
        RGB.load("/dev/zero")


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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "at most 16384; got 0"),
        ({"channels": 2}, "3 values of mean for 2 channels"),
        ({"channels": 0}, "channels is 1 .*, 3 .* or what files have, at most 64; got 0"),
        ({"resize": "fit"}, '"exact" or "crop"; got \'fit\''),
        ({"mean": (0.5,)}, "1 values of mean for 3 channels"),
        ({"std": (0.5, 0.0, 1.0)}, "std must be above 0"),
    ],
)
def test_bad_values(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocess.from_dict({**RGB.to_dict(), **change})
