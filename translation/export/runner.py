"""Translate with an exported Collaboration of Experts: numpy, CTranslate2 and, for its pieces, sentencepiece.

`coe-translation export` copies this file into the export as runner.py:

    python runner.py --at macs=60% < source > translations     (from the command line)
    Runner("export")(["Ein Satz."], threshold=0.8)              (from a program)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import ctranslate2
import numpy as np

BLOCK = 1024  # lines of the command line that are routed together


@dataclass(frozen=True)
class Translation:
    """A translated line, and how it came about."""

    text: str
    network: str  # "delegator", "expert-2", or "empty": nothing ran
    confidence: float  # of the delegator's best hypothesis; NaN where none was needed


class Runner:
    """The k+1 networks of an export: confident sentences end early, each needed expert runs once.

    A batch of lines is decoded by the delegator, and scored. Those whose confidence reaches the
    threshold are finished; for the others the delegator's encoder runs once more (CTranslate2 does not
    give its states away while it translates), the selection head names an expert, and every expert
    decodes its group. Where the threshold lets no line end early the delegator does not decode.

    Args:
        folder: of the export.
        device: "cpu", "cuda" or "auto".
        threads: of each network; 0 lets CTranslate2 choose.
        compute_type: as CTranslate2 has it; "default" keeps the type the networks were exported in.
        batch_size: sentences that one network decodes at a time.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        threads: int = 0,
        compute_type: str = "default",
        batch_size: int = 32,
    ):
        folder = Path(folder)
        self.routing = json.loads((folder / "routing.json").read_text(encoding="utf-8"))
        self.batch_size = batch_size
        how = {"device": device, "intra_threads": threads}
        self.delegator = ctranslate2.Translator(
            str(folder / "delegator"), compute_type=compute_type, **how
        )
        self.experts = [
            ctranslate2.Translator(str(folder / f"expert_{j}"), compute_type=compute_type, **how)
            for j in range(self.routing["num_experts"])
        ]
        self.encoder = ctranslate2.Encoder(str(folder / "selection"), **how)
        with np.load(folder / "selection" / "head.npz", allow_pickle=False) as head:
            self.weight, self.bias = head["weight"], head["bias"]
        self.pieces = None
        if self.routing["sentencepiece"]:
            import sentencepiece

            model = str(folder / self.routing["sentencepiece"])
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=model)

    def limit(self, at: str | None = None, threshold: float | None = None) -> float:
        """The threshold: one of one's own, a stored one by its name, or else the export's default.

        Raises:
            ValueError: an operating point that is not stored, or a threshold that cannot be one.
        """
        points = self.routing["thresholds"]
        if at is not None and at not in points:
            raise ValueError(f"no threshold {at!r}; stored: {', '.join(points) or 'none'}")
        stored = self.routing["default"] if at is None else points[at]
        chosen = float(stored if threshold is None else threshold)
        if math.isnan(chosen) or (chosen < 0 and self.routing["confidence"] == "probability"):
            raise ValueError(
                f"threshold {chosen:g} is outside the range: 0 ends all early, inf none"
            )
        return chosen

    def __call__(
        self,
        lines: Sequence[str],
        at: str | None = None,
        threshold: float | None = None,
        **options,
    ) -> list[Translation]:
        """Translate lines of text, in order; ``options`` as in `decode`."""
        cut = [self.pieces.encode(line, out_type=str) for line in lines] if self.pieces else None
        return self.decode(cut or [line.split() for line in lines], at, threshold, **options)

    def decode(
        self,
        sentences: Sequence[list[str]],
        at: str | None = None,
        threshold: float | None = None,
        *,
        beam: int | None = None,
        lenpen: float | None = None,
        max_length: int | None = None,
    ) -> list[Translation]:
        """Translate sentences that are cut into the vocabulary's pieces.

        Args:
            sentences: pieces of each.
            at: a stored threshold, by its name.
            threshold: instead of a stored one; a sentence ends early when its confidence is at least this.
            beam, lenpen, max_length: of the search; default: those of the export.

        Raises:
            ValueError: as `limit`, or a sentence longer than the networks take.
        """
        limit = self.limit(at, threshold)
        search = {**self.routing["search"]}
        given = {"beam": beam, "lenpen": lenpen, "max_length": max_length}
        search |= {name: value for name, value in given.items() if value is not None}
        longest = self.routing["max_source_tokens"] - 1  # and the end of the sentence
        for number, sentence in enumerate(sentences):
            if len(sentence) > longest:
                raise ValueError(
                    f"sentence {number + 1} has {len(sentence)} pieces, the networks take {longest}"
                )
        certain = 1.0 if self.routing["confidence"] == "probability" else 0.0
        found = [Translation("", "empty", certain)] * len(sentences)
        spoken = [row for row, sentence in enumerate(sentences) if sentence]
        if limit <= certain:
            rough = self._search(self.delegator, [sentences[row] for row in spoken], search)
            sure = self.confidence([sentences[row] for row in spoken], rough)
        else:  # none can end early
            rough, sure = [[]] * len(spoken), [math.nan] * len(spoken)
        for row, pieces, value in zip(spoken, rough, sure, strict=True):
            found[row] = Translation(self._text(pieces), "delegator", value)
        staying = [row for row, value in zip(spoken, sure, strict=True) if not value >= limit]
        selected = self.select([sentences[row] for row in staying])
        for j in sorted(set(selected.tolist())):
            rows = [row for row, expert in zip(staying, selected, strict=True) if expert == j]
            answers = self._search(self.experts[j], [sentences[row] for row in rows], search)
            for row, pieces in zip(rows, answers, strict=True):
                text = self._text(pieces)
                found[row] = Translation(text, f"expert-{j}", found[row].confidence)
        return found

    def confidence(
        self, sentences: Sequence[list[str]], translations: Sequence[list[str]]
    ) -> list[float]:
        """Mean log-probability by the delegator of each translation's pieces and end, or its exponential.

        Scored in a pass of its own: the scores of CTranslate2's search are those of the vocabulary without
        the pieces that the search forbids, such as the end in first place.
        """
        if not sentences:
            return []
        scored = self.delegator.score_batch(
            sentences, translations, max_batch_size=self.batch_size, max_input_length=0
        )
        means = [float(np.mean(one.log_probs)) for one in scored]
        if self.routing["confidence"] == "probability":
            return [math.exp(mean) for mean in means]
        return means

    def select(self, sentences: Sequence[list[str]]) -> np.ndarray:
        """Expert of each sentence [n]: argmax of the head on the mean of the delegator's encoder states."""
        if len(self.experts) == 1 or not sentences:
            return np.zeros(len(sentences), dtype=np.int64)
        order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
        selected = np.empty(len(sentences), dtype=np.int64)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            closed = [[*sentences[row], self.routing["end"]] for row in rows]
            states = self.encoder.forward_batch(closed).last_hidden_state
            states = states.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
            for row, sentence, of_row in zip(rows, closed, np.array(states), strict=True):
                pooled = of_row[: len(sentence)].mean(0)
                selected[row] = int((self.weight @ pooled + self.bias).argmax())
        return selected

    def _search(
        self, network: ctranslate2.Translator, sentences: list[list[str]], search: dict
    ) -> list[list[str]]:
        """Pieces of the best translation of each sentence."""
        if not sentences:
            return []
        answers = network.translate_batch(
            sentences,
            max_batch_size=self.batch_size,
            beam_size=search["beam"],
            length_penalty=search["lenpen"],
            max_decoding_length=search["max_length"],
            max_input_length=0,
        )
        return [answer.hypotheses[0] for answer in answers]

    def _text(self, pieces: list[str]) -> str:
        return self.pieces.decode(pieces) if self.pieces else " ".join(pieces)


