"""Batches for training and evaluation: the same ones for any number of processes, and after a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from vision.data.augmentation import mix_seeds
from vision.data.decode import num_processors
from vision.data.images import ImageSet
from vision.data.section import Data

Batch = dict[str, Tensor]


class ClassDraws(NamedTuple):
    """How often the samples of each class are drawn in an epoch.

    Attributes:
        targets: class of each sample.
        counts: draws of each class; together as many as there are samples.
    """

    targets: Int[np.ndarray, " n"]
    counts: Int[np.ndarray, " c"]

    def samples(
        self, order: Int[np.ndarray, " n"], generator: torch.Generator
    ) -> Int[np.ndarray, " n"]:
        """Positions in random order; of each class none a second time before all of it once.

        Args:
            order: a random one of all samples.
            generator: for the order of what is drawn.
        """
        by_class = order[np.argsort(self.targets[order], kind="stable")]
        ends = np.cumsum(np.bincount(self.targets, minlength=len(self.counts)))
        drawn = [
            np.resize(of_class, count)
            for of_class, count in zip(np.split(by_class, ends[:-1]), self.counts, strict=True)
            if count
        ]
        shuffled = torch.randperm(len(order), generator=generator).numpy()
        return np.concatenate(drawn)[shuffled]


def draws_of_classes(targets: Int[np.ndarray, " n"], balance: float) -> ClassDraws:
    """Draws of an epoch in which a class of n samples is drawn as often as n^(1 - balance) says.

    Args:
        targets: class of each sample.
        balance: 0: as the samples are; 1: every class equally often.

    Example:
        >>> draws_of_classes(np.array([0, 0, 0, 0, 0, 0, 1, 1]), 1.0).counts.tolist()
        [4, 4]
        >>> draws_of_classes(np.array([0, 0, 0, 0, 1]), 0.5).counts.tolist()
        [3, 2]
    """
    sizes = np.bincount(targets)
    parts = np.where(sizes > 0, np.maximum(sizes, 1.0) ** (1 - balance), 0.0)
    ends = np.rint(np.cumsum(parts) / parts.sum() * len(targets)).astype(np.int64)
    return ClassDraws(targets, np.diff(ends, prepend=0))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (index, view_seed): an order and views that depend on (seed, epoch) alone.

    The epoch's order is cut into global batches; every rank takes its contiguous part of each, so
    that step t of all ranks together is step t of a single process. A last incomplete batch is left
    out (other samples every epoch).

    Args:
        num_samples: in the set.
        batch_size: global, over all ranks.
        seed: of the run.
        shuffle: False: samples in order (their views still differ from epoch to epoch).
        rank: of this process.
        world_size: number of processes; divides ``batch_size``.
        draws: how often each class is drawn an epoch, see `draws_of_classes`; None: every sample once.

    Raises:
        ValueError: ``batch_size`` above ``num_samples``, or not divisible by ``world_size``.

    Example:
        >>> [[index for index, _ in EpochSampler(5, 4, seed=0, rank=r, world_size=2)] for r in (0, 1)]
        [[2, 3], [1, 4]]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        draws: ClassDraws | None = None,
    ) -> None:
        if not 1 <= batch_size <= num_samples:
            raise ValueError(
                f"batch size {batch_size} with {num_samples} training samples makes no full batch; "
                f"choose one from 1 to {num_samples}"
            )
        if batch_size % world_size:
            raise ValueError(
                f"the global batch size {batch_size} does not divide evenly over {world_size} processes"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        self.num_samples, self.batch_size = num_samples, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size, self.draws = rank, world_size, draws
        self.epoch = 0
        self.first_batch = 0  # the next iteration starts here

    @property
    def num_batches(self) -> int:
        """How many batches an epoch has."""
        return self.num_samples // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches * (self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.num_samples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(int(mix_seeds(self.seed, self.epoch)[0]))
            order = torch.randperm(self.num_samples, generator=generator).numpy()
            if self.draws is not None:
                order = self.draws.samples(order, generator)
        batches = order[: self.num_batches * self.batch_size].reshape(self.num_batches, -1)
        share = self.batch_size // self.world_size
        columns = slice(self.rank * share, (self.rank + 1) * share)
        indices = batches[self.first_batch :, columns].reshape(-1)
        seeds = mix_seeds(self.seed, self.epoch, indices) if len(indices) else indices
        if self.draws is not None and len(indices):  # one sample has other views each time
            places = np.arange(order.size)[: batches.size].reshape(batches.shape)
            seeds = mix_seeds(seeds, places[self.first_batch :, columns].reshape(-1))
        return iter(list(zip(indices.tolist(), seeds.tolist(), strict=True)))


class ResumableLoader(DataLoader):
    """A training loader that can continue inside an epoch, without reading what was passed.

    Its state is the number of batches yielded in the epoch, in global batches: it loads on any number
    of processes. Neither order nor views consume torch's global generator.

    Args:
        images: the training set.
        sampler: which samples, in batches of its ``batch_size``.
        workers: processes.
        collate: samples -> batch.
        parts: batches that each of this process's is yielded in, one behind the other; the state is kept
            between whole ones.

    Raises:
        ValueError: a process's batch does not divide into parts.
    """

    def __init__(
        self,
        images: ImageSet,
        sampler: EpochSampler,
        workers: int = 0,
        collate: Callable[[list[dict]], Batch] | None = None,
        parts: int = 1,
    ) -> None:
        share = sampler.batch_size // sampler.world_size
        if share % parts:
            raise ValueError(
                f"a batch of {share} for each of {sampler.world_size} processes does not divide into "
                f"{parts} parts (train.accumulate)"
            )
        augmentation = getattr(images, "augmentation", None)
        if augmentation is not None:
            augmentation.prepare()
        super().__init__(
            images,
            batch_sampler=BatchSampler(sampler, share // parts, drop_last=True),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=collate or collate_samples,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self.epoch_sampler, self.parts = sampler, parts
        self._yielded = 0  # parts
        self._resume: tuple[int, int] | None = None  # (epoch, batches yielded in it)

    def __len__(self) -> int:
        return self.epoch_sampler.num_batches * self.parts

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing happens before the first batch is asked for, by when the epoch is set.
        sampler = self.epoch_sampler
        epoch, first = self._resume or (sampler.epoch, 0)
        self._resume = None
        sampler.first_batch = first if epoch == sampler.epoch else 0
        self._yielded = sampler.first_batch * self.parts
        for batch in super().__iter__():
            self._yielded += 1
            yield batch
        self._yielded = 0

    def state_dict(self) -> dict:
        """Position in the epoch; 0 at its end."""
        sampler = self.epoch_sampler
        epoch, batches = self._resume or (sampler.epoch, self._yielded // self.parts)
        return {
            "epoch": epoch,
            "batches": batches if batches < sampler.num_batches else 0,
            "batch_size": sampler.batch_size,
            "num_samples": sampler.num_samples,
            "seed": sampler.seed,
        }

    def load_state_dict(self, state: dict) -> None:
        """Let the next iteration start behind the batches already yielded.

        Raises:
            ValueError: inside an epoch, and batch size, number of samples or seed are others.
        """
        if state["batches"] == 0:
            self._resume = None
            return
        current = self.state_dict()
        for key in ("batch_size", "num_samples", "seed"):
            if state[key] != current[key]:
                raise ValueError(
                    f"cannot resume behind batch {state['batches']} of an epoch: {key} was "
                    f"{state[key]}, now {current[key]}; restore it, or resume from the end of an epoch"
                )
        self._resume = (state["epoch"], state["batches"])


def collate_samples(samples: list[dict]) -> Batch:
    """Samples -> image uint8 [n, ch, h, w], target int64 [n], index int64 [n].

    Where every network has its own view, also views uint8 [n, v, ch, h, w], of which image is the first.
    """
    if "views" in samples[0]:
        views = torch.stack([sample["views"] for sample in samples])
        plain = [{k: v for k, v in sample.items() if k != "views"} for sample in samples]
        return {**collate_samples(plain), "image": views[:, 0], "views": views}
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "target": torch.tensor([sample["target"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
    }


class MixSamples:
    """Collates, then applies MixUp or CutMix (one of both at random if both are on): once for all views.

    Images stay uint8; targets become shares of classes, float [n, c]. What is drawn depends on the
    view seed of the batch's first sample alone. Under data parallelism every process mixes its own part.

    Args:
        num_classes: c.
        mixup: alpha of MixUp; 0: off.
        cutmix: alpha of CutMix; 0: off.
    """

    def __init__(self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        from torchvision.transforms import v2

        choices = [v2.MixUp(num_classes=num_classes, alpha=mixup)] if mixup > 0 else []
        choices += [v2.CutMix(num_classes=num_classes, alpha=cutmix)] if cutmix > 0 else []
        self.transform = v2.RandomChoice(choices)

    def __call__(self, samples: list[dict]) -> Batch:
        batch = collate_samples(samples)
        generator = torch.default_generator
        state = generator.get_state()
        try:
            generator.manual_seed(int(mix_seeds(samples[0]["view_seed"], 1)[0]))
            # All views of an image side by side as channels: the same share of the same partner.
            images = batch.get("views", batch["image"].unsqueeze(1))
            mixed, targets = self.transform(images.flatten(1, 2).float(), batch["target"])
        finally:
            generator.set_state(state)
        views = mixed.round().to(torch.uint8).view_as(images)
        batch = {**batch, "image": views[:, 0], "target": targets}
        return {**batch, "views": views} if "views" in batch else batch


def default_workers(images: ImageSet, per_node: int = 1) -> int:
    """None where images are in memory and views cheap, else those processors that are left for each process.

    Args:
        images: a set, with augmentation or without.
        per_node: processes that share this machine's processors.
    """
    if images.cached and (images.augmentation is None or images.augmentation.cheap):
        return 0
    return max(0, num_processors() // per_node - 1)


def eval_loader(images: Dataset, batch_size: int, workers: int = 0) -> DataLoader:
    """All samples in order, without augmentation, in the same batches as training has."""
    return DataLoader(
        images,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate_samples,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def train_loader(
    data: Data,
    images: ImageSet,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    per_node: int | None = None,
    parts: int = 1,
) -> ResumableLoader:
    """Training batches: shuffled, augmented, mixed as ``data`` says.

    Under Lightning pass ``use_distributed_sampler=False`` to the trainer: the ranks are seen to here.

    Args:
        data: the recipe's section.
        images: the training set.
        batch_size: global, over all processes; the last incomplete batch of an epoch is left out.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        per_node: those that share this machine's processors; null: all of them.
        parts: see `ResumableLoader`.

    Raises:
        ValueError: more per batch than samples, or a batch that does not divide over the processes.
    """
    draws = draws_of_classes(images.targets.numpy(), data.balance) if data.balance else None
    sampler = EpochSampler(
        len(images), batch_size, seed, rank=rank, world_size=world_size, draws=draws
    )
    collate = collate_samples
    if data.mixup > 0 or data.cutmix > 0:
        collate = MixSamples(len(images.classes), data.mixup, data.cutmix)
    workers = data.workers
    if workers is None:
        workers = default_workers(images, per_node or world_size)
    return ResumableLoader(images, sampler, workers, collate, parts)
