"""`coe-vision check`: what is wrong and what is odd with data, before anything is trained on them."""

from __future__ import annotations

import argparse

from coe_core.support.command import DONE, add_overrides


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("data", help="a folder of class folders, or a .csv, .tsv or .parquet table")
    add_overrides(parser, "of the recipe's data section, such as group=track or columns.label=name")


def run(arguments: argparse.Namespace) -> int:
    """Print what there is, what is wrong and what is odd; status 1 where anything is wrong."""
    from coe_core.support.plain_values import printable_line
    from vision.data.check import check_data

    report = check_data(_section(arguments.data, arguments.overrides))
    for line in report.summary:
        print(line)
    for finding in report.findings:
        print(f"{'WRONG' if finding.is_wrong else 'odd'}: {printable_line(finding.text, 2000)}")
    wrong = sum(finding.is_wrong for finding in report.findings)
    print(f"{wrong} wrong, {len(report.findings) - wrong} odd")
    return 1 if wrong else DONE


def _section(path: str, overrides: list[str]):
    """The data section that the words stand for."""
    from coe_core.support.recipes import set_value
    from coe_core.support.typed import from_plain, parse_override
    from vision.data.section import Data

    values: dict = {"name": "folder", "channels": 3, "path": path}
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().removeprefix("data.").split(".")
        if not equals or not all(keys):
            raise ValueError(f"{override!r} is not of the form key=value")
        set_value(values, keys, parse_override(Data, keys, text, f"override {override!r}"))
    return from_plain(Data, values)
