"""A team for use without fairseq."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coe_core.support.command import at_least, number_in, refuse_unused
from translation.commands.plugin import load_fairseq

if TYPE_CHECKING:
    from coe_core import OperatingPoint
    from translation.export.check import Comparison


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation export`."""
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="folder that fairseq-preprocess made")
    parser.add_argument("--out", required=True, help="folder to write to, new or empty")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits")
    parser.add_argument("--points", help="what calibrate wrote: thresholds to store by their names")
    parser.add_argument("--at", metavar="NAME", help="of them, the default; without it none exits")
    parser.add_argument(
        "--system",
        choices=["CoE"],
        help="export the collaboration also where calibrate chose another system for --at",
    )
    parser.add_argument("--sentencepiece", metavar="MODEL", help="then the runner takes plain text")
    parser.add_argument(
        "--beam", type=at_least(1, 1000), help="of the runner (default: that of --at, or 5)"
    )
    parser.add_argument(
        "--lenpen", type=number_in(-100, 100), help="of the runner (default: that of --at, or 1)"
    )
    parser.add_argument(
        "--max-len-b", type=at_least(1, 1_000_000), default=200, help="of the runner, by default"
    )
    parser.add_argument(
        "--check", type=at_least(0), default=200, metavar="N", help="sentences to compare; 0: none"
    )
    parser.add_argument("--subset", help="set that they are taken from (default: valid)")


def run_export(arguments: argparse.Namespace) -> None:
    """Write a team as CTranslate2 models with a runner that routes; compare it with fairseq."""
    if arguments.check == 0:
        refuse_unused("--check 0 compares no sentences", subset=arguments.subset)
    subset = arguments.subset or "valid"
    points = _points(arguments)
    load_fairseq()
    from translation.export.check import check_against_fairseq
    from translation.export.export import Search, export_team, load_team

    folder = Path(arguments.out)
    team = load_team(arguments.checkpoint, arguments.data)
    fitted = points[arguments.at].fitted_with if arguments.at is not None else {}
    search = Search(
        arguments.beam or fitted.get("beam", Search().beam),
        fitted.get("lenpen", Search().lenpen) if arguments.lenpen is None else arguments.lenpen,
        arguments.max_len_b,
    )
    longest = team.model.max_decoder_positions() - 1
    if search.max_length > longest:
        print(f"translations end after {longest} pieces: the networks have no more positions")
    threshold = points[arguments.at].threshold if arguments.at is not None else float("inf")
    compared = []

    def check(part: Path) -> None:
        if arguments.check > 0:
            compared.append(check_against_fairseq(team, part, subset, arguments.check, threshold))

    sizes = export_team(
        team,
        arguments.data,
        folder,
        int8=arguments.int8,
        search=search,
        points=points,
        at=arguments.at,
        sentencepiece=Path(arguments.sentencepiece) if arguments.sentencepiece else None,
        checkpoint=arguments.checkpoint,
        check=check,
    )
    for name, size in sizes.items():
        print(f"{folder / name.replace('-', '_')}: {size / 1e6:.2f} MB")
    for comparison in compared:
        _tell(comparison, subset)


def _points(arguments: argparse.Namespace) -> dict[str, OperatingPoint]:
    """Those to store, by name; what is missing is said before anything is loaded."""
    from translation.corpora.vocabulary import load_pieces
    from translation.evaluation.calibrate import COE, load_points

    points = {}
    if arguments.points is not None:
        stored = load_points(arguments.points)
        points = stored.named(COE)
        chosen = COE if arguments.at is None else stored.deployed(arguments.at)
        if chosen != COE and arguments.system is None:
            raise ValueError(
                f"{arguments.at} is served by {chosen}, which calibrate chose, and an export is of "
                "the collaboration: give --system CoE to export it all the same, or convert the networks of "
                f"{chosen} by CTranslate2's own ct2-fairseq-converter"
            )
    if arguments.at is not None and arguments.at not in points:
        known = ", ".join(points) or "none: give --points"
        raise ValueError(f"no threshold named {arguments.at!r}; known: {known}")
    for path in (arguments.checkpoint, arguments.sentencepiece):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
    if arguments.sentencepiece is not None:
        load_pieces(arguments.sentencepiece)  # else told of the copy in the export
    return points


def _tell(comparison: Comparison, subset: str) -> None:
    parity = comparison.parity
    print(f"beside fairseq on {parity.num_samples} sentences of {subset}:")
    print(f"{parity.line('confidences')}, {comparison.median_difference:.1g} (median)")
    for engine in comparison.engines:
        print(
            f"{engine.name:8} BLEU {engine.bleu:6.2f}  {engine.milliseconds:8.2f} ms of processor "
            "time each"
        )
