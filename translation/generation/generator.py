"""Generation that really skips: the delegator decodes all sentences, one expert each of the rest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coe_core import Delegation, infer
from translation.generation.routers import Router, certainty

Hypotheses = list[dict[str, Tensor]]  # of one sentence, best first, as fairseq's generators return
EMPTY, DELEGATOR = "empty", "delegator"


class Sentences(NamedTuple):
    """A batch to translate."""

    source: Int[Tensor, "n s"]
    length: Int[Tensor, " n"]  # tokens of each source, end of sentence included
    # In the data set; tuple's method of that name is not needed.
    index: Int[Tensor, " n"]  # type: ignore[assignment]
    prefix: Int[Tensor, "n p"] | None = None  # forced first tokens
    constraints: Tensor | None = None  # [n, ...], forced words as fairseq packs them


class Route(NamedTuple):
    """How a sentence was translated."""

    network: str  # "delegator", "expert-2", "ensemble", "cascade", or "empty": nothing ran
    # Of the delegator's best hypothesis; 1 for an empty sentence, NaN where none could exit: not translated.
    confidence: float


class Decoded(NamedTuple):
    """Translations in the order of the input."""

    hypotheses: list[Hypotheses]
    routes: list[Route]


def take(sentences: Sentences, rows: Tensor, pad: int) -> Sentences:
    """Some of the sentences, without the columns that are padding in all of them."""
    parts: list[Any] = [None if part is None else part.index_select(0, rows) for part in sentences]
    taken = Sentences(*parts)
    return taken._replace(source=taken.source[:, taken.source.ne(pad).any(0)])


def hypothesis_confidence(best: dict[str, Tensor], kind: str) -> float:
    """Confidence of a hypothesis: its length-normalised log-probability, or the exponential of it.

    The mean log-probability of its tokens (end of sentence too), whatever length penalty ranked the
    hypotheses. RECONSTRUCTED (method section 4). Not finite counts as no confidence at all.

    Example:
        >>> best = {"positional_scores": torch.tensor([0.5, 0.5]).log()}
        >>> round(hypothesis_confidence(best, "probability"), 4)
        0.5
    """
    mean = float(best["positional_scores"].float().mean())
    if not math.isfinite(mean):
        mean = -math.inf
    return math.exp(mean) if kind == "probability" else mean


def may_exit(threshold: float, kind: str) -> bool:
    """Whether any confidence can reach a threshold; if not, the delegator need not translate. OURS.

    Example:
        >>> may_exit(1.0, "probability"), may_exit(float("inf"), "probability")
        (True, False)
    """
    return threshold <= certainty(kind)


def not_empty(source: Int[Tensor, "n s"], pad: int, eos: int) -> Bool[Tensor, " n"]:
    """Which sentences are more than their end; nothing runs for the others.

    Example:
        >>> not_empty(torch.tensor([[5, 2], [1, 2]]), pad=1, eos=2).tolist()
        [True, False]
    """
    return (source.ne(pad) & source.ne(eos)).any(1)


def by_longest_source(options: Any) -> bool:
    """Whether fairseq's lengths of a translation go by the longest source of its batch."""
    return getattr(options, "max_len_a", 0) > 0 or getattr(options, "match_source_len", False)


