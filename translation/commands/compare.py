"""`coe-translation compare`: where two systems differ, and by how much."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coe_core.support.command import at_least
from translation.commands.scores import add_scoring_options, chosen_scoring, print_buckets

if TYPE_CHECKING:
    from translation.evaluation.buckets import Bucket, Change
    from translation.evaluation.scoring import Score

_METRICS = ("BLEU", "chrF", "TER")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation compare`."""
    parser.add_argument("first", help="translations, as for score")
    parser.add_argument("second", help="translations of another system, of the same sentences")
    parser.add_argument(
        "--reference", "-r", action="append", required=True, help="may be given several times"
    )
    parser.add_argument("--source", help="text that was translated, to be shown beside")
    parser.add_argument(
        "--known", help="text that words are rare in, usually the target's training text"
    )
    parser.add_argument("--top", type=at_least(0), default=10, metavar="N", help="sentences (10)")
    parser.add_argument(
        "--by", choices=("chrF", "BLEU", "TER"), default="chrF", help="score of a sentence"
    )
    parser.add_argument("--resamples", type=at_least(1), default=1000, help="of the bootstrap")
    add_scoring_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_compare(arguments: argparse.Namespace) -> None:
    """Scores with p, buckets, and the sentences that differ most."""
    from translation.corpora.lines import read_lines
    from translation.corpora.text import hypotheses_of
    from translation.evaluation import buckets, scoring

    if arguments.first == arguments.second:
        raise ValueError("a system is compared with itself; give two files")
    references = [read_lines(path) for path in arguments.reference]
    names = (arguments.first, arguments.second)
    systems = {path: hypotheses_of(path) for path in names}
    source = None if arguments.source is None else read_lines(arguments.source)
    if source is not None and len(source) != len(references[0]):
        raise ValueError(
            f"line counts differ: the source has {len(source)}, the reference {len(references[0])} lines"
        )
    how = chosen_scoring(arguments, references[0])
    scores = scoring.compare(
        systems, references, _METRICS, num_resamples=arguments.resamples, scoring=how
    )
    groups = buckets.by_length(references[0])
    if arguments.known is not None:
        groups |= buckets.by_rarity(references[0], read_lines(arguments.known))
    of_groups = buckets.scored(groups, systems, references, ("BLEU", "chrF"), how)
    first, second = (
        [
            row[arguments.by]
            for row in scoring.sentence_scores(text, references, [arguments.by], how)
        ]
        for text in systems.values()
    )
    changes = buckets.largest_changes(first, second, arguments.top)
    texts = [source or [], references[0], *systems.values()]
    if arguments.json:
        _print_json(names, scores, of_groups, changes, texts)
        return
    _print_scores(names, scores)
    print_buckets(of_groups, names)
    titles = ("source", "reference", "first", "second")
    for change in changes:
        print(
            f"\nsentence {change.sentence + 1}: {arguments.by} {change.first:.1f} -> {change.second:.1f} "
            f"({change.difference:+.1f})"
        )
        for title, text in zip(titles, texts, strict=True):
            if text:
                print(f"  {title:10} {text[change.sentence]}")


def _print_scores(names: Sequence[str], scores: dict[str, list[Score]]) -> None:
    print(f"first:  {names[0]}\nsecond: {names[1]}")
    for before, after in zip(*scores.values(), strict=True):
        print(
            f"{before.metric:6} {before.value:6.2f} ± {before.half_width:.2f}  {after.value:6.2f} ± "
            f"{after.half_width:.2f}  p {after.p_value:.4f}  {before.signature}"
        )


def _print_json(
    names: Sequence[str],
    found: dict[str, list[Score]],
    of_groups: Sequence[Bucket],
    changes: Sequence[Change],
    texts: Sequence[Sequence[str]],
) -> None:
    from coe_core.support.files import json_text

    titles = ("source", "reference", "first", "second")
    values = {
        "systems": dict(zip(("first", "second"), names, strict=True)),
        "scores": {name: [score._asdict() for score in scores] for name, scores in found.items()},
        "buckets": [bucket._asdict() for bucket in of_groups],
        "sentences": [
            {
                **change._asdict(),
                **{t: text[change.sentence] for t, text in zip(titles, texts, strict=True) if text},
            }
            for change in changes
        ],
    }
    print(json_text(values), end="")
