"""Image files as an export's networks take them, by numpy and Pillow only; exact twin of `vision.data`.

Every export carries this file inside its runner.py (see `coe_core.support.exports.standalone`).
"""

from __future__ import annotations

import contextlib
import functools
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Those that coe-vision opens; others of Pillow's start programs (EPS). HEIF: where pillow-heif is.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO", "AVIF", "HEIF")
_ORIENTATION = 0x0112
LARGE_JPEG = 2**20  # pixels, above which one is decoded at a fraction of its size, at least
LEAST = 4  # times the side that it is resized to
_ORIGINAL = (-1, -1)  # key of its info, the size before
# EXIF orientation -> what sets the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """A file that cannot be decoded into pixels: missing, damaged, not an image, or far too large."""


def decode(image: str | Path | Image.Image, preprocess: dict) -> np.ndarray:
    """As coe-vision decodes: upright, over white, 8 bits, bicubic to size x size.

    Raises:
        UnreadableImageError: a file that is missing, damaged or no image, too many pixels, or pixels that
            are floating-point numbers.
    """
    name = "in memory" if isinstance(image, Image.Image) else image
    try:
        if isinstance(image, Image.Image):
            pictures = _upright(image, preprocess)
        else:
            pictures = _open(Path(image), preprocess)
        pictures = [_fit(picture, preprocess) for picture in pictures]
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        raise UnreadableImageError(
            f"cannot read the image {name}: {type(error).__name__}: {error}"
        ) from error
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return pixels if pixels.ndim == 3 else np.ascontiguousarray(pixels[0].transpose(2, 0, 1))


@functools.cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this installation decodes."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(path: Path, preprocess: dict) -> list[Image.Image]:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # a pipe would wait for ever
    except FileNotFoundError as error:
        raise UnreadableImageError(f"cannot read the image {path}: no such file") from error
    if not regular:
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise UnreadableImageError(f"cannot read the image {path}: it is {kind}, not a file")
    with Image.open(path, formats=_formats()) as image:
        _check_pixels(path, image.width * image.height, f"{image.width} x {image.height}")
        if image.format in ("JPEG", "MPO") and image.width * image.height > LARGE_JPEG:
            side = int(max(sides_of(preprocess)) * (1.15 if preprocess["resize"] == "crop" else 1))
            before = image.size
            image.draft(None, (LEAST * side, LEAST * side))
            image.info[_ORIGINAL] = before
        halved = any(";16" in str(tile[3]) for tile in image.tile) and not image.mode.startswith(
            "I"
        )
        if halved and preprocess.get("range"):
            raise ValueError("16-bit colours lose their lower bits, so no range can be applied")
        image.load()
        return _upright(image, preprocess)


def _upright(image: Image.Image, preprocess: dict) -> list[Image.Image]:
    turn = None
    with contextlib.suppress(Exception):  # a damaged EXIF block leaves the picture as it is
        orientation = image.getexif().get(_ORIENTATION, 1)
        turn = _UPRIGHT.get(orientation)
        if orientation in (5, 6, 7, 8) and _ORIGINAL in image.info:
            image.info[_ORIGINAL] = image.info[_ORIGINAL][::-1]
    pictures = _convert(image, preprocess)
    return pictures if turn is None else [picture.transpose(turn) for picture in pictures]


def _check_pixels(name: str | Path, pixels: float, shown: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise UnreadableImageError(
            f"cannot read the image {name}: {shown} pixels, above the limit of {limit}"
        )


def _convert(image: Image.Image, preprocess: dict) -> list[Image.Image]:
    """One picture, grey or in colour; of other channels a grey one for each."""
    channels, values = preprocess["channels"], preprocess.get("range")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), values))
    transparent = "transparency" in image.info
    if channels in (1, 3):
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return [image.convert("L" if channels == 1 else "RGB")]
    if image.mode in ("1", "P", "PA", "RGBa", "La"):
        plain = {"1": "L", "P": "RGBA" if transparent else "RGB", "La": "LA"}
        image = image.convert(plain.get(image.mode, "RGBA"))
    if len(image.getbands()) != channels:
        raise ValueError(f"it has {len(image.getbands())} channels, the networks take {channels}")
    return list(image.split())


def _eight_bits(pixels: np.ndarray, values: Sequence[float] | None) -> np.ndarray:
    if values is None:
        if pixels.dtype.kind == "f":
            raise ValueError("floating-point pixels have no agreed range; save as 8 or 16 bits")
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels from {pixels.min()} to {pixels.max()} are no 16 bits")
        return ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)
    scaled = (pixels.astype(np.float64) - values[0]) * (255 / (values[1] - values[0]))
    if np.isnan(scaled).any():
        raise ValueError("pixels that are no numbers (NaN)")
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


def sides_of(preprocess: dict) -> tuple[int, int]:
    """Height and width of the input."""
    size = preprocess["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _fit(image: Image.Image, preprocess: dict) -> Image.Image:
    """Resize to the input's sides; a crop is the middle of a picture just large enough for 1.15 of them."""
    height, width = sides_of(preprocess)
    if preprocess["resize"] != "crop":
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BICUBIC)
    high, wide = int(height * 1.15), int(width * 1.15)
    x, y = image.info.get(_ORIGINAL, image.size)
    # The longer side is rounded once, as torchvision does; a ratio kept aside would round it twice.
    size = (wide, int(wide * y / x)) if x * high <= y * wide else (int(high * x / y), high)
    shown = f"{x} x {y}, enlarged for a crop of {height} x {width}, has too many"
    _check_pixels("in memory", size[0] * size[1], shown)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
