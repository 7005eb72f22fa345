"""Picture files of many sizes and modes, on which a runner's decoding is compared with the run's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from vision.data.bands import to_be_seen
from vision.data.preprocess import Preprocess

_MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK", "I;16", "turned", "JPEG")
_LARGEST = 1024  # side, in pixels
_TURNED = 6  # EXIF orientation: a quarter to the right


def write_pictures(
    folder: Path, pixels: UInt8[Tensor, "n ch h w"], preprocess: Preprocess
) -> list[Path]:
    """Write a picture of every mode, and of every size at which one rounding more would show.

    Args:
        folder: to write to.
        pixels: decoded images, of which the pictures are made.
        preprocess: of the run.

    Returns:
        The files, named by number, width, height and mode; none of channels that only TIFFs have.
    """
    draw, modes = random.Random(0), _modes(preprocess.channels)
    size, wide = preprocess.sides
    if not modes:  # no common format has them
        return []
    low, high = max(2, size // 3), min(3 * size + 7, _LARGEST)
    sizes = [(draw.randint(low, high), draw.randint(low, high)) for _ in _MODES]
    sizes += [(wide, size), (wide, size + 1), (max(1, wide - 1), size), (1, 1)]
    for number, (short, long) in enumerate(telling_sizes(preprocess.shorter_side)):
        sizes.append((short, long) if number % 2 else (long, short))
    paths = []
    for number, shape in enumerate(sizes):
        mode = modes[number % len(modes)]
        image = _image(pixels[number % len(pixels)]).resize(shape, Image.Resampling.BICUBIC)
        paths.append(_write(folder, f"{number}_{shape[0]}x{shape[1]}", image, mode))
    return paths


def telling_sizes(shorter_side: int, count: int = 8) -> list[tuple[int, int]]:
    """Shorter and longer sides that come out one pixel apart if the ratio of the sides is rounded first.

    Example:
        >>> telling_sizes(36, 2)
        [(33, 55), (66, 99)]
    """
    highest = min(3 * shorter_side, _LARGEST)
    telling = []
    for short in range(2, highest):
        ratio = shorter_side / short
        for long in range(short + 1, min(2 * short, highest) + 1):
            if int(long * ratio) != int(shorter_side * long / short):
                telling.append((short, long))
    step = max(1, len(telling) // count)
    return telling[::step][:count]


def _image(pixels: Tensor) -> Image.Image:
    return to_be_seen(pixels).convert("RGB")


def _modes(channels: int) -> tuple[str, ...]:
    """Modes of pictures that have as many channels; any where they are converted."""
    return {1: _MODES, 3: _MODES, 2: ("LA",), 4: ("RGBA", "CMYK")}.get(channels, ())


def _write(folder: Path, name: str, image: Image.Image, mode: str) -> Path:
    options: dict = {"compress_level": 1}
    ending = {"CMYK": "tiff", "JPEG": "jpg"}.get(mode, "png")
    path = folder / f"{name}_{mode.replace(';', '')}.{ending}"
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = _TURNED
        options["exif"] = exif
    elif mode in ("RGBA", "LA"):
        image.putalpha(image.convert("L"))
        image = image.convert(mode)
    elif mode != "JPEG":
        image = image.convert(mode)
    image.save(path, **(options if ending == "png" else {}))
    return path
