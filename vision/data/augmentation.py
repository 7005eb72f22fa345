"""Random views of training images, each drawn from its own seed and from nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vision.data.sides import Sides, sides_of
from vision.errors import nearest

# What a recipe may list. "shift" and "flip" run on whole batches (a v2 object per image would take
# 0.1 ms) in numpy, which, unlike torch, does not wake a thread pool for a few kilobytes; the others are
# torchvision.transforms.v2 objects with these settings.
AUGMENTATIONS = {
    "shift": "v2.RandomCrop(size, padding=size // 8), black beyond the border",
    "flip": "v2.RandomHorizontalFlip()",
    "random_resized_crop": "v2.RandomResizedCrop(size), bicubic, always applied first; (0.1): of a "
    "tenth of the area at least, not 0.08",
    "autoaugment_cifar10": "v2.AutoAugment() with the policy found on CIFAR-10",
    "autoaugment_imagenet": "v2.AutoAugment() with the policy found on ImageNet",
    "randaugment": "v2.RandAugment(): 2 operations, magnitude 9",
    "trivialaugment": "v2.TrivialAugmentWide()",
    "color_jitter": "v2.ColorJitter(0.4, 0.4, 0.4): brightness, contrast, saturation",
    "random_erasing": "v2.RandomErasing(p=0.25), black; (0.5): with that probability",
    "rotate": "v2.RandomRotation(15), in degrees, bilinear",
}
_BATCHED = ("shift", "flip")
_OF_COLOUR = (
    *("autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment"),
    "color_jitter",
)
_NUMBERS = {"random_resized_crop": 0.08, "random_erasing": 0.25}  # what stands in brackets, if not
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: neighbouring integers become unrelated ones."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def mix_seeds(*parts: int | np.ndarray) -> np.ndarray:
    """One seed per element from several integers (broadcast), stable across machines and versions.

    Returns:
        Array [n] of int64 in [0, 2**63): usable as a seed of torch.

    Example:
        >>> mix_seeds(0, 1, np.arange(2))
        array([2482289063980384216, 2533777038635110281])
    """
    mixed = np.zeros(1, dtype=np.uint64)
    for part in parts:
        mixed = _splitmix(mixed ^ np.atleast_1d(np.asarray(part, dtype=np.int64)).astype(np.uint64))
    return (mixed >> np.uint64(1)).astype(np.int64)


def _parse(name: str) -> tuple[str, float | None]:
    """A name and its number: as written, in brackets, or as by default."""
    plain, bracket, number = name.partition("(")
    if not bracket:
        return name, _NUMBERS.get(name)
    if plain not in _NUMBERS:
        raise ValueError(f"{name!r} takes no number; those that do: {', '.join(_NUMBERS)}")
    try:
        value = float(number.removesuffix(")")) if number.endswith(")") else -1.0
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError(f"{name!r}: expected a number above 0, at most 1, as in {plain}(0.5)")
    return plain, value


def check_augmentations(names: Sequence[str], channels: int = 3) -> None:
    """Refuse unknown names, numbers that mean nothing, and changes of colour where there are no colours.

    Args:
        names: see `AUGMENTATIONS`.
        channels: of the images.

    Raises:
        ValueError: naming the nearest known one, or where a number may stand, or what works.

    Example:
        >>> check_augmentations(["flipp"])
        Traceback (most recent call last):
        ...
        ValueError: unknown augmentation 'flipp'; nearest: flip; known: shift, flip, ...
    """
    for name in names:
        plain = name.partition("(")[0]
        if plain not in AUGMENTATIONS:
            raise ValueError(
                f"unknown augmentation {plain!r}{nearest(plain, AUGMENTATIONS, 1)}; "
                f"known: {', '.join(AUGMENTATIONS)}"
            )
        _parse(name)
        if plain in _OF_COLOUR and channels not in (1, 3):
            raise ValueError(
                f"augmentation {plain!r} is of grey or colour, the images have {channels} channels; others: "
                f"{', '.join(name for name in AUGMENTATIONS if name not in _OF_COLOUR)}"
            )


class Augmentation:
    """Draws views: images of any size and one seed each -> a batch of size x size.

    A view depends on its image and its seed alone, and drawing it leaves torch's global generator as
    it was. Images in a list (of any size) are first cropped: by "random_resized_crop" where listed,
    else at a random place. The other names apply in the order listed.

    Args:
        names: from `AUGMENTATIONS`, some with a number, such as "random_erasing(0.5)".
        size: side of the views in pixels, or height and width.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        >>> draw = Augmentation(["flip"], size=4)
        >>> [draw(images, np.array([seed]))[0, 0, 0].tolist() for seed in (0, 2)]
        [[3, 2, 1, 0], [0, 1, 2, 3]]
    """

    def __init__(self, names: Sequence[str], size: int | Sequence[int]) -> None:
        check_augmentations(names)
        self._numbered = [_parse(name) for name in names]
        self.names = [name for name, _ in self._numbered]
        self.sides = sides_of(size)
        self.padding = [max(1, side // 8) for side in self.sides]
        self._transforms: dict[str, Callable[[Tensor], Tensor]] = {}  # made when views are drawn

    def prepare(self) -> None:
        """Make the transforms now, so that not every worker process imports what they need."""
        if not (self._transforms or self.cheap):
            self._transforms = _transforms(self._numbered, self.sides)

    @property
    def cheap(self) -> bool:
        """Whether drawing takes microseconds per image, so that no worker process is needed."""
        return all(name in _BATCHED for name in self.names)

    @property
    def crops_originals(self) -> bool:
        """Whether crops are drawn from pictures at their own resolution."""
        return "random_resized_crop" in self.names

    def __call__(
        self, images: Sequence[UInt8[Tensor, "ch _ _"]] | Tensor, seeds: np.ndarray
    ) -> UInt8[Tensor, "n ch height width"]:
        """Draw one view of each image.

        Args:
            images: a batch of size x size, or a list of images, each of at least that size.
            seeds: [n], from `mix_seeds`.
        """
        if self.crops_originals:
            images = self._apply("random_resized_crop", images, seeds, 0)
        elif not isinstance(images, Tensor):
            images = self._crop(images, _uniform(seeds, 0, 2))
        for position, name in enumerate(self.names, start=1):
            if name == "shift":
                images = self._shift(images, _uniform(seeds, position, 2))
            elif name == "flip":
                images = _flip(images, _uniform(seeds, position, 1)[:, 0] < 0.5)
            elif name != "random_resized_crop":
                images = self._apply(name, images, seeds, position)
        return images

    def _apply(
        self, name: str, images: Sequence[Tensor] | Tensor, seeds: np.ndarray, position: int
    ) -> Tensor:
        """Run one v2 transform image by image; v2 draws from torch's global generator."""
        self.prepare()
        generator, transform = torch.default_generator, self._transforms[name]
        state, threads = generator.get_state(), torch.get_num_threads()
        torch.set_num_threads(1)  # waking others for one small image costs more than they do
        try:
            views = []
            for image, seed in zip(images, mix_seeds(seeds, position).tolist(), strict=True):
                generator.manual_seed(seed)
                views.append(transform(image))
        finally:
            generator.set_state(state)
            torch.set_num_threads(threads)
        return torch.stack(views)

    def _shift(self, images: Tensor, where: Float[np.ndarray, "n 2"]) -> Tensor:
        """Move every image, black moving in."""
        n, channels, height, width = images.shape
        top, left = self.padding
        padded = np.zeros((n, channels, height + 2 * top, width + 2 * left), dtype=np.uint8)
        padded[:, :, top:-top, left:-left] = images.numpy()
        return self._crop(torch.from_numpy(padded), where)

    def _crop(self, images: Sequence[Tensor] | Tensor, where: Float[np.ndarray, "n 2"]) -> Tensor:
        """Cut a view out of every image, at ``where`` in [0, 1) of the places there are."""
        height, width = self.sides
        views = np.empty((len(images), images[0].shape[0], height, width), dtype=np.uint8)
        pixels = images.numpy() if isinstance(images, Tensor) else [i.numpy() for i in images]
        for view, image, (y, x) in zip(views, pixels, where.tolist(), strict=True):
            top = int(y * (image.shape[1] - height + 1))
            left = int(x * (image.shape[2] - width + 1))
            view[:] = image[:, top : top + height, left : left + width]
        return torch.from_numpy(views)


