"""Subword regularisation: every training sentence is cut anew in each epoch, the same way in every training.

PAPER: Kudo 2018 (sampling of a unigram model's segmentations), Provilkov et al. 2020 (BPE-dropout); both
are SentencePiece's own. How a sentence is cut depends on the seed, the epoch and its number alone, not on
what came before: a training that is resumed goes on as one without a stop, and a team and its controls
see the same pieces. Batches are those of the sentences as the data are cut, for the same reasons; in pieces
they are then somewhat larger than --max-tokens says.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from translation.corpora.vocabulary import load_pieces, real_pieces

_TAG = re.compile(r"<2(\w+)>")  # of a language
SIDES = {"both": ("source", "target"), "source": ("source",)}


class SubwordSampler:
    """Cuts sentences of token numbers anew.

    Args:
        model: SentencePiece's, that the sentences were cut by.
        alpha: of unigram the exponent of the probabilities of its segmentations, of bpe the probability of
            leaving out a merge.
        dictionary: fairseq's of the data.
        sides: "source", "target" or both.
        longest: tokens of a sentence, its end included; what would be longer stays as it is.

    Attributes:
        seed: of all segmentations.

    Raises:
        ValueError: a model that is none, or pieces that the dictionary lacks.
    """

    seed = 1

    def __init__(
        self,
        model: str | Path,
        alpha: float,
        dictionary: Any,
        sides: Sequence[str] = SIDES["both"],
        longest: int = 1024,
    ):
        self.pieces, self.alpha = load_pieces(model), alpha
        self.dictionary, self.sides, self.longest = dictionary, tuple(sides), longest
        known = real_pieces(self.pieces)
        missing = [piece for piece in known if dictionary.index(piece) == dictionary.unk()]
        if missing:
            raise ValueError(
                f"--subword-sampling: {len(missing)} of {len(known)} pieces of {model} are not in the "
                f"dictionary of the data, such as {missing[0]!r}: let coe-translation vocabulary write one "
                "of all pieces (--dictionary FILE), and run fairseq-preprocess again with --srcdict FILE"
            )

    def sample(self, pieces: Sequence[str], key: str) -> list[str]:
        """Another segmentation of the same text.

        Args:
            pieces: of a sentence; a tag of a language at its beginning stays.
            key: of the sentence, the epoch and the side; the same key gives the same pieces.
        """
        tags = [place for place, piece in enumerate(pieces) if _TAG.fullmatch(piece)]
        start = tags[-1] + 1 if tags else 0
        text = self.pieces.decode(list(pieces[start:]))
        sampled: list[str] = []

        def work() -> None:
            sampled[:] = self.pieces.encode(
                text, out_type=str, enable_sampling=True, alpha=self.alpha, nbest_size=-1
            )

        # A thread's generator of SentencePiece is seeded when it is first used, and never again.
        _seed(zlib.crc32(f"{self.seed} {key}".encode()))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        found = [*pieces[:start], *sampled]
        return found if "".join(found) == "".join(pieces) else list(pieces)

    def cut(self, tokens: Int[Tensor, " t"], key: str) -> Int[Tensor, " t2"]:
        """A sentence of token numbers, its end included, cut anew; one with unknown words stays."""
        words = self.dictionary
        numbers = tokens.tolist()
        end = numbers[-1:] if numbers and numbers[-1] == words.eos() else []
        body = numbers[: len(numbers) - len(end)]
        if not body or words.unk() in body:
            return tokens
        found = [*map(words.index, self.sample([words[n] for n in body], key)), *end]
        if words.unk() in found or len(found) > self.longest:
            return tokens
        return torch.tensor(found, dtype=tokens.dtype)


def _seed(value: int) -> None:
    import sentencepiece

    sentencepiece.set_random_generator_seed(value)


def targets_of(words: Iterable[str]) -> list[str]:
    """The languages that a dictionary has tags of, so that a sentence must say into which one it is wanted.

    Example:
        >>> targets_of(["a", "<2de>", "<2pt_BR>"])
        ['de', 'pt_BR']
    """
    return sorted(match[1] for match in map(_TAG.fullmatch, words) if match)


def check_sampling(cfg: Any) -> None:
    """Refuse options of the task that do not go together.

    Raises:
        ValueError: a number out of its range, or sampling without a model.
    """
    alpha, model = cfg.subword_sampling, cfg.subword_model
    if not 0 <= alpha <= 1:
        raise ValueError(f"--subword-sampling must be in [0, 1], got {alpha}")
    if alpha and model is None:
        raise ValueError(
            "--subword-sampling needs --subword-model, SentencePiece's model that the data were cut by"
        )


def sampler_of(cfg: Any, dictionary: Any) -> SubwordSampler:
    """The sampler that the options of the task ask for.

    Args:
        cfg: of the task.
        dictionary: of the data.

    Raises:
        ValueError: see `SubwordSampler`.
    """
    return SubwordSampler(
        cfg.subword_model,
        cfg.subword_sampling,
        dictionary,
        SIDES[str(cfg.subword_sides)],
        min(cfg.max_source_positions, cfg.max_target_positions),
    )
