"""From an image file to what a network is fed: the same decoding for training, evaluation and export."""

from __future__ import annotations

import contextlib
import io
from dataclasses import asdict, dataclass
from os import PathLike
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from coe_core.errors import CoEError
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


class UnreadableImageError(CoEError):
    """A file that cannot be decoded into pixels: damaged, not an image, or far too large."""

    def __init__(self, path: str | PathLike, reason: str = "") -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}" if self.reason else self.path


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
        if self.size < 1:
            raise ValueError(
                f"size is the side of the input in pixels, at least 1; got {self.size}"
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
        return functional.pil_to_tensor(self.square(self.decode(path, max_pixels), path))

    def load_for_training(self, path: str | PathLike | Member) -> UInt8[Tensor, "ch h w"]:
        """As `load`, but with ``resize="crop"`` the whole picture, so that crops can be drawn from it.

        Raises:
            UnreadableImageError: as `load`.
        """
        image = self.decode(path)
        image = self._shorten(image, path) if self.resize == "crop" else self.square(image, path)
        return functional.pil_to_tensor(image)

    def decode(
        self, path: str | PathLike | BinaryIO | Member, max_pixels: int | None = None
    ) -> Image.Image:
        """Decode a file at its own resolution: EXIF rotation applied, mode L or RGB.

        Transparent pixels are laid over white. 16-bit grey is scaled to 8 bits. Of several frames, the first.

        Raises:
            UnreadableImageError: as `load`.
        """
        try:
            content = io.BytesIO(path.read_bytes()) if isinstance(path, Member) else path
            with Image.open(content) as image:
                limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
                if limit is not None and image.width * image.height > limit:
                    raise UnreadableImageError(
                        path, f"{image.width} x {image.height} pixels, above the limit of {limit}"
                    )
                image.load()
                turn = _UPRIGHT.get(_orientation(image))
                image = self.convert(image)
                return image if turn is None else image.transpose(turn)
        except (UnreadableImageError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise UnreadableImageError(path, "no such file") from error
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

    def square(self, image: Image.Image, path: str | PathLike = "in memory") -> Image.Image:
        """Bring a decoded image to size x size."""
        if self.resize == "crop":
            return functional.center_crop(self._shorten(image, path), [self.size, self.size])
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def _shorten(self, image: Image.Image, path: str | PathLike) -> Image.Image:
        """Resize the shorter side to `shorter_side`; refuse what that would blow up."""
        pixels = self.shorter_side**2 * max(image.size) / min(image.size)
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise UnreadableImageError(
                path, f"{image.width} x {image.height} is too elongated for a crop of {self.size}"
            )
        return functional.resize(image, [self.shorter_side], InterpolationMode.BICUBIC)

    def normalise(self, images: UInt8[Tensor, "n ch h w"]) -> Float[Tensor, "n ch h w"]:
        """Scale pixels to [0, 1], subtract the mean, divide by the std; any device, memory format kept."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images.float() / 255 - mean) / std


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a damaged EXIF block does not make a picture unreadable."""
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION)
    return None
