"""`coe-vision divide`: its options, and what it prints."""

from __future__ import annotations

import argparse

from coe_core.support.command import add_overrides, at_least, number_in, refuse_unused

INFINITE = float("inf")
LARGEST = 16384  # side of an image, in pixels


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("model", help="any network by name, or paper/NAME such as paper/wrn_28_10")
    add_overrides(parser, "options of the network, such as width=64")
    parser.add_argument("-s", type=int, required=True, metavar="S", help="number of networks")
    parser.add_argument("--match", help="what solve keeps: macs (default) or parameters")
    parser.add_argument(
        "--rule", help="solve, or a published rule such as widening (default: paper's for paper/)"
    )
    parser.add_argument("--knob", help="argument of the network that solve changes")
    parser.add_argument(
        "--size", type=at_least(1, LARGEST), help="side of the images (default: 32, or paper's)"
    )
    parser.add_argument("--classes", type=at_least(1), help="(default: 10, or paper's)")
    parser.add_argument(
        "--tolerance",
        type=number_in(0, INFINITE, high_is_in=False),
        help="of solve, relative (default: 0.03)",
    )
    parser.add_argument(
        "--weight-decay",
        type=number_in(0, INFINITE, high_is_in=False),
        help="of the recipe, to be divided too",
    )
    parser.add_argument(
        "--regulariser",
        action="append",
        default=[],
        metavar="KIND=RULE",
        help="such as dropout=none: other than the published rule; may be repeated",
    )


def run(arguments: argparse.Namespace) -> None:
    """Divide, and print the tables and the recipe's entry."""
    from coe_core.support.reports import print_table
    from vision.divide.division import divide_network
    from vision.divide.report import division_tables, parse_options, recipe_entry
    from vision.networks.network import Network

    rules = dict(text.partition("=")[::2] for text in arguments.regulariser)
    division = divide_network(
        Network(arguments.model, options=parse_options(arguments.overrides)),
        arguments.s,
        arguments.match or "macs",
        rule=arguments.rule,
        num_classes=arguments.classes,
        image_size=arguments.size,
        tolerance=0.03 if arguments.tolerance is None else arguments.tolerance,
        knob=arguments.knob,
        weight_decay=arguments.weight_decay,
        regulariser_rules=rules,
    )
    if division.rule != "solve":
        refuse_unused(
            f"they are of rule solve, and this is rule {division.rule}",
            match=arguments.match,
            tolerance=arguments.tolerance,
        )
    if absent := rules.keys() - {regulariser.kind for regulariser in division.regularisers}:
        reason = f"the network as it is given has no {', '.join(sorted(absent))}"
        refuse_unused(reason, regulariser=arguments.regulariser)
    for table in division_tables(division):
        print_table(table)
    print(f"in a recipe, for each of the {division.s}:")
    print(recipe_entry(division))
