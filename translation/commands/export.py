"""`coe-translation export`: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from coe_core.support.command import at_least, number_in, refuse_unused

if TYPE_CHECKING:
    from translation.export.check import Comparison
    from translation.prediction.engine import Search, Setting
    from translation.prediction.fairseq_engine import FairseqEngine


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation export`."""
    parser.add_argument("source", help="folder of a run, or a checkpoint")
    parser.add_argument(
        "data", nargs="?", help="of a checkpoint: folder that fairseq-preprocess made"
    )
    parser.add_argument("--out", help="folder, new or empty (default: RUN/export)")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits")
    parser.add_argument(
        "--points", help="of a checkpoint: what calibrate wrote, points to store by their names"
    )
    parser.add_argument(
        "--at",
        metavar="NAME",
        help="the export's own operating point, or mean multiply-adds such as 60%% "
        "(default: best; of a checkpoint none, so that no sentence exits)",
    )
    parser.add_argument("--threshold", type=float, help="the export's own, instead of --at")
    parser.add_argument(
        "--system",
        metavar="NAME",
        help="that translates: CoE, cascade, single:NAME (default: the one calibrate chose)",
    )
    parser.add_argument(
        "--sentencepiece",
        metavar="MODEL",
        help="of a checkpoint: then the runner takes plain text",
    )
    parser.add_argument(
        "--beam", type=at_least(1, 1000), help="of the runner (default: that of the points, or 5)"
    )
    parser.add_argument(
        "--lenpen",
        type=number_in(-100, 100),
        help="of the runner (default: that of the points, or 1)",
    )
    parser.add_argument(
        "--max-len-b",
        type=at_least(1, 1_000_000),
        help="of the runner, by default (default: the recipe's; of a checkpoint 200)",
    )
    parser.add_argument(
        "--check", type=at_least(0), default=200, metavar="N", help="sentences to compare; 0: none"
    )
    parser.add_argument("--subset", help="set that they are taken from (default: valid)")


def run_export(arguments: argparse.Namespace) -> None:
    """Write a system as CTranslate2 models with a runner that routes; compare it with fairseq."""
    if arguments.check == 0:
        refuse_unused("--check 0 compares no sentences", subset=arguments.subset)
    subset = arguments.subset or "valid"
    engine = _load(arguments)
    from translation.prediction.exporting import check_export, export_from

    search = engine.search.changed(arguments.beam, arguments.lenpen, arguments.max_len_b)
    setting = _setting(arguments, engine, search)
    folder = Path(arguments.out or Path(arguments.source) / "export")
    longest = engine.model.max_decoder_positions() - 1
    if search.max_len > longest:
        print(f"translations end after {longest} pieces: the networks have no more positions")
        search = search._replace(max_len=longest)
    compared = []

    def check(part: Path) -> None:
        if arguments.check > 0:
            compared.append(check_export(engine, setting, search, part, subset, arguments.check))

    sizes = export_from(engine, setting, folder, search=search, int8=arguments.int8, check=check)
    point = "" if setting.name == setting.system else f", at {setting.name}"
    print(f"exported {setting.system}{point}")
    for name, size in sizes.items():
        print(f"{folder / name}: {size / 1e6:.2f} MB")
    for comparison in compared:
        _tell(comparison, subset)


def _load(arguments: argparse.Namespace) -> FairseqEngine:
    """The networks; what is missing is said before anything is loaded."""
    from translation.corpora.vocabulary import load_pieces
    from translation.evaluation.calibrate import load_points
    from translation.prediction.translator import load_engine

    source = Path(arguments.source)
    if (source / "routing.json").is_file():
        raise ValueError(f"{source} is an export already; give a run or a checkpoint")
    if not source.is_dir():
        if arguments.out is None:
            raise ValueError("of a checkpoint say where the export goes: --out FOLDER")
        if arguments.points is not None:
            load_points(arguments.points)
        if arguments.sentencepiece is not None:
            load_pieces(arguments.sentencepiece)  # else told of the copy in the export
    names = {"data": "data", "points": "points", "vocabulary": "sentencepiece"}
    given = {name: getattr(arguments, option) for name, option in names.items()}
    engine = load_engine(source, given, "cpu")
    from translation.prediction.fairseq_engine import FairseqEngine  # fairseq is loaded, quietly

    assert isinstance(engine, FairseqEngine), "not an export"
    return engine


def _setting(arguments: argparse.Namespace, engine: FairseqEngine, search: Search) -> Setting:
    """System and threshold of the export.

    Raises:
        ValueError: no such system or point, or one of a system whose networks a checkpoint does not have.
    """
    from coe_core.stored_points import has_exits
    from translation.export.export import confidence_of
    from translation.prediction.engine import Setting

    stored, (first, *_) = engine.budgets.stored, engine.systems
    engine.confidence = confidence_of(stored.named(arguments.system or first), engine.confidence)
    is_run = Path(arguments.source).is_dir()
    if arguments.at is None and arguments.threshold is None and not is_run:
        system = first if arguments.system is None else engine.budgets.find_system(arguments.system)
        return Setting("no exits" if has_exits(system) else system, system)
    chosen = first if arguments.at is None else stored.deployed(arguments.at)
    if arguments.system is None and chosen not in engine.systems:
        raise ValueError(
            f"{arguments.at} is served by {chosen}, which calibrate chose, and which is not in "
            f"{arguments.source}: export the run's folder, or give --system {first} to export that instead"
        )
    return engine.resolve(arguments.at, arguments.threshold, arguments.system, search)


def _tell(comparison: Comparison, subset: str) -> None:
    parity = comparison.parity
    print(f"beside fairseq on {parity.num_samples} sentences of {subset}:")
    print(f"{parity.line('confidences')}, {comparison.median_difference:.1g} (median)")
    for engine in comparison.engines:
        print(
            f"{engine.name:8} BLEU {engine.bleu:6.2f}  {engine.milliseconds:8.2f} ms of processor "
            "time each"
        )
