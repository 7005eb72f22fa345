"""A set of labelled images: decoded in memory or read on the fly, with or without augmentation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from vision.data.augmentation import Augmentation, mix_seeds
from vision.data.bands import to_image, to_tensor
from vision.data.decode import MAX_UNREADABLE, stored_form, too_many_unreadable
from vision.data.preprocess import Preprocess, UnreadableImageError, centre
from vision.data.shards import Member


class ImageSet(Dataset):
    """Labelled images. ``images[i]`` is the plain picture, ``images[i, view_seed]`` a random view.

    Items are dicts: ``image`` uint8 [ch, size, size], ``target`` int, ``index`` int (of the sample in
    this set), and ``view_seed`` if there is one. A view depends on (index, view_seed) alone; with
    ``num_views`` above 1, ``views`` uint8 [num_views, ch, size, size] holds as many, of which
    ``image`` is the first. Where a file read on the fly turns out unreadable, a view is drawn of the
    next readable sample (with that one's target and index), and a plain picture is grey (with its own
    target and index: it counts as a sample that cannot be recognised).

    Args:
        targets: class of each sample.
        classes: names.
        preprocess: how files become inputs.
        images: decoded samples: one tensor of plain pictures, or a list of their `stored_form`, from
            which views are cut; None: read ``paths``.
        paths: files of the samples; None: there are none.
        augmentation: how views are drawn; None: views are plain pictures.
        max_pixels: of a file that is read on the fly; None is Pillow's limit.

    Attributes:
        num_views: views of each image that training needs; the first does not depend on it.
    """

    def __init__(
        self,
        targets: Int[Tensor, " n"],
        classes: list[str],
        preprocess: Preprocess,
        images: Tensor | list[Tensor] | None = None,
        paths: Sequence[str | Member] | None = None,
        augmentation: Augmentation | None = None,
        max_pixels: int | None = None,
    ) -> None:
        if images is None and paths is None:
            raise ValueError("an ImageSet needs images or paths; got neither")
        self.targets = targets
        self.classes = classes
        self.preprocess = preprocess
        self.paths = paths
        self.augmentation = augmentation
        self.max_pixels = max_pixels
        self.num_views = 1
        self._images = images
        self._unreadable = torch.zeros(len(targets) if images is None else 0, dtype=torch.bool)
        self._unreadable.share_memory_()  # every worker process sees what the others found

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def cached(self) -> bool:
        """Whether the images are decoded: in memory, or mapped into it."""
        return self._images is not None

    def with_views(self, num_views: int) -> ImageSet:
        """The same images, several views of each at a time; what is here is left as it is."""
        images = copy.copy(self)
        images.num_views = num_views
        return images

    def __getitem__(self, item: int | tuple[int, int]) -> dict:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | tuple[int, int]]) -> list[dict]:
        """Several items at once (the loader's fast path); all with a view seed, or all without."""
        seeds = None
        if items and isinstance(items[0], tuple):
            seeds = np.array([item[1] for item in items if isinstance(item, tuple)], np.int64)
        indices = [item[0] if isinstance(item, tuple) else int(item) for item in items]
        outside = [index for index in indices if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"index {outside[0]} in a set of {len(self)} samples")
        augmentation = self.augmentation if seeds is not None else None
        drawn = augmentation is not None
        images: Tensor | list[Tensor]
        if isinstance(self._images, Tensor):
            images = torch.from_numpy(self._images.numpy()[indices])  # torch would wake its threads
        else:
            read = [self._read(index, drawn) for index in indices]
            images, indices = [image for image, _ in read], [index for _, index in read]
        views = [images]
        if seeds is not None:
            others = range(1, self.num_views)  # the first view does not depend on their number
            drawings = [seeds, *(mix_seeds(seeds, view) for view in others)]
            views = [augmentation(images, seed) if augmentation else images for seed in drawings]
        targets = self.targets[indices].tolist()
        samples = [
            {"image": image, "target": target, "index": index}
            for image, target, index in zip(views[0], targets, indices, strict=True)
        ]
        if seeds is not None:
            for sample, seed in zip(samples, seeds.tolist(), strict=True):
                sample["view_seed"] = seed
        if len(views) > 1:
            for sample, *of_sample in zip(samples, *views, strict=True):
                sample["views"] = torch.stack(of_sample)
        return samples

    def _read(self, index: int, drawn: bool) -> tuple[Tensor, int]:
        """The picture at ``index``, or what stands in for it, with the index of what was read."""
        if self._images is not None:
            image = self._images[index]
            return (image if drawn else self._plain(image)), index
        drawing = self.augmentation if drawn else None
        load = stored_form(self.preprocess, drawing, self.max_pixels)
        assert self.paths is not None
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            try:
                if not self._unreadable[candidate]:
                    return load(self.paths[candidate]), candidate
            except UnreadableImageError as error:
                self._unreadable[candidate] = True
                count = int(self._unreadable.sum())
                if count >= MAX_UNREADABLE * len(self):
                    raise ValueError(too_many_unreadable([str(error)], count, len(self))) from error
                stand_in = "the next readable sample" if drawn else "a grey picture"
                warnings.warn(f"{error}; {stand_in} takes its place", stacklevel=2)
            if not drawn:
                break
        if not drawn:
            grey = torch.full(self.preprocess.shape, 128, dtype=torch.uint8)
            return grey, index
        raise AssertionError("more unreadable samples than there are")

    def _plain(self, image: Tensor) -> Tensor:
        """The plain picture from its stored form: what `Preprocess.load` reads."""
        if self.augmentation is not None and self.augmentation.crops_originals:
            return to_tensor(self.preprocess.fit(to_image(image)))
        height, width = self.preprocess.sides
        top, left = centre(image.shape[1], height), centre(image.shape[2], width)
        return image[:, top : top + height, left : left + width]
