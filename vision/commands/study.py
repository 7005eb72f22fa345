"""`coe-vision study`: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "study", help="a YAML file, or the name of a shipped study (coe-vision recipes lists them)"
    )
    parser.add_argument("--data", help="folder of the data")
    parser.add_argument("--out", help="folder of its runs and tables (default: runs/study/NAME)")


def run(arguments: argparse.Namespace) -> None:
    """Train and measure what is missing, then print and write the tables."""
    from coe_core.support.reports import print_table
    from vision.evaluation.study import load_study, run_study
    from vision.evaluation.study_report import report

    study = load_study(arguments.study, arguments.data)
    out = Path(arguments.out) if arguments.out else Path("runs/study") / study.name
    results = run_study(study, out, tell=lambda line: print(line, flush=True))
    outcome = report(study, results, out)
    for table in outcome.tables:
        print_table(table)
    for note in outcome.notes:
        print(note)
    print(", ".join(map(str, outcome.files)))
