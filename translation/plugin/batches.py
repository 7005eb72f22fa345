"""fairseq's data sets of pairs, with whole batches and with the numbers of their sentences."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from fairseq.data import LanguagePairDataset
from fairseq.data.data_utils import numpy_seed

from translation.plugin.subwords import SubwordSampler


class WholePairDataset(LanguagePairDataset):
    """fairseq's data set without two faults of 0.12.3 in how batches are cut.

    - It leaves out the last batch if its size is not a multiple of --required-batch-size-multiple, 8 by
      default: up to a whole batch is neither trained on, nor validated on, nor translated.
    - It cuts batches by chance from the epoch at which a process starts, so a training that is resumed
      goes on with other batches than one that was not interrupted. Here they are those of epoch 1.
    """

    order_seed: int | None = None
    sampler: SubwordSampler | None = None  # cuts sentences anew
    epoch = 1

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index):
        example, sampler = super().__getitem__(index), self.sampler
        if sampler is not None:
            for side in sampler.sides:
                key = f"{self.epoch} {int(index)} {side}"
                example[side] = sampler.cut(example[side], key)
        return example

    def ordered_indices(self):
        if self.order_seed is None:
            return super().ordered_indices()
        with numpy_seed(self.order_seed):
            return super().ordered_indices()

    def batch_by_size(self, indices, max_tokens=None, *options, **named):
        """Group sentences into batches, as the parent does.

        Raises:
            ValueError: a sentence that no batch of so many tokens can hold.
        """
        try:
            batches = super().batch_by_size(indices, max_tokens, *options, **named)
        except AssertionError as error:
            longest = max(map(self.num_tokens, indices))
            raise ValueError(
                f"--max-tokens {max_tokens} is less than the longest sentence has, {longest}; "
                "give at least as many"
            ) from error
        rest = indices[sum(len(batch) for batch in batches) :]
        return [*batches, rest] if len(rest) else batches


class TypedDataset(WholePairDataset):
    """Lines that fairseq-interactive has read; it says which lines each of its batches holds.

    fairseq hands a batch on without the numbers of its sentences, and equal lines cannot be told apart by
    their tokens. Its batches come to be translated in the order in which they are put together.
    """

    numbers: deque[torch.Tensor]  # of the sentences of each batch, as they are put together
    first = 0  # number of the first line

    @classmethod
    def over(cls, dataset: LanguagePairDataset, first: int, numbers: deque[torch.Tensor]):
        """The same data set, which says its numbers.

        Args:
            dataset: of the lines.
            first: number of its first line.
            numbers: where those of each batch go.
        """
        dataset.__class__ = cls
        dataset.first, dataset.numbers = first, numbers
        return dataset

    def collater(self, samples, pad_to_length=None) -> dict[str, Any]:
        batch = super().collater(samples, pad_to_length=pad_to_length)
        if "id" in batch:
            self.numbers.append(batch["id"] + self.first)
        return batch
