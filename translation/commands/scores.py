"""Scores of translations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coe_core.support.command import at_least

if TYPE_CHECKING:
    from translation.evaluation.buckets import Bucket
    from translation.evaluation.scoring import Score, Scoring

LARGEST_ORDER = 10  # of words in chrF


def add_scoring_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that scores texts."""
    parser.add_argument(
        "--tokenize",
        metavar="NAME",
        help="how BLEU cuts texts into words, by sacreBLEU's names: 13a (default), zh, ja-mecab, ko-mecab, "
        "intl, char, flores200, spm, ...",
    )
    parser.add_argument("--lowercase", action="store_true", help="scores do not look at case")
    parser.add_argument(
        "--chrf-word-order",
        type=at_least(0, LARGEST_ORDER),
        metavar="N",
        help="2 makes chrF chrF++",
    )


def chosen_scoring(
    arguments: argparse.Namespace, reference: Sequence[str], stored: Mapping[str, Any] | None = None
) -> Scoring:
    """How texts are to be scored; a warning where BLEU would not find their words.

    Args:
        arguments: of `add_scoring_options`.
        reference: one of the texts.
        stored: what decode was told, for options that are not given now.

    Raises:
        ValueError: a tokenizer that sacreBLEU does not know or cannot load.
    """
    from translation.evaluation.scoring import Scoring, build_metric
    from translation.evaluation.scripts import spaces_warning

    before = stored if isinstance(stored, Mapping) else {}
    scoring = Scoring(
        arguments.tokenize or before.get("tokenize"),
        arguments.lowercase or before.get("lowercase") is True,
        int(before.get("word_order", 0))
        if arguments.chrf_word_order is None
        else arguments.chrf_word_order,
    )
    build_metric("BLEU", scoring)
    line = spaces_warning(reference, scoring.tokenize)
    if line is not None:
        print(f"warning: {line}", file=sys.stderr)
    return scoring


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation score`."""
    parser.add_argument(
        "systems",
        nargs="+",
        help="translations: the output of fairseq-generate or -interactive, or one translation a line; also "
        "packed by gzip, or - for standard input; several are compared with the first by paired bootstrap",
    )
    parser.add_argument(
        "--reference", "-r", action="append", required=True, help="may be given several times"
    )
    parser.add_argument(
        "--resamples",
        type=at_least(1, 1_000_000),
        default=1000,
        help="of the bootstrap",
    )
    add_scoring_options(parser)
    parser.add_argument("--sentences", action="store_true", help="scores of every sentence, too")
    parser.add_argument(
        "--buckets", action="store_true", help="scores by length of the sentences, too"
    )
    parser.add_argument(
        "--known", metavar="TEXT", help="and by how rare their rarest word is in this text"
    )
    parser.add_argument(
        "--comet",
        metavar="FILE",
        help="also COMET by a checkpoint that is here, with the package unbabel-comet; loading it runs what "
        "it holds, so trust it",
    )
    parser.add_argument("--source", metavar="TEXT", help="of COMET: what was translated")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_score(arguments: argparse.Namespace) -> None:
    """sacreBLEU with its signature, chrF, TER, tokenised BLEU."""
    from translation.corpora.lines import STANDARD_INPUT, read_lines
    from translation.corpora.text import hypotheses_of
    from translation.evaluation.scoring import REPORTED, compare, score, sentence_scores

    named = [*arguments.systems, *arguments.reference, *filter(None, [arguments.source])]
    if (arguments.comet is None) != (arguments.source is None):
        raise ValueError("--comet FILE and --source TEXT go together: COMET looks at the source")
    if named.count(STANDARD_INPUT) > 1:
        raise ValueError("standard input (-) can be one text, not several")
    if len(set(arguments.systems)) != len(arguments.systems):
        raise ValueError("a system is named twice; give each file once")
    references = [read_lines(path) for path in arguments.reference]
    systems = {path: hypotheses_of(path) for path in arguments.systems}
    scoring = chosen_scoring(arguments, references[0])
    if len(systems) == 1:
        table = {
            path: score(text, references, REPORTED, scoring, arguments.resamples)
            for path, text in systems.items()
        }
    else:
        table = compare(
            systems,
            references,
            REPORTED,
            num_resamples=arguments.resamples,
            scoring=scoring,
        )
    if arguments.comet is not None:
        from translation.evaluation.comet import comet_scores

        texts = read_lines(arguments.source), references[0]
        for path, of_comet in comet_scores(arguments.comet, systems, *texts).items():
            table[path] = [*table[path], of_comet]
    sentences = {}
    if arguments.sentences:
        sentences = {
            path: sentence_scores(text, references, REPORTED, scoring)
            for path, text in systems.items()
        }
    buckets = _buckets(arguments, systems, references, scoring)
    if arguments.json:
        print(_as_json(table, sentences, buckets))
        return
    for path, rows in sentences.items():
        _print_sentences(path, rows, scoring.word_order)
    _print_table(table, scoring.word_order)
    print_buckets(buckets, list(systems))


def _buckets(
    arguments: argparse.Namespace,
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    scoring: Scoring,
) -> list[Bucket]:
    """Those that were asked for."""
    from translation.corpora.lines import read_lines
    from translation.evaluation.buckets import by_length, by_rarity, scored

    groups = by_length(references[0]) if arguments.buckets else {}
    if arguments.known is not None:
        groups |= by_rarity(references[0], read_lines(arguments.known))
    return scored(groups, systems, references, ("BLEU", "chrF"), scoring)


def print_buckets(buckets: Sequence[Bucket], systems: Sequence[str]) -> None:
    """A line for each bucket: sentences, then BLEU and chrF of each system."""
    if not buckets:
        return
    width = max(len(bucket.title) for bucket in buckets)
    print(f"{'':{width}}  sentences  BLEU and chrF of {', '.join(systems)}")
    for bucket in buckets:
        scores = "  ".join(
            f"{bucket.scores[name]['BLEU']:6.2f} {bucket.scores[name]['chrF']:6.2f}"
            for name in systems
        )
        print(f"{bucket.title:{width}}  {len(bucket.sentences):9}  {scores}")


def _shown(metric: str, word_order: int) -> str:
    return metric + "+" * word_order if metric == "chrF" else metric


def _print_table(table: Mapping[str, Sequence[Score]], word_order: int) -> None:
    scores: Sequence[Score] = ()
    for path, scores in table.items():
        print(path)
        for metric_score in scores:
            against = "" if metric_score.p_value is None else f"  p {metric_score.p_value:.4f}"
            interval = (
                ""
                if metric_score.mean is None
                else f"  ({metric_score.mean:.2f} ± {metric_score.half_width:.2f})"
            )
            print(
                f"  {_shown(metric_score.metric, word_order):14} {metric_score.value:6.2f}{interval}{against}"
            )
    print("signatures")
    for metric_score in scores:
        print(f"  {_shown(metric_score.metric, word_order):14} {metric_score.signature}")


def _print_sentences(path: str, rows: Sequence[Mapping[str, float]], word_order: int) -> None:
    print(path, *(_shown(metric, word_order) for metric in rows[0]), sep="\t")
    for number, row in enumerate(rows, start=1):
        print(number, *(f"{value:.2f}" for value in row.values()), sep="\t")


def _as_json(
    table: Mapping[str, Sequence[Score]],
    sentences: Mapping[str, Sequence[Mapping[str, float]]],
    buckets: Sequence[Bucket],
) -> str:
    from coe_core.support.files import json_text

    systems: dict[str, dict[str, Any]] = {}
    for path, scores in table.items():
        of_system: dict[str, Any] = {score.metric: score._asdict() for score in scores}
        for values in of_system.values():
            del values["metric"]
        systems[path] = {"scores": of_system}
        if path in sentences:
            systems[path]["sentences"] = list(sentences[path])
    document: dict[str, Any] = {"systems": systems}
    if buckets:
        document["buckets"] = [bucket._asdict() for bucket in buckets]
    return json_text(document).rstrip("\n")
