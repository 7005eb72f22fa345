"""Texts in, translations out: with a trained run, an export or a bare checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

from translation.prediction.engine import (
    EMPTY,
    OVER_LONG,
    Decoded,
    Engine,
    Search,
    Setting,
    TranslatorError,
)

_SAMPLES = 4  # lines of a text that is made
OverLong = Literal["cut", "skip", "refuse"]


@dataclass(frozen=True)
class Translation:
    """A translated text, and how it came about.

    Attributes:
        text: of the best hypothesis; of an empty line, or of one that was skipped, it is empty.
        route: network that translated it: "delegator" (it ended early), "expert-2", "cascade" (its second
            network), the name of a single network, "empty", or "over-long" (skipped).
        confidence: of the delegator's best hypothesis; of a single network its own; NaN where nothing could
            end early, so that the delegator did not translate.
        macs: multiply-adds spent on it; NaN where an older export does not tell.
        hypotheses: texts of as many as were asked for, best first.
        pieces: of the source.
        cut: pieces that were left out, as the networks take no more.
    """

    text: str
    route: str
    confidence: float
    macs: float
    hypotheses: tuple[str, ...] = ()
    pieces: int = 0
    cut: int = 0

    @property
    def exited(self) -> bool:
        """Whether the delegator's translation is the answer."""
        return self.route == "delegator"


class Sentence(NamedTuple):
    """A line that is ready to be translated.

    Attributes:
        pieces: as many as the networks take.
        left_out: pieces beyond that.
    """

    pieces: list[str]
    left_out: int

    @property
    def size(self) -> int:
        """Tokens, its end included."""
        return len(self.pieces) + 1


