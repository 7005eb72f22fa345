"""Uploads become pixels within a budget of bytes, whose need is read off the header beforehand."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from torch import Tensor

from coe_core.serving.memory import MemoryBoundWork, MemoryBudget
from vision.data.bands import is_tiff
from vision.data.decode import num_processors
from vision.data.opening import open_image, reduce_while_loading
from vision.data.preprocess import Preprocess
from vision.prediction.predictor import decode_image

# Bytes for each pixel at the highest moment between opening and resizing, measured with Pillow 13
# (tests/vision/serve/test_decoding.py measures them again) and rounded up.
_BY_MODE = {"1": 6, "L": 6, "P": 6, "RGB": 6, "CMYK": 10, "YCbCr": 10, "LAB": 10, "HSV": 10}
_BY_MODE |= {"I;16": 22, "I;16L": 22, "I;16B": 22, "I;16N": 22, "I": 34, "F": 10}
_BY_MODE |= {"LA": 17, "PA": 17, "La": 17, "RGBA": 17, "RGBa": 17}
_TRANSPARENT = 17  # laid over white, whatever the mode
_BY_FORMAT = {
    "JPEG": 12,
    "MPO": 12,
    "JPEG2000": 26,
    "WEBP": 26,
    "AVIF": 18,
}  # JPEG: a progressive one
_COEFFICIENTS = 8  # of a progressive JPEG, at its own size where it is decoded at a fraction
_OTHER = 34
_DEFLATE = 1032 + 3  # to one byte at most; and copies
_TURNED = 4  # a second copy, for EXIF's orientation
_SMALL = 8 * 2**20  # bytes for an image that is not large
_MANY = 64  # such images that a budget must hold to be given out in such shares


class ImageDecoder:
    """Decodes uploads in threads, as many at a time as fit the budget.

    Args:
        preprocess: of the run.
        max_pixels: of an image; None is Pillow's own limit.
        max_memory: bytes that decoding may take, of all requests together.
        seconds: that a request waits for its share.
    """

    def __init__(
        self, preprocess: Preprocess, max_pixels: int | None, max_memory: int, seconds: float
    ):
        self.preprocess, self.max_pixels = preprocess, max_pixels
        self.budget = MemoryBudget(max_memory, seconds)
        threads = ThreadPoolExecutor(num_processors(), thread_name_prefix="decode")
        self._work = MemoryBoundWork(self.budget, threads)

    async def decode(self, content: bytes, name: str) -> Tensor:
        """The pixels, as `Predictor` has them.

        Raises:
            UnreadableImageError: no image, or one of too many pixels.
            TooMuchMemoryError: it alone needs more than the budget.
            BusyMemoryError: the budget was not free in time.
        """
        # Most images are small: one turn of a thread is enough for them, within a share taken beforehand.
        share = _SMALL if self.budget.total >= _MANY * _SMALL else 0
        decoded = await self._work.run(share, self._within, share, content, name)
        if isinstance(decoded, Tensor):
            return decoded
        return await self._work.run(
            decoded, decode_image, self.preprocess, content, name, self.max_pixels
        )

    def _within(self, share: int, content: bytes, name: str) -> Tensor | int:
        """The pixels where that share is enough for them; else the bytes that they need."""
        need = decoding_bytes(content, self.preprocess, self.max_pixels)
        if need > share or not share:
            return need
        return decode_image(self.preprocess, content, name, self.max_pixels)

    def close(self) -> None:
        """End the threads."""
        self._work.executor.shutdown(wait=True, cancel_futures=True)


def decoding_bytes(content: bytes, preprocess: Preprocess, max_pixels: int | None) -> int:
    """Memory that decoding an image and resizing it takes at its highest moment.

    0 of what cannot be opened or has too many pixels: `decode_image` refuses it undecoded. TIFFs of other
    channels than grey and colour are unpacked to no more than 1,032 times their bytes: that much is foreseen.
    """
    if preprocess.channels not in (1, 3) and is_tiff(content[:4]):
        return len(content) * _DEFLATE
    with suppress(Exception), open_image(io.BytesIO(content), max_pixels) as image:
        size = image.width * image.height
        reduce_while_loading(image, preprocess.needed_side)
        width, height = image.size
        each = max(_BY_MODE.get(image.mode, _OTHER), _BY_FORMAT.get(image.format or "", 0))
        if "transparency" in image.info:
            each = max(each, _TRANSPARENT)
        if "exif" in image.info:
            each += _TURNED
        resized = resizing_bytes(width, height, preprocess)
        reduced = width * height < size
        kept = size * _COEFFICIENTS if reduced and image.info.get("progressive") else 0
        return len(content) + width * height * each + resized + kept
    return 0


def resizing_bytes(width: int, height: int, preprocess: Preprocess) -> int:
    """Memory for an image between its own size and the networks': far more than either, of a thin one.

    Pillow resizes the width first, at the full height: a strip 1 pixel wide and a million high becomes
    as wide as the result.

    Example:
        >>> square = Preprocess(size=100, channels=3, mean=(0,) * 3, std=(1,) * 3)
        >>> resizing_bytes(1, 1_000_000, square)
        400040000
    """
    channels = 1 if preprocess.channels == 1 else max(4, preprocess.channels)
    high, wide = preprocess.sides
    if preprocess.resize == "crop":
        wide, high = preprocess.shortened(max(1, width), max(1, height))
    return channels * (wide * height + wide * high)