def _transforms(
    numbered: Sequence[tuple[str, float | None]], size: Sides
) -> dict[str, Callable[[Tensor], Tensor]]:
    """torchvision's transforms by name. Its import takes seconds, so it waits for training."""
    from torchvision.transforms import InterpolationMode, v2

    bicubic, bilinear = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
    policy = v2.AutoAugmentPolicy
    known = {
        "random_resized_crop": lambda area: v2.RandomResizedCrop(
            size, scale=(area, 1.0), interpolation=bicubic
        ),
        "autoaugment_cifar10": lambda _: v2.AutoAugment(policy.CIFAR10, bilinear),
        "autoaugment_imagenet": lambda _: v2.AutoAugment(policy.IMAGENET, bilinear),
        "randaugment": lambda _: v2.RandAugment(interpolation=bilinear),
        "trivialaugment": lambda _: v2.TrivialAugmentWide(interpolation=bilinear),
        "color_jitter": lambda _: v2.ColorJitter(0.4, 0.4, 0.4),
        "random_erasing": lambda p: v2.RandomErasing(p=p),
        "rotate": lambda _: v2.RandomRotation(15, interpolation=bilinear),
    }
    return {name: known[name](number) for name, number in numbered if name not in _BATCHED}


def _flip(images: Tensor, chosen: Bool[np.ndarray, " n"]) -> Tensor:
    """Mirror the chosen images left to right."""
    pixels = images.numpy().copy()
    pixels[chosen] = pixels[chosen, ..., ::-1]
    return torch.from_numpy(pixels)


def _uniform(seeds: np.ndarray, position: int, count: int) -> Float[np.ndarray, "n count"]:
    """Numbers in [0, 1) for the step at ``position``, from each seed alone."""
    streams = [mix_seeds(seeds, position, stream) for stream in range(count)]
    return np.stack(streams, axis=1) / 2.0**63
