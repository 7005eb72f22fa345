"""A set of labelled images: decoded in memory or read on the fly, with or without augmentation."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int
from rich.console import Console
from rich.progress import Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset

from vision.data.augmentation import Augmentation, mix_seeds
from vision.data.preprocess import (
    Preprocess,
    UnreadableImageError,
    centre,
    to_image,
    to_tensor,
)
from vision.data.shards import Member

MAX_UNREADABLE = 0.01  # share of a set; from here on the set is refused
_QUIET_SECONDS = 3.0


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
    ) -> None:
        if images is None and paths is None:
            raise ValueError("an ImageSet needs images or paths; got neither")
        self.targets = targets
        self.classes = classes
        self.preprocess = preprocess
        self.paths = paths
        self.augmentation = augmentation
        self.num_views = 1
        self._images = images
        self._unreadable = torch.zeros(len(targets) if images is None else 0, dtype=torch.bool)
        self._unreadable.share_memory_()  # every worker process sees what the others found

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def cached(self) -> bool:
        """Whether the decoded images are held in memory."""
        return self._images is not None

    def __getitem__(self, item: int | tuple[int, int]) -> dict:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | tuple[int, int]]) -> list[dict]:
        """Several items at once (the loader's fast path); all with a view seed, or all without."""
        seeds = None
        if items and isinstance(items[0], tuple):
            seeds = np.array([seed for _, seed in items], dtype=np.int64)
            indices = [index for index, _ in items]
        else:
            indices = [int(index) for index in items]
        outside = [index for index in indices if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"index {outside[0]} in a set of {len(self)} samples")
        drawn = seeds is not None and self.augmentation is not None
        if isinstance(self._images, Tensor):
            images = torch.from_numpy(self._images.numpy()[indices])  # torch would wake its threads
        else:
            read = [self._read(index, drawn) for index in indices]
            images, indices = [image for image, _ in read], [index for _, index in read]
        views = [images]
        if seeds is not None:
            others = range(1, self.num_views)  # the first view does not depend on their number
            drawings = [seeds, *(mix_seeds(seeds, view) for view in others)]
            views = [self.augmentation(images, own) if drawn else images for own in drawings]
        targets = self.targets[indices].tolist()
        samples = [
            {"image": image, "target": target, "index": index}
            for image, target, index in zip(views[0], targets, indices, strict=True)
        ]
        if seeds is not None:
            for sample, seed in zip(samples, seeds.tolist(), strict=True):
                sample["view_seed"] = seed
        if len(views) > 1:
            for sample, *own in zip(samples, *views, strict=True):
                sample["views"] = torch.stack(own)
        return samples

    def _read(self, index: int, drawn: bool) -> tuple[Tensor, int]:
        """The picture at ``index``, or what stands in for it, with the index of what was read."""
        if self._images is not None:
            image = self._images[index]
            return (image if drawn else self._plain(image)), index
        load = stored_form(self.preprocess, self.augmentation) if drawn else self.preprocess.load
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            try:
                if not self._unreadable[candidate]:
                    return load(self.paths[candidate]), candidate
            except UnreadableImageError as error:
                self._unreadable[candidate] = True
                count = int(self._unreadable.sum())
                if count >= MAX_UNREADABLE * len(self):
                    raise ValueError(_too_many([str(error)], count, len(self))) from error
                stand_in = "the next readable sample" if drawn else "a grey picture"
                warnings.warn(f"{error}; {stand_in} takes its place", stacklevel=2)
            if not drawn:
                break
        if not drawn:
            side = self.preprocess.size
            grey = torch.full((self.preprocess.channels, side, side), 128, dtype=torch.uint8)
            return grey, index
        raise AssertionError("more unreadable samples than there are")

    def _plain(self, image: Tensor) -> Tensor:
        """The plain picture from its stored form: what `Preprocess.load` reads."""
        if self.augmentation is not None and self.augmentation.crops_originals:
            return to_tensor(self.preprocess.square(to_image(image)))
        size = self.preprocess.size
        top, left = centre(image.shape[1], size), centre(image.shape[2], size)
        return image[:, top : top + size, left : left + size]


def stores_plain(preprocess: Preprocess, augmentation: Augmentation | None) -> bool:
    """Whether views are drawn from the plain picture, so that nothing else need be stored."""
    return augmentation is None or (
        preprocess.resize == "exact" and not augmentation.crops_originals
    )


def stored_form(
    preprocess: Preprocess, augmentation: Augmentation | None
) -> Callable[[str | Member], Tensor]:
    """How a training file is decoded, so that views can be drawn: the same cached or not."""
    if stores_plain(preprocess, augmentation):
        return preprocess.load
    if augmentation.crops_originals:
        return lambda path: to_tensor(preprocess.decode(path))
    return preprocess.load_for_training


def _too_many(errors: list[str], count: int, total: int) -> str:
    listed = "\n  ".join(errors[:10])
    return (
        f"{count} of {total} images ({count / total:.1%}) cannot be read, not under "
        f"{MAX_UNREADABLE:.0%}; repair or remove them:\n  {listed}"
    )


def decode_all(
    paths: Sequence[str | Member], load: Callable[[str | Member], Tensor], what: str
) -> tuple[list[Tensor], list[int]]:
    """Decode files in threads, with a progress line if it takes long; leave unreadable ones out.

    Args:
        paths: files.
        load: file -> tensor.
        what: name of the set in messages.

    Returns:
        The images, and the positions in ``paths`` they come from.

    Raises:
        ValueError: 1% of the files or more cannot be read. Fewer: one warning names them.
    """

    def attempt(path: str | Member) -> Tensor | UnreadableImageError:
        try:
            return load(path)
        except UnreadableImageError as error:
            return error

    images, kept, errors = [], [], []
    with (
        ThreadPoolExecutor(min(8, num_processors())) as threads,
        _Reporter(len(paths), what) as reporter,
    ):
        for position, image in enumerate(threads.map(attempt, paths)):
            reporter.advance()
            if isinstance(image, Tensor):
                images.append(image)
                kept.append(position)
            else:
                errors.append(str(image))
    if len(errors) >= MAX_UNREADABLE * len(paths) and errors:
        raise ValueError(f"{what}: {_too_many(errors, len(errors), len(paths))}")
    if errors:
        listed = "\n  ".join(errors[:10])
        warnings.warn(
            f"{what}: left out {len(errors)} of {len(paths)} images that cannot be read:\n  {listed}",
            stacklevel=2,
        )
    return images, kept


def num_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Reporter:
    """Progress with its rate, once work takes longer than a moment: a bar, or plain lines."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self.start = self.last = time.monotonic()
        self.console = Console(stderr=True)
        self.progress: Progress | None = None

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last < (0.2 if self.progress else _QUIET_SECONDS):
            return
        self.last = now
        rate = self.done / (now - self.start)
        if not self.console.is_terminal:
            left = (self.total - self.done) / rate
            self.console.print(
                f"reading {self.what}: {self.done}/{self.total}, {rate:.0f} images/s, {left:.0f} s left"
            )
            return
        if self.progress is None:
            columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:2])
            self.progress = Progress(
                *columns, TaskProgressColumn(), TimeRemainingColumn(), console=self.console
            )
            self.task = self.progress.add_task("", total=self.total)
            self.progress.start()
        self.progress.update(
            self.task, completed=self.done, description=f"reading {self.what}, {rate:.0f} images/s"
        )
