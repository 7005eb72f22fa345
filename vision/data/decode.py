"""Decode many files at once, telling how far it is, and what cannot be read."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from coe_core.support.progress import progress
from vision.data.augmentation import Augmentation
from vision.data.bands import to_tensor
from vision.data.files import open_regular
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.data.shards import Member

MAX_UNREADABLE = 0.01  # share of a set; from here on the set is refused


class StoredForm(NamedTuple):
    """How a training file is decoded, so that views can be drawn: the same cached or not.

    Args:
        preprocess: how files become inputs.
        kind: "plain", pictures of size x size; "whole", of the shorter side that crops are drawn
            from; or "original", at their own resolution.
        max_pixels: of a file; None is Pillow's limit.
    """

    preprocess: Preprocess
    kind: str
    max_pixels: int | None = None

    def __call__(self, path: str | Member) -> Tensor:
        """Decode a file."""
        if self.kind == "plain":
            return self.preprocess.load(path, self.max_pixels)
        if self.kind == "original":
            return to_tensor(self.preprocess.decode(path, self.max_pixels))
        return self.preprocess.load_for_training(path, self.max_pixels)


def stored_form(
    preprocess: Preprocess, augmentation: Augmentation | None, max_pixels: int | None = None
) -> StoredForm:
    """The least that the augmentation can draw its views from."""
    if augmentation is None or (preprocess.resize == "exact" and not augmentation.crops_originals):
        kind = "plain"
    else:
        kind = "original" if augmentation.crops_originals else "whole"
    return StoredForm(preprocess, kind, max_pixels)


class DecodedFile(NamedTuple):
    """A file's picture, or why there is none; and a digest of its content."""

    image: Tensor | None
    error: str
    digest: int


class DecodedImages(NamedTuple):
    """Pictures of a set.

    Attributes:
        images: one tensor [n, ch, size, size] where all have that shape by their form, else a list.
        kept: the positions of their files among those that were to be read.
        digests: of the files' contents, [n] of uint64.
    """

    images: Tensor | list[Tensor]
    kept: list[int]
    digests: np.ndarray


def content_key(path: str | Member) -> int:
    """64 bits that tell files of different content apart; 0 for one that cannot be read."""
    try:
        if isinstance(path, Member):
            content = path.read_bytes()
        else:
            with open_regular(path) as file:
                content = file.read()
    except (OSError, ValueError):
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def decode_each(
    paths: Sequence[str | Member], load: StoredForm, what: str
) -> Iterator[DecodedFile]:
    """Decode files in threads, in their order, with a progress line if it takes long.

    Args:
        paths: files.
        load: how each is decoded.
        what: name of the set in messages.
    """

    def attempt(path: str | Member) -> DecodedFile:
        try:
            return DecodedFile(load(path), "", content_key(path))
        except UnreadableImageError as error:
            return DecodedFile(None, str(error), 0)

    with ThreadPoolExecutor(min(8, num_processors())) as threads:
        try:
            yield from progress(threads.map(attempt, paths), len(paths), f"reading {what}")
        except BaseException:  # Ctrl-C, a full disk: what waits is not decoded any more
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def decode_files(paths: Sequence[str | Member], load: StoredForm, what: str) -> DecodedImages:
    """Decode files into memory; leave unreadable ones out.

    Raises:
        ValueError: 1% of the files or more cannot be read. Fewer: one warning names them.
    """
    images, kept, digests, errors = [], [], [], []
    for position, decoded in enumerate(decode_each(paths, load, what)):
        if decoded.image is None:
            errors.append(decoded.error)
            continue
        images.append(decoded.image)
        kept.append(position)
        digests.append(decoded.digest)
    tell_unreadable(errors, len(paths), what)
    stacked = torch.stack(images) if load.kind == "plain" and images else images
    return DecodedImages(stacked, kept, np.array(digests, dtype=np.uint64))


def tell_unreadable(errors: Sequence[str], total: int, what: str) -> None:
    """Warn of files that are left out.

    Raises:
        ValueError: they are 1% of the set or more.
    """
    if not errors:
        return
    if len(errors) >= MAX_UNREADABLE * total:
        raise ValueError(f"{what}: {too_many_unreadable(errors, len(errors), total)}")
    listed = "\n  ".join(errors[:10])
    warnings.warn(
        f"{what}: left out {len(errors)} of {total} images that cannot be read:\n  {listed}",
        stacklevel=2,
    )


def too_many_unreadable(errors: Sequence[str], count: int, total: int) -> str:
    """The message where a set is refused."""
    listed = "\n  ".join(errors[:10])
    return (
        f"{count} of {total} images ({count / total:.1%}) cannot be read, not under "
        f"{MAX_UNREADABLE:.0%}; repair or remove them:\n  {listed}"
    )


def num_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
