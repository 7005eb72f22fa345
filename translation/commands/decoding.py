"""Translations by every network, the thresholds fitted on them, and their trade-off."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coe_core.support.command import add_level_option
from coe_core.support.files import ready_to_write, write_text
from translation.commands.plugin import load_fairseq
from translation.commands.scores import add_scoring_options, chosen_scoring

if TYPE_CHECKING:
    from coe_core import OperatingPoint
    from translation.evaluation.table import SystemRow


def add_decode_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation decode`."""
    parser.add_argument("data", help="folder that fairseq-preprocess made")
    parser.add_argument("--path", required=True, help="checkpoint of the team")
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="NAME=CHECKPOINT",
        help="a plain transformer; expert-alone and delegator-alone are the parts of the cascade; several "
        "checkpoints joined by colons are an ensemble; NAME@DIRECTION translates the sentences of its "
        "direction (--directions) alone",
    )
    parser.add_argument(
        "--directions", help="file with the direction of each sentence, such as de-en"
    )
    parser.add_argument("--reference", help="target text as it was before it was cut into pieces")
    parser.add_argument("--out", required=True, help="file to write (JSON)")
    add_scoring_options(parser)  # kept for calibrate and curve
    parser.set_defaults(more=[])  # options of fairseq-generate


def run_decode(arguments: argparse.Namespace) -> None:
    """Translate a data set by every network of a team and by every control."""
    controls = _pairs(arguments.control, "--control", "NAME=CHECKPOINT")
    read = [arguments.path, *controls.values(), arguments.reference or arguments.path]
    ready_to_write(arguments.out, read)
    for path in (arguments.path, *(p for paths in controls.values() for p in paths.split(":"))):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
    from translation.corpora.lines import read_lines

    reference = None if arguments.reference is None else read_lines(arguments.reference)
    directions = None if arguments.directions is None else read_lines(arguments.directions)
    if directions is None and any("@" in name for name in controls):
        raise ValueError(
            "--control NAME@DIRECTION needs --directions, the direction of each sentence"
        )
    scoring = chosen_scoring(arguments, reference or [])
    load_fairseq()
    from translation.evaluation.decode_all import decode_all
    from translation.evaluation.decode_options import generation_options

    cfg = generation_options([arguments.data, "--path", arguments.path, *arguments.more])
    tell = lambda line: print(line, flush=True)  # noqa: E731
    translations = decode_all(cfg, controls, reference, tell, directions)
    translations.provenance["scoring"] = scoring._asdict()
    translations.save(arguments.out)


