"""Translate with an exported Collaboration of Experts: numpy, CTranslate2 and, for its pieces, sentencepiece.

`coe-translation export` copies this file into the export as runner.py:

    python runner.py --at macs=60% < source > translations     (from the command line)
    Runner("export")(["Ein Satz."], threshold=0.8)              (from a program)
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from coe_core.support.routing_file import (
    DamagedExportError,
    OneLineParser,
    read_routing,
    run_as_command,
    stored_setting,
    tag_of,
    verify_files,
)
from translation.export.search import Found, check_range, names_of, search

TASK = "translation"
BLOCK = 1024  # lines of the command line that are routed together


@dataclass(frozen=True)
class Translation:
    """A translated line, and how it came about."""

    text: str
    network: str  # "delegator", "expert-2", "cascade", a network's own name; "empty": nothing ran
    confidence: float  # of the first network's best hypothesis; NaN where none was needed
    texts: tuple[str, ...] = ("",)  # of the hypotheses that were asked for, best first
    ran: tuple[
        tuple[str, int], ...
    ] = ()  # networks, with steps of the decoder (0: the encoder alone)


class Runner:
    """The networks of an export: confident sentences end early, each needed expert runs once.

    A batch of lines is decoded by the delegator. Those whose confidence reaches the threshold are
    finished; for the others the delegator's encoder runs once more (CTranslate2 does not give its states
    away while it translates), the selection head names an expert, and every expert decodes its group.
    Where the threshold lets no line end early the delegator does not decode. Of a cascade there is one
    expert and no selection; a single network translates all lines.

    Args:
        folder: of the export.
        device: "cpu", "cuda" or "auto".
        threads: of each network; 0 lets CTranslate2 choose.
        compute_type: as CTranslate2 has it; "default" keeps the type the networks were exported in.
        batch_size: sentences that one network decodes at a time.
        verify: compare every file with its digest in routing.json; takes about a second for a gigabyte.

    Raises:
        ValueError: a file that is missing or damaged (DamagedExportError, which names it), or a number
            out of its range.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        threads: int = 0,
        compute_type: str = "default",
        batch_size: int = 32,
        verify: bool = True,
    ):
        check_range("threads", threads, 0, 1024)
        check_range("batch_size", batch_size, 1, 1_000_000)
        folder = Path(folder)
        self.routing = read_routing(folder, TASK, verify)
        self.batch_size = batch_size
        networks = [self.routing["delegator"], *self.routing["experts"]]
        names = [network["file"] for network in networks]
        self.system: str = self.routing.get("system", "CoE")
        self.names = names_of(self.system, len(self.routing["experts"]))
        selection, pieces = self.routing.get("selection"), self.routing["sentencepiece"]
        if verify:
            verify_files(folder, self.routing, [*names, *filter(None, (selection, pieces))])
        import ctranslate2

        def load(kind: type, name: str, **options: str) -> Any:
            path = folder / name
            if not path.is_dir():
                raise DamagedExportError(f"{path} is missing: copy the whole export")
            try:
                return kind(str(path), device=device, intra_threads=threads, **options)
            except ValueError:  # a type that this processor does not compute in
                raise
            except Exception as error:  # its errors have no common class
                raise DamagedExportError(f"CTranslate2 does not load {path}: {error}") from error

        self.delegator, *self.experts = (
            load(ctranslate2.Translator, name, compute_type=compute_type) for name in names
        )
        self.selects = selection is not None
        if selection is not None:
            self.encoder = load(ctranslate2.Encoder, selection)
            self.weight, self.bias = _head(folder / selection / "head.npz", len(self.experts))
        self.pieces = None if pieces is None else _pieces(folder / pieces)

    def limit(self, at: str | None = None, threshold: float | None = None) -> float:
        """The threshold: one of one's own, a stored one by its name, or else the export's default.

        Raises:
            ValueError: an operating point that is not stored (lists those that are), or a threshold
                outside the range of the export's confidence.
        """
        return stored_setting(self.routing, at, threshold)[0]

    def search(
        self, beam: int | None = None, lenpen: float | None = None, max_length: int | None = None
    ) -> dict[str, Any]:
        """The export's search with what is given in place of its own; as long as the networks allow.

        Raises:
            ValueError: a number out of its range.
        """
        given = {"beam": beam, "lenpen": lenpen, "max_length": max_length}
        search = {**self.routing["search"]}
        search |= {name: value for name, value in given.items() if value is not None}
        check_range("beam", search["beam"], 1, 1000)
        check_range("max_length", search["max_length"], 1, 1_000_000)
        if not math.isfinite(search["lenpen"]):
            raise ValueError(f"lenpen must be a finite number, got {search['lenpen']}")
        longest = self.routing.get("max_target_tokens")  # with the end of the sentence
        if longest is not None:
            search["max_length"] = min(search["max_length"], longest - 1)
        return search

    def _check_fitted(self, at: str | None, search: dict[str, Any]) -> None:
        """Refuse a stored threshold with another search than it was fitted with."""
        point = self.routing["default"] if at is None else self.routing["operating_points"][at]
        fitted = point.get("fitted_with")
        for name in ("beam", "lenpen"):
            if isinstance(fitted, dict) and fitted.get(name, search[name]) != search[name]:
                raise ValueError(
                    f"threshold {at or point.get('name')!r} was fitted with {name} {fitted[name]}, "
                    f"not {search[name]}: give a threshold of your own with it"
                )

    @property
    def longest(self) -> int:
        """Pieces of a sentence that the networks take, without its end."""
        return self.routing["max_source_tokens"] - 1

    def cut(self, lines: Sequence[str], target: str | None = None) -> list[list[str]]:
        """Pieces of each line: by the export's own model, or else at the spaces; see `tag_of`."""
        tag = tag_of(self.routing, target)
        lines = [tag + line if line.strip() else line for line in lines] if tag else lines
        if self.pieces is None:
            return [line.split() for line in lines]
        return [self.pieces.encode(line, out_type=str) for line in lines]

    def __call__(
        self,
        lines: Sequence[str],
        at: str | None = None,
        threshold: float | None = None,
        *,
        target: str | None = None,
        **options,
    ) -> list[Translation]:
        """Translate lines of text, in order; ``options`` as in `decode`."""
        return self.decode(self.cut(lines, target), at, threshold, **options)

    def decode(
        self,
        sentences: Sequence[list[str]],
        at: str | None = None,
        threshold: float | None = None,
        *,
        beam: int | None = None,
        lenpen: float | None = None,
        max_length: int | None = None,
        nbest: int = 1,
    ) -> list[Translation]:
        """Translate sentences that are cut into the vocabulary's pieces.

        Args:
            sentences: pieces of each.
            at: a stored threshold, by its name.
            threshold: instead of a stored one; a sentence ends early when its confidence is at least this.
            beam, lenpen, max_length: of the search; default: those of the export. nbest: in [1, beam].

        Raises:
            ValueError: as `limit`, or a sentence longer than the networks take.
        """
        if threshold is not None and not self.experts:
            raise ValueError(f"{self.system} always runs whole: it takes no threshold")
        exit_threshold = self.limit(at, threshold) if self.experts else -math.inf
        options = {**self.search(beam, lenpen, max_length), "nbest": nbest}
        check_range("nbest", nbest, 1, options["beam"])
        if threshold is None and self.experts:
            self._check_fitted(at, options)
        longest = self.longest
        for number, sentence in enumerate(sentences):
            if len(sentence) > longest:
                raise ValueError(
                    f"sentence {number + 1} has {len(sentence)} pieces, the networks take {longest}"
                )
        certain = 1.0 if self.routing["confidence"] == "probability" else 0.0
        translations = [Translation("", "empty", certain)] * len(sentences)
        spoken = [row for row, sentence in enumerate(sentences) if sentence]
        if exit_threshold <= certain:
            rough = self._search(self.delegator, [sentences[row] for row in spoken], options, True)
            confidences = self._confidences([sentences[row] for row in spoken], rough)
        else:  # none can end early
            rough, confidences = [Found([], math.nan)] * len(spoken), [math.nan] * len(spoken)
        for row, found, value in zip(spoken, rough, confidences, strict=True):
            translations[row] = self._translation(found, self.names[0], value)
        routed = zip(spoken, confidences, strict=True)
        staying = [row for row, value in routed if not value >= exit_threshold and self.experts]
        selected = self.select([sentences[row] for row in staying])
        for j in sorted(set(selected.tolist())):
            rows = [row for row, expert in zip(staying, selected, strict=True) if expert == j]
            answers = self._search(self.experts[j], [sentences[row] for row in rows], options)
            for row, found in zip(rows, answers, strict=True):
                value, ran = translations[row].confidence, translations[row].ran
                translations[row] = self._translation(found, self.names[1 + j], value, ran)
        return translations

    def _confidences(self, sentences: Sequence[list[str]], found: Sequence[Found]) -> list[float]:
        """Of the best hypotheses: by the search, or where that cannot say by `confidence`."""
        log = self.routing["confidence"] != "probability"
        means = [one.mean for one in found]
        values = [mean if log else math.exp(mean) for mean in means]
        rows = [row for row, mean in enumerate(means) if math.isnan(mean)]
        hypotheses = [found[row].hypotheses[0] for row in rows]
        scored = self.confidence([sentences[row] for row in rows], hypotheses)
        for row, value in zip(rows, scored, strict=True):
            values[row] = value
        return values

    def confidence(
        self, sentences: Sequence[list[str]], translations: Sequence[list[str]]
    ) -> list[float]:
        """Mean log-probability by the delegator of each translation's pieces and end, or its exponential."""
        if not sentences:
            return []
        scored = self.delegator.score_batch(
            sentences, translations, max_batch_size=self.batch_size, max_input_length=0
        )
        means = [float(np.mean(scores.log_probs)) for scores in scored]
        if self.routing["confidence"] == "probability":
            return [math.exp(mean) for mean in means]
        return means

    def select(self, sentences: Sequence[list[str]]) -> np.ndarray:
        """Expert of each sentence [n]: argmax of the head on the mean of the delegator's encoder states."""
        if len(self.experts) == 1 or not sentences:
            return np.zeros(len(sentences), dtype=np.int64)
        import ctranslate2

        order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
        selected = np.empty(len(sentences), dtype=np.int64)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            closed = [[*sentences[row], self.routing["end"]] for row in rows]
            states = self.encoder.forward_batch(closed).last_hidden_state
            states = states.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
            values, lengths = np.array(states), np.array([len(sentence) for sentence in closed])
            values[np.arange(values.shape[1]) >= lengths[:, None]] = 0  # padding
            pooled = values.sum(1) / lengths[:, None]
            selected[rows] = (pooled @ self.weight.T + self.bias).argmax(1)
        return selected

    def _search(self, network: Any, sentences: list, options: dict, scored=False) -> list[Found]:
        return search(network, sentences, self.batch_size, **options, scored=scored)

    def _translation(self, found: Found, network: str, confidence: float, ran=()) -> Translation:
        ranked = found.hypotheses
        texts = tuple(map(self._text, ranked)) or ("",)
        steps = 1 + max(map(len, ranked)) if ranked else 0
        return Translation(texts[0], network, confidence, texts, (*ran, (network, steps)))

    def _text(self, pieces: list[str]) -> str:
        return self.pieces.decode(pieces).strip() if self.pieces else " ".join(pieces)


