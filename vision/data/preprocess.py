"""From an image file to what a network is fed: the same decoding for training, evaluation and export."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from typing import Any, BinaryIO, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from coe_core.errors import CoEError
from vision.data.bands import (
    MAX_CHANNELS,
    Picture,
    convert,
    has_tifffile,
    is_tiff,
    loses_bits,
    read_tiff,
    to_tensor,
)
from vision.data.files import open_regular, printable
from vision.data.opening import (
    RefusedError,
    check_size,
    open_image,
    original_size,
    reduce_while_loading,
    transposed,
)
from vision.data.shards import Member
from vision.data.sides import Sides, sides_of

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
        size: side of a square input in pixels, or its height and width.
        channels: 1 (grey), 3 (RGB), or what files have: their own channels, up to 64.
        mean: of each channel, for pixels scaled to [0, 1].
        std: of each channel, for pixels scaled to [0, 1]; above 0.
        resize: "exact" stretches to its sides; "crop" resizes the shorter side to
            int(1.15 * size), as the evaluation of Divide and Co-training does, and takes the centre; of
            height and width the one that a picture has relatively less of.
        range: values of pixels of more than 8 bits that become 0 and 255, those beyond as these; None: 0 and
            65535.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> preprocess = Preprocess(size=2, channels=1, mean=(0.5,), std=(0.25,))
        >>> preprocess.normalise(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)).unique().item()
        2.0
        >>> Preprocess.from_dict(preprocess.to_dict()) == preprocess
        True
    """

    size: int | tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Literal["exact", "crop"] = "exact"
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (min(self.sides) >= 1 and max(self.sides) <= LARGEST_SIDE):
            raise ValueError(
                f"size is the side of the input in pixels, or height and width, at least 1 and at most "
                f"{LARGEST_SIDE}; got {self.size}"
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ValueError(
                f"channels is 1 (grey), 3 (RGB) or what files have, at most {MAX_CHANNELS}; got "
                f"{self.channels}"
            )
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range is a low and a higher value; got {list(self.range)}")
        if self.resize not in ("exact", "crop"):
            raise ValueError(f'resize is "exact" or "crop"; got {self.resize!r}')
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{len(values)} values of {name} for {self.channels} channels")
        if not all(std > 0 for std in self.std):
            raise ValueError(f"std must be above 0 in every channel; got {self.std}")

    def to_dict(self) -> dict:
        """Plain values, for JSON and for checkpoints that load with ``weights_only=True``."""
        fields = asdict(self)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict) -> Preprocess:
        """Inverse of `to_dict`."""
        given: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()
        }
        return cls(**given)

    @cached_property
    def sides(self) -> Sides:
        """Height and width of the input."""
        return sides_of(self.size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        return (self.channels, *self.sides)

    @cached_property
    def before_crop(self) -> Sides:
        """The least height and width before the crop, for ``resize="crop"``."""
        return self.sides.scaled(1.15)

    @property
    def shorter_side(self) -> int:
        """The shorter of `before_crop`."""
        return min(self.before_crop)

    def load(
        self,
        path: str | PathLike | BinaryIO | Member | Image.Image,
        max_pixels: int | None = None,
    ) -> UInt8[Tensor, "ch h w"]:
        """Decode a file, set it upright, convert it and bring it to the sides of the input.

        Args:
            path: of the file, the open file, a file inside a shard, or a picture that Pillow holds.
            max_pixels: of the file's own resolution; None is Pillow's limit, of a picture none.

        Raises:
            UnreadableImageError: missing, truncated, closed, not an image, or above the limit of pixels.
        """
        name = "in memory" if isinstance(path, Image.Image) else path
        return to_tensor(self.fit(self.decode(path, max_pixels, self.needed_side), name))

    def load_for_training(
        self, path: str | PathLike | Member, max_pixels: int | None = None
    ) -> UInt8[Tensor, "ch h w"]:
        """As `load`, but with ``resize="crop"`` the whole picture, so that crops can be drawn from it.

        Raises:
            UnreadableImageError: as `load`.
        """
        image = self.decode(path, max_pixels, self.needed_side)
        image = self._shorten(image, path) if self.resize == "crop" else self.fit(image, path)
        return to_tensor(image)

    @cached_property
    def needed_side(self) -> int:
        """Side in pixels that pictures need at least to be resized; the longer one of the input."""
        return max(self.before_crop if self.resize == "crop" else self.sides)

    def decode(
        self,
        path: str | PathLike | BinaryIO | Member | Image.Image,
        max_pixels: int | None = None,
        needed: int | None = None,
    ) -> Picture:
        """Decode a file: EXIF rotation applied, of the channels asked for, 8 bits each; see `bands.convert`.

        Of several frames, the first. Only the formats of `vision.data.files.image_formats` are opened; TIFFs
        of other channels than grey and colour, or of colours with a range, with tifffile where it is.

        Args:
            path: see `load`.
            max_pixels: see `load`.
            needed: shorter side in pixels that it will be resized to, see `reduce_while_loading`; None
                decodes it at its own resolution.

        Raises:
            UnreadableImageError: as `load`.
        """
        shown = "in memory" if isinstance(path, Image.Image) else path
        try:
            with contextlib.ExitStack() as stack:
                if isinstance(path, Image.Image):
                    check_size(path.width, path.height, max_pixels)
                    return self._upright(path)
                if isinstance(path, Member):
                    content: BinaryIO = io.BytesIO(path.read_bytes())
                elif isinstance(path, str | PathLike):
                    content = stack.enter_context(open_regular(path))
                else:
                    content = path
                if self._needs_tifffile(content):
                    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
                    picture, orientation = read_tiff(content, self.channels, self.range, limit)
                    turn = _UPRIGHT.get(orientation)
                    return picture if turn is None else transposed(picture, turn)
                image = stack.enter_context(open_image(content, max_pixels))
                if needed is not None:
                    reduce_while_loading(image, needed)
                if self.range is not None and loses_bits(image):
                    raise RefusedError(
                        "its 16-bit colours would be read without their lower bits, so data.range cannot be "
                        "applied; save it as TIFF, and install tifffile"
                    )
                image.load()
                return self._upright(image)
        except MemoryError:
            raise
        except FileNotFoundError as error:
            raise UnreadableImageError(path, "no such file") from error
        except RefusedError as error:
            raise UnreadableImageError(shown, str(error)) from error
        except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
            raise UnreadableImageError(shown, f"{type(error).__name__}: {error}") from error

    def _upright(self, image: Image.Image) -> Picture:
        """Converted, and turned as its EXIF data say."""
        turn = _UPRIGHT.get(_orientation(image) or 1)
        picture = self.convert(image)
        return picture if turn is None else transposed(picture, turn)

    def _needs_tifffile(self, content: BinaryIO) -> bool:
        """Whether a file is a TIFF that Pillow cannot read, or not whole, and there is what can."""
        start = content.read(4)
        content.seek(0)
        return (
            is_tiff(start)
            and (self.channels not in (1, 3) or (self.range is not None and self.channels == 3))
            and has_tifffile()
        )

    def convert(self, image: Image.Image) -> Picture:
        """Convert an image of any mode to the channels asked for, see `vision.data.bands.convert`.

        Raises:
            ValueError: pixels of no agreed range, or another number of channels.
        """
        return convert(image, self.channels, self.range)

    def fit(self, image: Picture, path: object = "in memory") -> Picture:
        """Bring a decoded image to the sides of the input."""
        height, width = self.sides
        if self.resize == "crop":
            image = self._shorten(image, path)
            left, top = centre(image.width, width), centre(image.height, height)
            return image.crop((left, top, left + width, top + height))
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _shorten(self, image: Picture, path: object) -> Picture:
        """Resize to `shortened`; refuse what that would blow up."""
        size = self.shortened(*original_size(image))
        if Image.MAX_IMAGE_PIXELS is not None and math.prod(size) > Image.MAX_IMAGE_PIXELS:
            shown = self.size if isinstance(self.size, int) else self.sides
            raise UnreadableImageError(
                path, f"{image.width} x {image.height} is too elongated for a crop of {shown}"
            )
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)

    def shortened(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture just large enough for the crop; as torchvision's Resize rounds.

        Example:
            >>> Preprocess(100, 1, (0.0,), (1.0,), "crop").shortened(400, 300)
            (152, 114)
        """
        high, wide = self.before_crop
        if width * high <= height * wide:
            return wide, int(wide * height / width)
        return int(high * width / height), high

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


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a damaged EXIF block does not make a picture unreadable."""
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION)
    return None