def add_calibrate_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation calibrate`."""
    parser.add_argument("translations", help="what decode wrote, of held-out data")
    parser.add_argument(
        "aims",
        nargs="+",
        metavar="AIM",
        help="best, bleu_drop=0.5 (points), chrf_drop=0.5 (points), macs=20M or macs=60%% (of no exits), "
        "latency=20 (milliseconds a sentence) or latency=60%%",
    )
    parser.add_argument(
        "--out",
        required=True,
        help="file to write (JSON); --threshold FILE:AIM of fairseq-generate reads it",
    )
    add_level_option(parser)
    parser.add_argument(
        "--system", metavar="NAME", help="use this one: CoE, cascade, single:NAME, ensemble:NAME"
    )
    add_scoring_options(parser)


def run_calibrate(arguments: argparse.Namespace) -> None:
    """Fit every system to stated aims on a translated validation set, and choose the one to deploy."""
    from coe_core import StoredPoints
    from coe_core.chosen import reason
    from translation.evaluation.calibrate import calibrate, save_points
    from translation.evaluation.translations import Translations

    ready_to_write(arguments.out, [arguments.translations])
    decoded = Translations.load(arguments.translations)
    scoring = chosen_scoring(arguments, decoded.reference, decoded.provenance.get("scoring"))
    points, choices, unmet = calibrate(
        decoded,
        arguments.aims,
        arguments.translations,
        scoring,
        level=arguments.level,
        system=arguments.system,
    )
    made_with = {**decoded.provenance, "scoring": scoring._asdict()}
    stored = StoredPoints(points, made_with, choices)
    save_points(arguments.out, stored)
    width = max(map(len, points))
    print(
        f"{'system':{width}} {'aim':16} {'threshold':>9} {'exits %':>8} {'quality':>8} {'cost':>14}"
    )
    for system, of_system in points.items():
        for point in of_system:
            print(f"{system:{width}} {_row(point)}")
    for name, choice in choices.items():
        used = stored.used(name)
        print(f"{name}: {reason(choice, 'macs' if used is None else used.cost_unit)}")
    for line in unmet:
        print(f"left out: {line}", file=sys.stderr)


def _row(point: OperatingPoint) -> str:
    in_macs = point.cost_unit == "macs"
    cost = f"{point.cost / 1e6:.2f} MMACs" if in_macs else f"{point.cost:.2f} ms"
    return (
        f"{point.name:16} {point.threshold:9.4f} {100 * point.exit_rate:8.1f} "
        f"{point.quality:8.2f} {cost:>14}"
    )


def add_curve_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation curve`."""
    parser.add_argument(
        "translations", nargs="+", help="what decode wrote, of one test set; a file for each seed"
    )
    parser.add_argument(
        "--points",
        action="append",
        default=[],
        help="what calibrate wrote: once for all, or once for each seed",
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    add_scoring_options(parser)


def run_curve(arguments: argparse.Namespace) -> None:
    """BLEU and chrF against MACs and seconds: table, CSV and PNG, with all controls."""
    from translation.evaluation import table
    from translation.evaluation.calibrate import load_points
    from translation.evaluation.metrics import METRICS, CorpusQuality
    from translation.evaluation.translations import Translations

    if len({Path(path).resolve() for path in arguments.translations}) < len(arguments.translations):
        raise ValueError("a file is given twice, as if it were two seeds: give it once")
    seeds = [Translations.load(path) for path in arguments.translations]
    if any(seed.reference != seeds[0].reference for seed in seeds):
        raise ValueError("the files are of different test sets; give seeds of one set")
    points = [load_points(path).points for path in arguments.points] or [{}]
    if len(points) not in (1, len(seeds)):
        raise ValueError(
            f"{len(points)} files of --points for {len(seeds)} seeds; give one for all, or one for each"
        )
    points *= len(seeds) // len(points)
    folder = Path(arguments.out)
    ready_to_write(folder / "table.csv")
    scoring = chosen_scoring(arguments, seeds[0].reference, seeds[0].provenance.get("scoring"))
    of_seeds = [
        table.rows(seed, of_seed, scoring) for seed, of_seed in zip(seeds, points, strict=True)
    ]
    summary = table.summary(of_seeds)
    table.write_csv(folder / "table.csv", summary)
    for place, (seed, rows) in enumerate(zip(seeds, of_seeds, strict=True)):
        end = f"-{place}" if len(seeds) > 1 else ""
        title = Path(arguments.translations[place]).stem
        table.write_curves(folder / f"trade_off{end}.csv", seed, scoring)
        table.draw(folder / f"trade_off{end}.png", seed, title, scoring)
        _write_texts(folder / f"translations{end}", rows)
        load = ", ".join(f"{100 * part:.1f}" for part in table.loads(seed))
        print(
            f"{arguments.translations[place]}: {len(seed)} sentences, load of the experts {load} %"
        )
    print(table.shown(summary))
    for metric in METRICS:
        print(f"{metric}: {CorpusQuality(metric, seeds[0].reference, scoring).signature}")


def _write_texts(folder: Path, rows: Sequence[SystemRow]) -> None:
    """Translations of every system, each in a file of its name."""
    folder.mkdir(exist_ok=True)
    for row in rows:
        if row.text is not None:
            name = re.sub(r"[^\w.=%+-]", "_", row.name.replace(", ", "_"))
            write_text(folder / name, "".join(f"{line}\n" for line in row.text))


def _pairs(words: Sequence[str], option: str, form: str) -> dict[str, str]:
    """NAME=VALUE words by name."""
    by_name: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} must be {form}, got {word!r}")
        if not re.fullmatch(r"[\w.+-]{1,100}(@[\w.+-]{1,100})?", name):
            raise ValueError(f"{option} {name!r}: a name has letters, digits and ._+- only")
        if name in by_name:
            raise ValueError(f"{option} {name} is given twice")
        by_name[name] = value
    return by_name
