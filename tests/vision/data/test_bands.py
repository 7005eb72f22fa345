"""Any number of channels and bits: what files hold becomes 8 bits of the channels asked for."""

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision.data.bands import Bands, bands_of, eight_bits, to_be_seen, to_image, to_tensor
from vision.data.load import load_data
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.data.section import Data
from vision.export.runner_images import decode as decode_as_exported
from vision.prediction.predictor import decode_image


def preprocess(channels, **options):
    return Preprocess(8, channels, (0.0,) * channels, (1.0,) * channels, **options)


def noise(*shape, seed=0, kind=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, dtype=kind)


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


# Channels


@pytest.mark.parametrize(("mode", "ending"), [("RGBA", "png"), ("CMYK", "tif"), ("RGBA", "tif")])
def test_four_channels_are_the_files_own(tmp_path, mode, ending):
    """A channel is resized by itself: what Pillow takes for transparency hides nothing."""
    pixels = noise(23, 17, 4)
    picture = Image.merge(mode, [Image.fromarray(pixels[:, :, i]) for i in range(4)])
    file = tmp_path / f"a.{ending}"
    picture.save(file)
    loaded = preprocess(4, resize="crop").load(file)
    for i in range(4):
        grey = tmp_path / f"{i}.png"
        Image.fromarray(pixels[:, :, i]).save(grey)
        assert torch.equal(loaded[i], preprocess(1, resize="crop").load(grey)[0])
    stored = preprocess(4, resize="crop").to_dict()
    if ending == "png" or mode == "CMYK":
        assert np.array_equal(decode_as_exported(file, stored), loaded.numpy())
    assert torch.equal(decode_image(preprocess(4, resize="crop"), pixels), loaded)


def test_orientation_turns_every_channel(tmp_path):
    pixels = noise(8, 8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png", exif=exif)
    loaded = preprocess(4).load(tmp_path / "a.png")
    assert np.array_equal(loaded.numpy(), np.rot90(pixels, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA"])
def test_another_number_of_channels_is_refused(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"it has \d channels, data.channels is 4"):
        preprocess(4).load(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"it has \d channels, the networks take 4"):
        decode_as_exported(tmp_path / "a.png", preprocess(4).to_dict())


def test_to_image_and_back():
    for channels in (1, 2, 3, 4, 7):
        pixels = torch.from_numpy(noise(channels, 5, 6))
        assert torch.equal(to_tensor(to_image(pixels)), pixels)
        assert to_be_seen(pixels).size == (6, 5)
    assert isinstance(to_image(pixels), Bands)
    assert bands_of(noise(5, 6, 7)).crop((0, 0, 2, 3)).size == (2, 3)


@pytest.mark.parametrize("axes", ["YXS", "SYX", "pages"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiffs_of_more_channels(tmp_path, tifffile, axes, compression):
    pixels = noise(12, 9, 7, kind=np.uint16)
    file = tmp_path / "a.tif"
    written = pixels if axes == "YXS" else pixels.transpose(2, 0, 1)
    planar = {"YXS": "contig", "SYX": "separate", "pages": None}[axes]
    tifffile.imwrite(
        file, written, photometric="minisblack", planarconfig=planar, compression=compression
    )
    loaded = preprocess(7).load(file)
    assert loaded.shape == (7, 8, 8)
    expected = preprocess(7).fit(bands_of(eight_bits(pixels)))
    assert torch.equal(loaded, to_tensor(expected))
    with pytest.raises(UnreadableImageError, match=r"it has 7 channels, data.channels is 5"):
        preprocess(5).load(file)
    with pytest.raises(UnreadableImageError, match="9 x 12 pixels, above the limit of 50"):
        preprocess(7).load(file, max_pixels=50)


def test_tiffs_that_unpack_to_more_than_they_say(tmp_path, tifffile):
    file = tmp_path / "a.tif"
    tifffile.imwrite(
        file, noise(8, 8, 5), photometric="minisblack", planarconfig="contig", compression="zlib"
    )
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        place, size = page.dataoffsets[0], page.databytecounts[0]
    content = bytearray(file.read_bytes())
    bomb = zlib.compress(bytes(100_000))
    assert len(bomb) <= size
    content[place : place + len(bomb)] = bomb
    file.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="unpacks to more than the file says"):
        preprocess(5).load(file)


def test_a_folder_of_seven_channels(tmp_path, tifffile):
    for split in ("train", "validation", "test"):
        for name in ("a", "b"):
            for i in range(4):
                file = tmp_path / split / name / f"{i}.tif"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = noise(10, 10, 7, seed=[len(split), ord(name), i])
                tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig="contig")
    data = load_data(
        Data(name="folder", path=str(tmp_path), channels=7, augmentation=["shift", "flip"])
    )
    assert data.train[0]["image"].shape == (7, 8, 8)
    assert data.train[0, 5]["image"].shape == (7, 8, 8)
    assert len(data.preprocess.mean) == len(data.preprocess.std) == 7
    assert Preprocess.from_dict(data.preprocess.to_dict()) == data.preprocess


# Bits


@given(st.lists(st.integers(0, 65535), min_size=1), st.integers(0, 60000), st.integers(1, 5000))
@settings(max_examples=50, deadline=None)
def test_a_range_is_a_line_between_its_ends(values, low, width):
    pixels = np.array(values, np.uint16)
    shown = eight_bits(pixels, (low, low + width))
    exact = np.clip((pixels.astype(float) - low) / width, 0, 1) * 255
    assert abs(shown - exact).max() <= 0.5 + 1e-9


def test_twelve_bits_use_all_of_eight(tmp_path):
    values = np.array([[0, 1024, 2048, 4095]] * 4, np.uint16)
    file = tmp_path / "a.png"
    Image.fromarray(values).save(file)
    dark, bright = (
        Preprocess(4, 1, (0.0,), (1.0,), range=values) for values in (None, (0.0, 4095.0))
    )
    assert dark.load(file)[0, 0].tolist() == [0, 4, 8, 16]
    assert bright.load(file)[0, 0].tolist() == [0, 64, 128, 255]
    assert np.array_equal(decode_as_exported(file, bright.to_dict()), bright.load(file).numpy())


def test_floating_point_with_a_range(tmp_path):
    values = np.array([[-1, 0, 0.5, 2]] * 4, np.float32)
    file = tmp_path / "a.tif"
    Image.fromarray(values).save(file)
    ranged = Preprocess(4, 1, (0.0,), (1.0,), range=(0.0, 1.0))
    assert ranged.load(file)[0, 0].tolist() == [0, 0, 128, 255]
    assert np.array_equal(decode_as_exported(file, ranged.to_dict()), ranged.load(file).numpy())
    values[0] = np.nan
    Image.fromarray(values).save(file)
    with pytest.raises(UnreadableImageError, match=r"pixels that are no numbers \(NaN\)"):
        ranged.load(file)


def test_deep_colours_with_a_range(tmp_path, tifffile):
    pixels = noise(8, 8, 3, kind=np.uint16) // 16
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, pixels, photometric="rgb")
    ranged = preprocess(3, range=(0.0, 4095.0))
    assert np.array_equal(
        ranged.load(file).numpy(), eight_bits(pixels, (0.0, 4095.0)).transpose(2, 0, 1)
    )


def test_an_earlier_preprocessing_has_no_range():
    stored = preprocess(3).to_dict()
    del stored["range"]
    assert Preprocess.from_dict(stored) == preprocess(3)
    assert dataclasses.replace(preprocess(3), range=(0.0, 1.0)).to_dict()["range"] == [0.0, 1.0]
