"""From an image file to what a network is fed: the same decoding for training, evaluation and export."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from coe_core.errors import CoEError
from vision.data.files import image_formats, open_regular, printable
from vision.data.shards import Member

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
_ORIENTATION = 0x0112
LARGEST_SIDE = 16384  # of an input
LARGE_JPEG = 2**24  # pixels, above which one is decoded at a fraction of its size
LEAST = (
    4  # times the size it is resized to: with antialiasing that is seen in no more than rounding
)
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of TIFF
_PILLOWS_LIMIT = threading.Lock()


class UnreadableImageError(CoEError):
    """A file that cannot be decoded into pixels: damaged, not an image, or far too large."""

    def __init__(self, path: object, reason: str = "") -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        path = printable(self.path)
        return f"cannot read the image {path}: {self.reason}" if self.reason else path


@dataclass(frozen=True)
class Preprocess:
    """How images become network inputs; stored in every checkpoint and export.

    Resampling is bicubic with antialiasing (Pillow's). An image smaller than asked for is enlarged.

    Args:
        size: side of the square input, in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: of each channel, for pixels scaled to [0, 1].
        std: of each channel, for pixels scaled to [0, 1]; above 0.
        resize: "exact" stretches to size x size; "crop" resizes the shorter side to
            int(1.15 * size), as the evaluation of Divide and Co-training does, and takes the centre.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> preprocess = Preprocess(size=2, channels=1, mean=(0.5,), std=(0.25,))
        >>> preprocess.normalise(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).unique().item()
        2.0
        >>> Preprocess.from_dict(preprocess.to_dict()) == preprocess
        True
    """

    size: int
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["exact", "crop"] = "exact"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_SIDE:
            raise ValueError(
                f"size is the side of the input in pixels, at least 1 and at most {LARGEST_SIDE}; got "
                f"{self.size}"
            )
        if self.channels not in (1, 3):
            raise ValueError(f"channels is 1 (grey) or 3 (RGB); got {self.channels}")
        if self.resize not in ("exact", "crop"):
            raise ValueError(f'resize is "exact" or "crop"; got {self.resize!r}')
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{len(values)} values of {name} for {self.channels} channels")
        if not all(std > 0 for std in self.std):
            raise ValueError(f"std must be above 0 in every channel; got {self.std}")

    def to_dict(self) -> dict:
        """Plain values, for JSON and for checkpoints that load with ``weights_only=True``."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: dict) -> Preprocess:
        """Inverse of `to_dict`."""
        return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})

    @property
    def shorter_side(self) -> int:
        """Shorter side in pixels before the crop, for ``resize="crop"``."""
        return int(self.size * 1.15)

    def load(
        self, path: str | PathLike | BinaryIO | Member, max_pixels: int | None = None
    ) -> UInt8[Tensor, "ch size size"]:
        """Decode a file, set it upright, convert it and bring it to size x size.

        Args:
            path: of the file, the open file, or a file inside a shard.
            max_pixels: of the file's own resolution; None is Pillow's limit.

        Raises:
            UnreadableImageError: missing, truncated, not an image, or above the limit of pixels.
        """
        return to_tensor(self.square(self.decode(path, max_pixels, self.needed_side), path))

    def load_for_training(
        self, path: str | PathLike | Member, max_pixels: int | None = None
    ) -> UInt8[Tensor, "ch h w"]:
        """As `load`, but with ``resize="crop"`` the whole picture, so that crops can be drawn from it.

        Raises:
            UnreadableImageError: as `load`.
        """
        image = self.decode(path, max_pixels, self.needed_side)
        image = self._shorten(image, path) if self.resize == "crop" else self.square(image, path)
        return to_tensor(image)

    @property
    def needed_side(self) -> int:
        """Shorter side in pixels to which pictures are resized."""
        return self.shorter_side if self.resize == "crop" else self.size

    def decode(
        self,
        path: str | PathLike | BinaryIO | Member,
        max_pixels: int | None = None,
        needed: int | None = None,
    ) -> Image.Image:
        """Decode a file: EXIF rotation applied, mode L or RGB.

        Transparent pixels are laid over white. 16-bit grey is scaled to 8 bits. Of several frames, the
        first. Only the formats of `vision.data.files.image_formats` are opened.

        Args:
            path: see `load`.
            max_pixels: see `load`.
            needed: shorter side in pixels that it will be resized to, see `reduce_while_loading`; None
                decodes it at its own resolution.

        Raises:
            UnreadableImageError: as `load`.
        """
        try:
            with contextlib.ExitStack() as stack:
                if isinstance(path, Member):
                    content: BinaryIO = io.BytesIO(path.read_bytes())
                elif isinstance(path, str | PathLike):
                    content = stack.enter_context(open_regular(path))
                else:
                    content = path
                image = stack.enter_context(open_image(content, max_pixels))
                if needed is not None:
                    reduce_while_loading(image, needed)
                image.load()
                turn = _UPRIGHT.get(_orientation(image) or 1)
                image = self.convert(image)
                return image if turn is None else image.transpose(turn)
        except MemoryError:
            raise
        except FileNotFoundError as error:
            raise UnreadableImageError(path, "no such file") from error
        except _RefusedError as error:
            raise UnreadableImageError(path, str(error)) from error
        except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
            raise UnreadableImageError(path, f"{type(error).__name__}: {error}") from error

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert an image of any mode to L (channels 1) or RGB (channels 3).

        Raises:
            ValueError: floating-point pixels (no agreed range), or a mode that Pillow cannot convert.
        """
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode == "F":
            raise ValueError("floating-point pixels have no agreed range; save as 8 or 16 bits")
        if image.mode == "I" or image.mode.startswith("I;16"):
            values = np.asarray(image).astype(np.int64).clip(0, 65535)
            image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image if image.mode == mode else image.convert(mode)

    def square(self, image: Image.Image, path: object = "in memory") -> Image.Image:
        """Bring a decoded image to size x size."""
        if self.resize == "crop":
            image = self._shorten(image, path)
            left, top = centre(image.width, self.size), centre(image.height, self.size)
            return image.crop((left, top, left + self.size, top + self.size))
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def _shorten(self, image: Image.Image, path: object) -> Image.Image:
        """Resize the shorter side to `shorter_side`; refuse what that would blow up."""
        pixels = self.shorter_side**2 * max(image.size) / min(image.size)
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise UnreadableImageError(
                path, f"{image.width} x {image.height} is too elongated for a crop of {self.size}"
            )
        # Rounded down, as torchvision's Resize does.
        short = self.shorter_side
        long = int(short * max(image.size) / min(image.size))
        size = (short, long) if image.width <= image.height else (long, short)
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def normalise(self, images: UInt8[Tensor, "n ch h w"]) -> Float[Tensor, "n ch h w"]:
        """Scale pixels to [0, 1], subtract the mean, divide by the std; any device, memory format kept."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images.float() / 255 - mean) / std


