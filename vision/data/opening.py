"""Opening an image: what is allowed is asked before it is decoded, and large JPEGs are decoded smaller."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from vision.data.bands import Bands, Picture
from vision.data.files import icon_sizes, image_formats

LARGE_JPEG = 2**20  # pixels, above which one is decoded at a fraction of its size
# Times the size it is resized to: with antialiasing that is seen in no more than rounding.
LEAST = 4
_ORIGINAL = (-1, -1)  # key of an image's info for its size before; of files these are texts
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
)
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of TIFF
_PILLOWS_LIMIT = threading.Lock()


class RefusedError(ValueError):
    """What is wrong with an image, in our words."""


@contextlib.contextmanager
def open_image(content: BinaryIO, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image without decoding it, once its format and its number of pixels are allowed.

    Asked before anything is decoded: of an icon the pictures inside, of a TIFF the tiles as well.

    Args:
        content: the open file.
        max_pixels: most pixels; None: Pillow's limit, `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ValueError: too many pixels, none at all, or a format that is not opened.
    """
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    start = content.read(16)
    content.seek(0)
    if start[:4] == b"\0\0\1\0":
        for width, height in icon_sizes(content.read()):
            check_size(width, height, limit)
        content.seek(0)
    with _pillow_open(content, limit) as image:
        check_size(image.width, image.height, limit)
        if image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            check_size(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1)), limit)
        yield image


def reduce_while_loading(image: Image.Image, needed: int) -> None:
    """Let a JPEG of over a megapixel be decoded at a half, a quarter or an eighth of its size (OURS).

    That takes a fraction of the memory and time. Where training, predictions, the server and exports do it by
    one rule, all see the same pixels.

    Args:
        image: opened, not decoded; it keeps its own size, see `original_size`.
        needed: shorter side in pixels that it will be resized to; four times that stays.
    """
    before = image.size
    if image.format in ("JPEG", "MPO") and image.width * image.height > LARGE_JPEG:
        image.draft(None, (LEAST * needed, LEAST * needed))
        if image.size != before:
            image.info[_ORIGINAL] = before


def original_size(image: Image.Image | Bands) -> tuple[int, int]:
    """Width and height that a picture's file has; its own where it was decoded whole.

    Sides of a picture that was reduced are rounded, and a crop of them would begin elsewhere.
    """
    if isinstance(image, Bands):
        return image.size
    return image.info.get(_ORIGINAL, image.size)


def transposed(picture: Picture, turn: Image.Transpose) -> Picture:
    """A picture turned or mirrored, its original size as well."""
    result = picture.transpose(turn)
    if isinstance(result, Image.Image) and _ORIGINAL in result.info and turn in _SIDEWAYS:
        width, height = result.info[_ORIGINAL]
        result.info = {**result.info, _ORIGINAL: (height, width)}
    return result


def _pillow_open(content: BinaryIO, limit: int | None) -> Image.Image:
    formats = image_formats().formats
    pillows_limit = Image.MAX_IMAGE_PIXELS
    try:
        if pillows_limit is None or (limit is not None and limit <= pillows_limit):
            return Image.open(content, formats=formats)
        with _PILLOWS_LIMIT:  # it has no argument for a higher one
            pillows_limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = limit
            try:
                return Image.open(content, formats=formats)
            finally:
                Image.MAX_IMAGE_PIXELS = pillows_limit
    except Image.UnidentifiedImageError as error:
        raise RefusedError(
            f"cannot identify it as one of the formats that are opened: {', '.join(formats)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise RefusedError(f"too many pixels: {error}") from error


def check_size(width: int, height: int, limit: int | None) -> None:
    """Raise RefusedError for too many pixels, or none."""
    if width < 1 or height < 1:
        raise RefusedError(f"{width} x {height}: it has no pixels")
    if limit is not None and width * height > limit:
        raise RefusedError(f"{width} x {height} pixels, above the limit of {limit}")