def main(arguments: Sequence[str] | None = None) -> int:
    """Lines of standard input -> translations on standard output; what was spent on standard error."""
    parser = argparse.ArgumentParser(description="Translate lines with an exported team.")
    parser.add_argument("--folder", default=str(Path(__file__).parent), help="of the export")
    parser.add_argument("--at", help="stored threshold")
    parser.add_argument("--threshold", type=float, help="end early when confidence >= this")
    parser.add_argument("--beam", type=int)
    parser.add_argument("--lenpen", type=float)
    parser.add_argument("--max-length", type=int, help="pieces of a translation, at most")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "auto"])
    parser.add_argument("--compute-type", default="default", help="of CTranslate2, such as int8")
    parser.add_argument("--routes", help="file for network and confidence of every line")
    chosen = parser.parse_args(arguments)
    runner = Runner(
        chosen.folder, chosen.device, chosen.threads, chosen.compute_type, chosen.batch_size
    )
    search = {"beam": chosen.beam, "lenpen": chosen.lenpen, "max_length": chosen.max_length}
    sys.stdout.reconfigure(encoding="utf-8")
    counts: dict[str, int] = {}
    started, done = time.perf_counter(), 0
    try:
        runner.limit(chosen.at, chosen.threshold)
    except ValueError as error:
        parser.error(str(error))
    with open(chosen.routes or os.devnull, "w", encoding="utf-8") as routes:
        while block := list(islice(sys.stdin.buffer, BLOCK)):
            try:
                lines = [line.decode("utf-8").rstrip("\r\n") for line in block]
                found = runner(lines, chosen.at, chosen.threshold, **search)
            except ValueError as error:  # not UTF-8, or too long
                parser.error(f"in the {len(block)} lines after line {done}: {error}")
            for one in found:
                print(one.text)
                print(f"R-{done}\t{one.network}\t{one.confidence:.4f}", file=routes)
                counts[one.network] = counts.get(one.network, 0) + 1
                done += 1
            sys.stdout.flush()
            rate = done / (time.perf_counter() - started)
            print(f"{done} sentences, {rate:.1f} a second", file=sys.stderr)
    print(", ".join(f"{name} {counts[name]}" for name in sorted(counts)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