def _head(path: Path, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the selection head."""
    try:
        with np.load(path, allow_pickle=False) as head:
            weight, bias = head["weight"], head["bias"]
    except Exception as error:  # an archive of another kind raises almost anything
        raise DamagedExportError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if weight.ndim != 2 or weight.shape[0] != num_experts or bias.shape != (num_experts,):
        raise DamagedExportError(
            f"{path} is damaged: weight {weight.shape}, bias {bias.shape} for {num_experts} experts"
        )
    return weight, bias


def _pieces(path: Path) -> Any:
    """The SentencePiece model."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise DamagedExportError(f"sentencepiece does not load {path}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Lines of standard input -> translations on standard output; what was spent on standard error.

    A line that is longer than the networks take gets an empty translation and is told on standard error.
    Exit status: 0; 1 if a line was left empty so; 2 if nothing could be done.
    """
    parser = OneLineParser("Translate lines with an exported team.")
    parser.add_argument("--folder", default=str(Path(__file__).parent), help="of the export")
    parser.add_argument("--at", help="stored threshold")
    parser.add_argument("--threshold", type=float, help="end early when confidence >= this")
    parser.add_argument("--target", help="language, of an export that translates into several")
    parser.add_argument("--beam", type=int)
    parser.add_argument("--lenpen", type=float)
    parser.add_argument("--max-length", type=int, help="pieces of a translation, at most")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "auto"])
    parser.add_argument("--compute-type", default="default", help="of CTranslate2, such as int8")
    parser.add_argument("--routes", help="file for network and confidence of every line")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare files with their digests"
    )
    chosen = parser.parse_args(arguments)
    return run_as_command("runner.py", lambda: _translate(chosen))


def _translate(chosen: argparse.Namespace) -> int:
    options = (chosen.device, chosen.threads, chosen.compute_type, chosen.batch_size)
    runner = Runner(chosen.folder, *options, not chosen.no_verify)
    search = {"beam": chosen.beam, "lenpen": chosen.lenpen, "max_length": chosen.max_length}
    how = {"at": chosen.at, "threshold": chosen.threshold, **search}
    runner.cut([], chosen.target)  # says what is wrong before it reads
    runner.decode([], **how)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a text of bytes
    counts: dict[str, int] = {}
    started, done = time.perf_counter(), 0
    with open(chosen.routes or os.devnull, "w", encoding="utf-8") as routes:
        while block := list(islice(sys.stdin.buffer, BLOCK)):
            for answer in _answers(runner, block, done, how, chosen.target):
                print(answer.text)
                print(f"R-{done}\t{answer.network}\t{answer.confidence:.4f}", file=routes)
                counts[answer.network] = counts.get(answer.network, 0) + 1
                done += 1
            sys.stdout.flush()
            rate = done / (time.perf_counter() - started)
            print(f"{done} sentences, {rate:.1f} a second", file=sys.stderr)
    print(", ".join(f"{name} {counts[name]}" for name in sorted(counts)), file=sys.stderr)
    return 1 if "too-long" in counts else 0


def _answers(runner: Runner, block: list[bytes], done: int, how: dict, target=None) -> list:
    """Translations of some lines; those that are too long are told and left empty."""
    lines = []
    for number, line in enumerate(block, done + 1):
        try:
            lines.append(line.decode("utf-8").removesuffix("\n").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8: {error}") from error
    sentences = runner.cut(lines, target)
    kept = [row for row, sentence in enumerate(sentences) if len(sentence) <= runner.longest]
    answers = [Translation("", "too-long", math.nan)] * len(lines)
    for row, answer in zip(
        kept, runner.decode([sentences[row] for row in kept], **how), strict=True
    ):
        answers[row] = answer
    for row in sorted(set(range(len(lines))) - set(kept)):
        print(
            f"runner.py: line {done + row + 1} has {len(sentences[row])} pieces, the networks take "
            f"{runner.longest}; left empty",
            file=sys.stderr,
        )
    return answers


if __name__ == "__main__":
    sys.exit(main())