def centre(side: int, part: int) -> int:
    """Where a part of a side begins that lies in its middle; as torchvision's CenterCrop rounds.

    Example:
        >>> centre(7, 4), centre(9, 4)
        (2, 2)
    """
    return round((side - part) / 2)


def to_tensor(image: Image.Image) -> UInt8[Tensor, "ch h w"]:
    """The pixels of a picture of mode L or RGB."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def to_image(pixels: UInt8[Tensor, "ch h w"]) -> Image.Image:
    """Inverse of `to_tensor`."""
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array)


class _RefusedError(ValueError):
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
        for width, height in _icon_sizes(content.read()):
            _check_size(width, height, limit)
        content.seek(0)
    with _pillow_open(content, limit) as image:
        _check_size(image.width, image.height, limit)
        if image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            _check_size(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1)), limit)
        yield image


def reduce_while_loading(image: Image.Image, needed: int) -> None:
    """Let a JPEG of over 16.8 megapixels be decoded at a half, a quarter or an eighth of its size (OURS).

    That takes a fraction of the memory and time. Where training, predictions, the server and exports do it by
    one rule, all see the same pixels.

    Args:
        image: opened, not decoded.
        needed: shorter side in pixels that it will be resized to; four times that stays.
    """
    if image.format in ("JPEG", "MPO") and image.width * image.height > LARGE_JPEG:
        image.draft(None, (LEAST * needed, LEAST * needed))


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
        raise _RefusedError(
            f"cannot identify it as one of the formats that are opened: {', '.join(formats)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise _RefusedError(f"too many pixels: {error}") from error


def _check_size(width: int, height: int, limit: int | None) -> None:
    if width < 1 or height < 1:
        raise _RefusedError(f"{width} x {height}: it has no pixels")
    if limit is not None and width * height > limit:
        raise _RefusedError(f"{width} x {height} pixels, above the limit of {limit}")


def _icon_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of the pictures in an ICO file as they say themselves: Pillow decodes on opening."""
    (count,) = struct.unpack_from("<H", content, 4)
    for number in range(count):
        (offset,) = struct.unpack_from("<I", content, 6 + 16 * number + 12)
        if content[offset : offset + 8] == b"\x89PNG\r\n\x1a\n":
            yield struct.unpack_from(">II", content, offset + 16)
        else:  # a bitmap: its mask counts as a second half of the height
            width, height = struct.unpack_from("<ii", content, offset + 4)
            yield abs(width), abs(height) // 2


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a damaged EXIF block does not make a picture unreadable."""
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION)
    return None
