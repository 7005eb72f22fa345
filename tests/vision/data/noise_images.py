"""Images of noise, a loader of them, and what two loaders give."""

import torch

from vision.data.augmentation import Augmentation
from vision.data.images import ImageSet
from vision.data.loaders import (
    EpochSampler,
    ResumableLoader,
)
from vision.data.section import Data


def images(n=22, channels=3, size=16, names=("shift", "flip"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(
        0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8
    )
    preprocess = Data(size=size, channels=channels).preprocess()
    augmentation = Augmentation(names, size) if names else None
    return ImageSet(torch.arange(n) % 3, ["a", "b", "c"], preprocess, pixels, None, augmentation)


def loader(data=None, batch_size=4, seed=0, workers=0, **options):
    data = data or images()
    sampler = EpochSampler(len(data), batch_size, seed, **options)
    return ResumableLoader(data, sampler, workers)


def same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
