"""A team for use without fairseq."""

from __future__ import annotations

import argparse
from pathlib import Path

from coe_core.support.command import at_least
from translation.commands.plugin import load_fairseq


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation export`."""
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="folder that fairseq-preprocess made")
    parser.add_argument("--out", required=True, help="folder to write to, new or empty")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits")
    parser.add_argument("--points", help="what calibrate wrote: thresholds to store by their names")
    parser.add_argument("--at", metavar="NAME", help="of them, the default; without it none exits")
    parser.add_argument("--sentencepiece", metavar="MODEL", help="then the runner takes plain text")
    parser.add_argument("--beam", type=at_least(1), default=5, help="of the runner, by default")
    parser.add_argument("--lenpen", type=float, default=1.0, help="of the runner, by default")
    parser.add_argument(
        "--max-len-b", type=at_least(1), default=200, help="of the runner, by default"
    )
    parser.add_argument(
        "--check", type=at_least(0), default=200, metavar="N", help="sentences to compare; 0: none"
    )
    parser.add_argument("--subset", default="valid", help="set that they are taken from")


def run_export(arguments: argparse.Namespace) -> None:
    """Write a team as CTranslate2 models with a runner that routes; compare it with fairseq."""
    from translation.evaluation.calibrate import COE, load_points

    thresholds = {}
    if arguments.points is not None:
        found = load_points(arguments.points).get(COE, [])
        thresholds = {point.name: point.threshold for point in found}
    if arguments.at is not None and arguments.at not in thresholds:
        known = ", ".join(thresholds) or "none: give --points"
        raise ValueError(f"no threshold named {arguments.at!r}; known: {known}")
    for path in (arguments.checkpoint, arguments.sentencepiece):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
    load_fairseq()
    from translation.export.export import Search, compare, export_team, load_team

    folder = Path(arguments.out)
    team = load_team(arguments.checkpoint, arguments.data)
    default = thresholds[arguments.at] if arguments.at is not None else float("inf")
    sizes = export_team(
        team,
        arguments.data,
        folder,
        int8=arguments.int8,
        search=Search(arguments.beam, arguments.lenpen, arguments.max_len_b),
        thresholds=thresholds,
        default=default,
        sentencepiece=Path(arguments.sentencepiece) if arguments.sentencepiece else None,
        checkpoint=arguments.checkpoint,
    )
    for name, size in sizes.items():
        print(f"{folder / name.replace('-', '_')}: {size / 1e6:.2f} MB")
    if arguments.check > 0:
        found = compare(team, folder, arguments.subset, arguments.check, default)
        print(
            f"beside fairseq on {found.sentences} sentences of {arguments.subset}: "
            f"{100 * found.same_text:.1f} % the same text, {100 * found.same_route:.1f} % the same "
            f"route, confidence differs by {found.confidence:.1g} (median)"
        )
        for one in found.engines:
            print(
                f"{one.name:8} BLEU {one.bleu:6.2f}  {one.milliseconds:8.2f} ms of processor time each"
            )
