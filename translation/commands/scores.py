"""Scores of translations."""

from __future__ import annotations

import argparse

from coe_core.support.command import at_least


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation score`."""
    parser.add_argument(
        "systems",
        nargs="+",
        help="translations: the output of fairseq-generate or -interactive, or one translation a line; "
        "several are compared with the first by paired bootstrap",
    )
    parser.add_argument(
        "--reference", "-r", action="append", required=True, help="may be given several times"
    )
    parser.add_argument("--resamples", type=at_least(1), default=1000, help="of the bootstrap")


def run_score(arguments: argparse.Namespace) -> None:
    """sacreBLEU with its signature, chrF, TER, tokenised BLEU."""
    from translation.corpora.lines import read_lines
    from translation.corpora.text import hypotheses_of
    from translation.evaluation.scoring import compare, score

    references = [read_lines(path) for path in arguments.reference]
    systems = {path: hypotheses_of(path) for path in arguments.systems}
    if len(systems) != len(arguments.systems):
        raise ValueError("a system is named twice; give each file once")
    metrics = ("BLEU", "chrF", "TER", "tokenised BLEU")
    if len(systems) == 1:
        table = {path: score(text, references, metrics) for path, text in systems.items()}
    else:
        table = compare(systems, references, metrics, num_resamples=arguments.resamples)
    for path, scores in table.items():
        print(path)
        for one in scores:
            against = "" if one.p_value is None else f"  p {one.p_value:.4f}"
            interval = "" if one.mean is None else f"  ({one.mean:.2f} ± {one.half_width:.2f})"
            print(f"  {one.metric:14} {one.value:6.2f}{interval}{against}")
    print("signatures")
    for one in scores:
        print(f"  {one.metric:14} {one.signature}")