class Translator:
    """Translates texts: confident sentences end with the delegator, the others go to one expert each.

    May be called from several threads at once; batches are decoded one after another.

    Args:
        source: folder of a run, folder of an export, or a checkpoint file.
        budget: when a call gives none: name of an operating point, or multiply-adds such as "60%" (of no
            exits) or "20M"; None: the point "best", else the first that is stored; no exits where none is.
        system: that translates: "CoE", "cascade", "single:NAME", "ensemble:NAME"; None: the collaboration.
        data: of a checkpoint: folder with its dictionaries (fairseq-preprocess made it).
        vocabulary: of a checkpoint: SentencePiece's model; None: its lines are in pieces already.
        points: of a checkpoint: file of operating points that `coe-translation calibrate` wrote.
        max_tokens: source tokens of a batch, its padding included.
        device: "auto", "cpu" or "cuda".

    Raises:
        TranslatorError: nothing there that can translate; what is missing is said.
        ValueError: a damaged file, or a budget that is not stored.
    """

    def __init__(
        self,
        source: str | PathLike[str],
        *,
        budget: str | float | None = None,
        system: str | None = None,
        data: str | PathLike[str] | None = None,
        vocabulary: str | PathLike[str] | None = None,
        points: str | PathLike[str] | None = None,
        max_tokens: int = 4096,
        device: str = "auto",
    ):
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        given = {"data": data, "vocabulary": vocabulary, "points": points}
        self.engine = load_engine(Path(source), given, device)
        self.source, self.max_tokens = Path(source), max_tokens
        self.budget, self.system = budget, system
        self.resolve()

    @property
    def search(self) -> Search:
        """Where a call asks for none."""
        return self.engine.search

    def resolve(
        self,
        budget: str | float | None = None,
        threshold: float | None = None,
        system: str | None = None,
        search: Search | None = None,
    ) -> Setting:
        """System and threshold for a budget; the translator's own where none is given.

        Raises:
            ValueError: no such operating point or system, or one fitted with another search.
            AimNotReachableError: less than the delegator alone spends.
        """
        if budget is None and threshold is None and system is None:
            budget = self.budget
        system = self.system if system is None else system
        return self.engine.resolve(budget, threshold, system, search or self.search)

    def cut(self, line: str, target: str | None = None) -> Sentence:
        """A line in pieces, as many as the networks take.

        Args:
            line: of text.
            target: language, of a run that translates into several.

        Raises:
            ValueError: a language that there is not, or none where one is due.
        """
        tag = self._tag(target)
        pieces = self.engine.cut(tag + line) if line.strip() else []
        longest = self.engine.longest
        return Sentence(pieces[:longest], max(len(pieces) - longest, 0))

    def unknown(self, lines: Iterable[str]) -> float:
        """Part of the letters of some lines that the networks have never seen."""
        letters = strange = 0
        for piece in (piece for line in lines for piece in self.engine.cut(line)):
            count = len(piece.strip("\u2581"))
            letters += count
            strange += 0 if self.engine.knows(piece) else count
        return strange / max(1, letters)

    def _tag(self, target: str | None) -> str:
        """What says into which language a sentence is wanted, as in the training text."""
        known = self.engine.targets
        if target is None and not known:
            return ""
        if target not in known:
            into = ", ".join(known) or "one language: name none"
            asked = "say into which language" if target is None else f"no language {target[:40]!r}"
            raise ValueError(f"{asked}; {self.engine.name} translates into {into} (target)")
        from translation.training.calls import tag

        return f"{tag(str(target))} "

    def __call__(
        self,
        texts: str | Sequence[str],
        budget: str | float | None = None,
        threshold: float | None = None,
        *,
        system: str | None = None,
        beam: int | None = None,
        lenpen: float | None = None,
        max_len: int | None = None,
        nbest: int = 1,
        target: str | None = None,
        over_long: OverLong = "cut",
    ) -> list[Translation]:
        """Translate texts, each as one sentence, in their order.

        Args:
            texts: any number; one alone is a list of one.
            budget: see the class.
            threshold: end early when the confidence is at least this, instead of a budget.
            system: see the class.
            beam: hypotheses kept.
            lenpen: exponent of the length by which log-probabilities are divided.
            max_len: pieces of a translation.
            nbest: hypotheses to return, at most ``beam``.
            target: language, of a run that translates into several.
            over_long: what becomes of a text of more pieces than the networks take: its beginning is
                translated, its translation is empty, or an error.

        Raises:
            ValueError: as `resolve`, a number out of its range, or a text that is too long and refused.
        """
        lines = [texts] if isinstance(texts, str) else list(texts)
        search = self.search.changed(beam, lenpen, max_len)
        setting = self.resolve(budget, threshold, system, search)
        sentences = [self.cut(line, target) for line in lines]
        if over_long not in ("cut", "skip", "refuse"):
            raise ValueError(f"over_long must be cut, skip or refuse, got {over_long!r}")
        if over_long == "refuse":
            self._refuse(sentences)
        skipped = {
            row
            for row, sentence in enumerate(sentences)
            if sentence.left_out and over_long == "skip"
        }
        wanted = [
            sentence if row not in skipped else Sentence([], 0)
            for row, sentence in enumerate(sentences)
        ]
        translations = self.translate(wanted, setting, search, nbest)
        for row in skipped:
            count = len(sentences[row].pieces) + sentences[row].left_out
            translations[row] = Translation("", OVER_LONG, math.nan, 0.0, ("",), count)
        return translations

    def translate(
        self,
        sentences: Sequence[Sentence],
        setting: Setting,
        search: Search | None = None,
        nbest: int = 1,
    ) -> list[Translation]:
        """Translate sentences of `cut`, in batches of ``max_tokens``.

        Raises:
            ValueError: more hypotheses than the beam keeps.
        """
        search = search or self.search
        if not 1 <= nbest <= search.beam:
            raise ValueError(f"nbest must be in [1, {search.beam}], the beam, got {nbest}")
        certain = 1.0
        translations = [Translation("", EMPTY, certain, 0.0, ("",))] * len(sentences)
        for rows in batches([sentence.size for sentence in sentences], self.max_tokens):
            rows = [row for row in rows if sentences[row].pieces]
            if not rows:
                continue
            pieces = [sentences[row].pieces for row in rows]
            decoded = self.engine.decode(pieces, setting, search, nbest)
            for row, sentence in zip(rows, decoded, strict=True):
                translations[row] = _translation(sentence, sentences[row])
        return translations

    def _refuse(self, sentences: Sequence[Sentence]) -> None:
        for number, sentence in enumerate(sentences, start=1):
            if sentence.left_out:
                raise ValueError(
                    f"text {number} has {len(sentence.pieces) + sentence.left_out} pieces, the networks take "
                    f"{self.engine.longest}; give it in parts, or over_long='cut' or 'skip'"
                )


