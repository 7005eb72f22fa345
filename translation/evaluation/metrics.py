"""BLEU and chrF as functions of counts that add up over sentences: any mixture of systems can be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from translation.evaluation.scoring import Scoring, build_metric

METRICS = ("BLEU", "chrF")  # whose counts add up, and that a curve is made for


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
        self.name, self.metric = metric, build_metric(metric, scoring)
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
        if self.name == "BLEU":
            return _bleu(sums.round())
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


def _bleu(sums: Float[Tensor, "m 10"]) -> Float[Tensor, " m"]:
    """sacreBLEU's formula (orders 1 to 4, smoothing "exp") for many rows at once."""
    length, reference, correct, total = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    halved = 2.0 ** (correct == 0).cumsum(1)  # of an order without matches, half of the one before
    matched = torch.where(correct == 0, 1 / halved, correct)
    precision = matched / total.clamp(min=1)
    brevity = torch.exp(1 - reference / length.clamp(min=1)).clamp(max=1)
    scores = 100 * brevity * precision.log().mean(1).exp()
    return torch.where((correct == 0).all(1) | (total == 0).any(1), 0.0, scores)
