"""BLEU and chrF as functions of counts that add up over sentences: any mixture of systems can be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor

METRICS = {"BLEU": BLEU, "chrF": CHRF}


class Scoring(NamedTuple):
    """How texts are compared; the same for all metrics that know the option."""

    tokenize: str | None = (
        None  # of BLEU, by sacreBLEU's names: 13a (its default), zh, ja-mecab, intl ...
    )
    lowercase: bool = False
    word_order: int = 0  # of chrF: 2 makes it chrF++


class CorpusQuality:
    """A metric of sacreBLEU taken apart: `counts` of each sentence, `scores` of their sums.

    Scoring the sums of all sentences is scoring the corpus, to the last digit.

    Args:
        metric: "BLEU" or "chrF".
        reference: one for each sentence.
        scoring: None: sacreBLEU's defaults.

    Raises:
        ValueError: unknown metric, or a tokenizer that sacreBLEU does not know or cannot load.

    Example:
        >>> quality = CorpusQuality("BLEU", ["the cat sat on the mat", "a dog barks"])
        >>> counts = quality.counts(["the cat sat on the mat", "a dog barks"])
        >>> round(float(quality.scores(counts.sum(0, keepdim=True))[0]))
        100
    """

    def __init__(self, metric: str, reference: Sequence[str], scoring: Scoring | None = None):
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        self.metric = _build(metric, scoring or Scoring())
        self.reference = list(reference)

    def counts(self, translations: Sequence[str]) -> Float[Tensor, "n d"]:
        """Counts of each sentence.

        Raises:
            ValueError: not one translation for each reference.
        """
        if len(translations) != len(self.reference):
            raise ValueError(
                f"{len(translations)} translations for {len(self.reference)} references"
            )
        rows = self.metric._extract_corpus_statistics(list(translations), [self.reference])
        return torch.tensor(rows, dtype=torch.float64)

    def scores(self, sums: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
        """Score of each row of summed counts, from 0 to 100."""
        score_of: Callable = self.metric._compute_score_from_stats
        rows = sums.round().long().tolist()
        return torch.tensor([score_of(row).score for row in rows], dtype=torch.float64)

    def of_sentences(self, translations: Sequence[str]) -> Float[Tensor, " n"]:
        """Score of each sentence alone; BLEU is rough at that size, chrF less so."""
        return self.scores(self.counts(translations))

    @property
    def signature(self) -> str:
        """sacreBLEU's, to be printed beside every score."""
        if not hasattr(self.metric, "num_refs") or self.metric.num_refs in (None, -1):
            self.metric.corpus_score(self.reference[:1], [self.reference[:1]])
        return str(self.metric.get_signature())


def _build(metric: str, scoring: Scoring) -> BLEU | CHRF:
    if metric == "chrF":
        return CHRF(lowercase=scoring.lowercase, word_order=scoring.word_order)
    known = sorted(BLEU.TOKENIZERS)
    if scoring.tokenize is not None and scoring.tokenize not in known:
        raise ValueError(f"unknown tokenizer {scoring.tokenize!r}; known: {', '.join(known)}")
    try:
        return BLEU(lowercase=scoring.lowercase, tokenize=scoring.tokenize)
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # extra packages, or models to be downloaded
        reason = " ".join(str(error).split())
        raise ValueError(f"tokenizer {scoring.tokenize!r} cannot be loaded: {reason}") from error