def _translation(decoded: Decoded, sentence: Sentence) -> Translation:
    return Translation(
        decoded.texts[0],
        decoded.route,
        decoded.confidence,
        decoded.macs,
        tuple(decoded.texts),
        len(sentence.pieces) + sentence.left_out,
        sentence.left_out,
    )


def batches(sizes: Sequence[int], max_tokens: int) -> Iterable[list[int]]:
    """Rows in batches of alike lengths: so many tokens at most, padding included, or one sentence.

    Example:
        >>> list(batches([5, 2, 2, 9], max_tokens=6))
        [[1, 2], [0], [3]]
    """
    batch: list[int] = []
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row]):
        if batch and (len(batch) + 1) * sizes[row] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def load_engine(
    source: Path, given: dict[str, str | PathLike[str] | None], device: str = "auto"
) -> Engine:
    """What a path holds: a run, an export, or a checkpoint with what is ``given``.

    Raises:
        TranslatorError: none of them.
        ValueError: see `Translator`.
    """
    extra = [name for name, value in given.items() if value is not None]
    if (source / "routing.json").is_file() or (source / "recipe.yaml").is_file():
        if extra:
            raise TranslatorError(f"{source} has its own {extra[0]}: leave {extra[0]} out")
        if (source / "routing.json").is_file():
            from translation.prediction.export_engine import ExportEngine

            return ExportEngine(source, device)
        return _of_run(source, device)
    if not source.is_file():
        what = (
            "neither a run nor an export"
            if source.exists()
            else "no such run, export or checkpoint"
        )
        raise TranslatorError(f"{source}: {what}")
    if given["data"] is None:
        raise TranslatorError(
            f"{source}: a checkpoint alone has no dictionaries; name the folder that fairseq-preprocess "
            "made (data, --data), and, for plain text, SentencePiece's model (vocabulary, --vocabulary)"
        )
    for name in extra:
        path = Path(given[name] or "")
        if not (path.is_dir() if name == "data" else path.is_file()):
            raise TranslatorError(
                f"{path}: no such {'folder' if name == 'data' else 'file'} ({name})"
            )
    from translation.plugin.loading import load_fairseq

    load_fairseq()
    from translation.prediction.fairseq_engine import FairseqEngine

    paths = {name: None if value is None else Path(value) for name, value in given.items()}
    data = paths["data"]
    assert data is not None, "checked above"
    return FairseqEngine(source, data, paths["vocabulary"], points=paths["points"], device=device)


def _of_run(folder: Path, device: str) -> Engine:
    from translation.run import load_run

    run = load_run(folder)
    generation = run.recipe.generation
    from translation.plugin.loading import load_fairseq

    load_fairseq()
    from translation.prediction.fairseq_engine import FairseqEngine

    engine = FairseqEngine(
        run.team,
        run.data(),
        run.vocabulary,
        controls=run.services,
        points=run.points if run.points.is_file() else None,
        decoded=run.decoded(run.recipe.texts.valid),
        search=Search(generation.beam, generation.lenpen, generation.max_len),
        device=device,
    )
    engine.name = folder.resolve().name
    engine.targets = (
        run.recipe.languages.target if run.recipe.languages.tagged else []
    )  # in its order
    if run.recipe.texts.corpus == "numbers":  # made, so nobody's
        text = run.text(run.recipe.texts.valid, run.recipe.languages.sides[0])
        engine.samples = _first_lines(text) if text.is_file() else []
    return engine


def _first_lines(path: Path) -> list[str]:
    """A few that are short enough to be looked at together."""
    with path.open(encoding="utf-8") as lines:
        return [line.strip() for line in islice(lines, _SAMPLES)]