class CollaborativeGenerator:
    """A generator in fairseq's sense over the networks of a team, by way of `coe_core.infer`.

    PAPER: confident sentences end with the delegator's hypothesis; the others are decoded once, by the
    selected expert. OURS: an empty source line has an empty translation and runs nothing; where the
    threshold lets no sentence exit, the delegator selects and does not translate.

    A sentence's translation does not depend on what else is in the batch (but for rounding): sentences
    are grouped by expert, and, where a rule of fairseq's goes by the batch's longest source
    (``by_length``), decoded together with those of their own length only.

    Args:
        delegator: generator over the delegator alone.
        selection_logits: the selection of the sentences that the delegator decoded last.
        select: sources, their lengths -> selection, by the delegator's encoder alone.
        experts: a generator for each expert; a single one serves "ensemble" and "cascade".
        router: who translates what does not exit.
        threshold: exit when the confidence is at least this.
        confidence: "probability" or "log_probability".
        pad, eos: token numbers.
        by_length: decode sentences of different lengths apart.
        remembering: around a batch; layers that the networks share keep what they made of it.
    """

    def __init__(
        self,
        delegator: Any,
        selection_logits: Callable[[], Tensor],
        select: Callable[[Tensor, Tensor], Float[Tensor, "n k"]],
        experts: Sequence[Any],
        router: Router,
        *,
        threshold: float,
        confidence: str,
        pad: int,
        eos: int,
        by_length: bool = False,
        remembering: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ):
        self.delegator = delegator
        self.selection_logits = selection_logits
        self.select = select
        self.experts = list(experts)
        self.router = router
        self.threshold = threshold
        self.confidence = confidence
        self.pad = pad
        self.eos = eos
        self.by_length = by_length
        self.remembering = remembering
        self.routes: list[Route] = []  # of the last batch
        self.symbols_to_strip_from_output = delegator.symbols_to_strip_from_output

    def generate(self, models, sample, prefix_tokens=None, constraints=None, **options):
        """Hypotheses of every sentence, as fairseq's generators return them; `routes` beside them."""
        source = sample["net_input"]["src_tokens"]
        index = sample.get("id")
        decoded = self.decode(
            Sentences(
                source,
                source.ne(self.pad).sum(1),
                torch.arange(len(source), device=source.device) if index is None else index,
                prefix_tokens,
                constraints,
            ),
            **options,
        )
        self.routes = decoded.routes
        return decoded.hypotheses

    def decode(self, sentences: Sentences, **options) -> Decoded:
        """Translate a batch."""
        n = len(sentences.source)
        rows = not_empty(sentences.source, self.pad, self.eos).nonzero()[:, 0]
        hypotheses = [[self._empty(sentences.source)] for _ in range(n)]
        routes = [Route(EMPTY, certainty(self.confidence))] * n
        if len(rows):
            with self.remembering():
                decoded = self._decode(take(sentences, rows, self.pad), **options)
            for row, ranked, route in zip(rows.tolist(), *decoded, strict=True):
                hypotheses[row], routes[row] = ranked, route
        return Decoded(hypotheses, routes)

    def _decode(self, sentences: Sentences, **options) -> Decoded:
        alone = self.router.kind in ("ensemble", "cascade")  # one stands for all experts

        def delegate(batch: Sentences) -> Delegation:
            hypotheses: list[Any]
            logits: Tensor | None
            if may_exit(self.threshold, self.confidence):
                hypotheses, logits = self._run(
                    self.delegator, batch, self.selection_logits, **options
                )
                confidence = [
                    hypothesis_confidence(ranked[0], self.confidence) for ranked in hypotheses
                ]
            else:
                hypotheses = [None] * len(batch.source)
                confidence = [math.nan] * len(hypotheses)
                # Of a cascade or an ensemble nothing is selected either.
                no_choice = torch.zeros(len(hypotheses), 1)
                logits = no_choice if alone else self.select(batch.source, batch.length)
            assert logits is not None, "of a batch of sentences"
            if alone:
                logits = logits[:, :1]
            confidences = torch.tensor(confidence, dtype=torch.float64)
            return Delegation(hypotheses, confidences, logits.float().cpu())

        def expert(generator: Any) -> Callable[[Sentences], list[Hypotheses]]:
            return lambda batch: self._run(generator, batch, **options)[0]

        result = infer(
            delegate,
            [expert(generator) for generator in self.experts],
            sentences,
            self.threshold,
            take=lambda batch, rows: take(batch, rows.to(batch.source.device), self.pad),
            select=lambda logits: self.router.select(logits, sentences.source, self.pad),
        )
        routes = [
            Route(self._name(expert, exits), confidence)
            for exits, expert, confidence in zip(
                result.exits.tolist(),
                result.selected_expert.tolist(),
                result.confidence.tolist(),
                strict=True,
            )
        ]
        return Decoded(result.prediction, routes)

    def _name(self, expert: int, exits: bool) -> str:
        if exits:
            return DELEGATOR
        alone = self.router.kind in ("ensemble", "cascade")
        return self.router.kind if alone else f"expert-{expert}"

    def _run(
        self,
        generator: Any,
        sentences: Sentences,
        beside: Callable[[], Tensor] | None = None,
        **options,
    ) -> tuple[list[Hypotheses], Float[Tensor, "n k"] | None]:
        """Decode, all together or by length; and what ``beside`` gives after each part, joined."""
        n = len(sentences.source)
        parts = [torch.arange(n, device=sentences.source.device)]
        if self.by_length:
            lengths = sentences.length
            parts = [(lengths == length).nonzero()[:, 0] for length in lengths.unique().tolist()]
        hypotheses: list[Any] = [None] * n
        joined: Tensor | None = None
        for rows in parts:
            batch = sentences if len(parts) == 1 else take(sentences, rows, self.pad)
            sample = {
                "id": batch.index,
                "net_input": {"src_tokens": batch.source, "src_lengths": batch.length},
            }
            if batch.prefix is not None:
                options["prefix_tokens"] = batch.prefix
            if batch.constraints is not None:
                options["constraints"] = batch.constraints
            answers = generator.generate(None, sample, **options)
            for row, answer in zip(rows.tolist(), answers, strict=True):
                hypotheses[row] = answer
            if beside is not None:
                values = beside()
                joined = values.new_empty(n, values.shape[1]) if joined is None else joined
                joined[rows] = values
        return hypotheses, joined

    def _empty(self, like: Tensor) -> dict[str, Tensor]:
        """The hypothesis of an empty line: end of sentence, with certainty."""
        return {
            "tokens": like.new_tensor([self.eos]),
            "score": torch.zeros((), device=like.device),
            "attention": torch.empty(0),
            "alignment": torch.empty(0),
            "positional_scores": torch.zeros(1, device=like.device),
        }
