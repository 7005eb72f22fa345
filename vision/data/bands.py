"""Pictures of any number of channels and bits: how they become 8 bits of the channels asked for."""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

MAX_CHANNELS = 64
Range = tuple[float, float]
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 274
_PLAIN, _DEFLATED = (1,), (8, 32946)  # compressions of TIFF that are read here


class Bands:
    """A picture of other channels than grey or colour: grey pictures of one size, one for each channel.

    It is resized, cropped and turned as Pillow's are, channel by channel: nothing is transparent.

    Args:
        pictures: of mode L.

    Example:
        >>> Bands([Image.new("L", (4, 2))] * 5).resize((2, 1), Image.Resampling.BICUBIC).size
        (2, 1)
    """

    def __init__(self, pictures: Sequence[Image.Image]):
        self.pictures = tuple(pictures)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pictures[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> Bands:
        """As Pillow's."""
        return Bands([picture.resize(size, resample) for picture in self.pictures])

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        """As Pillow's."""
        return Bands([picture.crop(box) for picture in self.pictures])

    def transpose(self, method: Image.Transpose) -> Bands:
        """As Pillow's."""
        return Bands([picture.transpose(method) for picture in self.pictures])

    def pixels(self) -> UInt8[np.ndarray, "h w ch"]:
        """The channels behind one another."""
        return np.stack([np.asarray(picture) for picture in self.pictures], axis=2)


Picture = Image.Image | Bands


def bands_of(pixels: UInt8[np.ndarray, "h w ch"]) -> Bands:
    """The picture of some pixels."""
    return Bands(
        [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(pixels, 2, 0)]
    )


def to_tensor(image: Picture) -> UInt8[Tensor, "ch h w"]:
    """The pixels of a picture of mode L or RGB, or of bands."""
    pixels = torch.from_numpy(image.pixels() if isinstance(image, Bands) else np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def to_image(pixels: UInt8[Tensor, "ch h w"]) -> Picture:
    """Inverse of `to_tensor`."""
    if len(pixels) not in (1, 3):
        return bands_of(pixels.permute(1, 2, 0).numpy())
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def to_be_seen(pixels: UInt8[Tensor, "ch h w"]) -> Image.Image:
    """A picture for people: grey, or in colour the first three channels of more."""
    shown = pixels[:3] if len(pixels) > 2 else pixels[:1]
    image = to_image(shown)
    assert isinstance(image, Image.Image)
    return image


def convert(image: Image.Image, channels: int, values: Range | None = None) -> Picture:
    """An image of any mode with the channels asked for, of 8 bits each.

    Grey (1) and colour (3) are converted from any mode, transparent pixels laid over white. Other numbers are
    the image's own channels, transparency as one of them.

    Args:
        image: decoded.
        channels: wanted.
        values: of deeper pixels that become 0 and 255, see `eight_bits`.

    Raises:
        ValueError: another number of channels, or see `eight_bits`.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(eight_bits(np.asarray(image), values))
    transparent = "transparency" in image.info
    if channels in (1, 3):
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        mode = "L" if channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)
    if image.mode in ("1", "P", "PA", "RGBa", "La"):
        plain = {"1": "L", "P": "RGBA" if transparent else "RGB", "La": "LA"}
        image = image.convert(plain.get(image.mode, "RGBA"))
    own = image.getbands()
    if len(own) != channels:
        raise ValueError(wrong_channels(len(own), channels))
    return Bands(image.split())


def wrong_channels(got: int, wanted: int) -> str:
    """The message about an image of another number of channels."""
    return f"it has {got} channels, data.channels is {wanted}"


def eight_bits(pixels: np.ndarray, values: Range | None = None) -> UInt8[np.ndarray, ...]:
    """Pixels of any depth as 8 bits.

    Args:
        pixels: integers or floating-point numbers.
        values: that become 0 and 255, those beyond as these; None: 0 and 65535. Of 8 bits nothing is changed.

    Raises:
        ValueError: without ``values``, numbers that are no 16 bits; or NaN.

    Example:
        >>> eight_bits(np.array([0, 257, 65535], np.uint16)), eight_bits(np.array([0.5]), (0.0, 1.0))
        (array([  0,   1, 255], dtype=uint8), array([128], dtype=uint8))
    """
    if pixels.dtype == np.uint8:
        return pixels
    if values is None:
        if not np.issubdtype(pixels.dtype, np.integer):
            raise ValueError(
                "floating-point pixels have no agreed range; set data.range, or save as 8 or 16 bits"
            )
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 65535:
            raise ValueError(
                f"pixels from {low} to {high} are no 16 bits; set data.range to the values that are black "
                "and white"
            )
        return ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)
    scaled = (pixels.astype(np.float64) - values[0]) * (255 / (values[1] - values[0]))
    if np.isnan(scaled).any():
        raise ValueError("pixels that are no numbers (NaN)")
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


def loses_bits(image: Image.Image) -> bool:
    """Whether Pillow will drop the lower 8 of 16 bits of an opened image's colours."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return False
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


# TIFFs that Pillow cannot read, or not whole


def is_tiff(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a TIFF."""
    return start[:4] in _TIFF


def has_tifffile() -> bool:
    """Whether tifffile is installed, which reads any number of channels and bits."""
    return importlib.util.find_spec("tifffile") is not None


def read_tiff(
    content: BinaryIO, channels: int, values: Range | None, limit: int | None
) -> tuple[Picture, int]:
    """The first picture of a TIFF of any number of channels, and its orientation as EXIF counts them.

    Args:
        content: the open file.
        channels: wanted.
        values: see `eight_bits`.
        limit: most pixels; None: any number.

    Raises:
        ValueError: another number of channels, more pixels than the limit or than the file says, or a
            compression other than none and deflate.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content.read())) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        axes, shape = series.axes, series.shape
        places = [axes.find(axis) for axis in "YX"]
        others = [i for i in range(len(axes)) if i not in places and shape[i] > 1]
        if -1 in places or len(others) > 1:
            raise ValueError(f"a TIFF of axes {axes} is no picture")
        height, width = (shape[place] for place in places)
        count = shape[others[0]] if others else 1
        if limit is not None and width * height > limit:
            raise ValueError(f"{width} x {height} pixels, above the limit of {limit}")
        if count != channels:
            raise ValueError(wrong_channels(count, channels))
        for part in series.pages:
            _check_segments(part, tiff.filehandle)
        pixels = series.asarray(maxworkers=1)
        orientation = page.tags.valueof(_ORIENTATION) or 1
    ordered = np.moveaxis(pixels, [*places, *others], range(2 + len(others)))
    small = eight_bits(ordered.reshape(height, width, count), values)
    picture = Image.fromarray(small[:, :, 0]) if count == 1 else bands_of(small)
    if channels == 3:
        picture = Image.fromarray(np.ascontiguousarray(small))
    return picture, int(orientation)


def _check_segments(page: Any, file: Any) -> None:
    """Refuse what would unpack to more than the page says, before it is unpacked."""
    if page is None:
        return
    first = page.keyframe  # which says how the pages like it are stored
    if first.compression not in (*_PLAIN, *_DEFLATED):
        raise ValueError(
            f"a TIFF compressed by {getattr(first.compression, 'name', first.compression)} of so many "
            "channels or bits; write it with deflate, or uncompressed"
        )
    if first.compression in _PLAIN:
        return
    tile = (first.tilelength, first.tilewidth)
    rows, columns = tile if first.is_tiled else (first.rowsperstrip, first.imagewidth)
    most = rows * columns * first.samplesperpixel * max(1, first.bitspersample // 8)
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(size), most + 1)) > most:
            raise ValueError("a segment unpacks to more than the file says")
