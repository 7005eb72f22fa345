"""`coe-vision report`: its options, and where the page is."""

from __future__ import annotations

import argparse
from pathlib import Path

from vision.commands.serve import add_system


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--at", help="operating point, or multiply-adds (default: best)")
    add_system(parser)
    parser.add_argument("--data", help="where the data lie now")
    parser.add_argument("--out", help="file to write (default: RUN/report.html)")


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    from vision.evaluation.report import write_report
    from vision.run import load_run

    run = load_run(arguments.run, team=False)
    path = Path(arguments.out) if arguments.out else run.folder / "report.html"
    write_report(run, path, at=arguments.at, system=arguments.system, data_path=arguments.data)
    print(f"{path}  {path.stat().st_size:,} bytes; open it in a browser")
