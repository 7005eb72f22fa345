"""`coe-vision export`: its options, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from coe_core.support.command import at_least, refuse_unused
from vision.commands.serve import add_system

INT8_IMAGES = 256  # of validation, that ranges of activations are measured on


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument("--to", choices=("onnx", "pt2"), required=True, help="format")
    parser.add_argument("--out", help="folder, new or empty (default: RUN/export_FORMAT)")
    parser.add_argument("--opset", type=at_least(1), help="of ONNX (default: 18)")
    parser.add_argument(
        "--at", help="the export's own operating point (default: best), or mean multiply-adds"
    )
    parser.add_argument("--threshold", type=float, help="the export's own, instead of --at")
    add_system(parser)
    parser.add_argument("--data", help="where the data lie now")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="experts, or a network alone, in 8 bits (onnx): measure whether it pays",
    )
    parser.add_argument(
        "--check", type=at_least(1), default=1000, metavar="N", help="images compared with the run"
    )


def run(arguments: argparse.Namespace) -> None:
    """Export, compare with the run, and say how large and how fast."""
    from vision.budgets import resolve_budget
    from vision.export import check as export_check
    from vision.export.convert import OPSET
    from vision.export.export import export_run
    from vision.run import load_run

    if arguments.to != "onnx":
        refuse_unused("it is for --to onnx", int8=arguments.int8, opset=arguments.opset)
    run = load_run(arguments.run, team=False)
    kind, opset = arguments.to, arguments.opset or OPSET
    folder = Path(arguments.out) if arguments.out else run.folder / f"export_{kind}"
    choice = {
        "budget": arguments.at,
        "threshold": arguments.threshold,
        "system": arguments.system,
    }
    budget = resolve_budget(run, **choice)
    pixels, what, images = export_check.images_to_check(
        run, arguments.check, arguments.data, required=arguments.int8
    )
    said: list[str] = []

    def check(part: Path) -> None:
        parities = export_check.check_export(
            run,
            part,
            kind,
            pixels,
            budget.threshold,
            budget.rough_weight,
            tolerance=1.0 if arguments.int8 else export_check.TOLERANCE,
            files=images,
            rule=budget.rule,
            system=budget.system,
        )
        said.extend(f"{parity.line('probabilities')}; {what}" for parity in parities)

    ranges = pixels[:INT8_IMAGES] if arguments.int8 else None
    files = export_run(run, folder, kind, opset=opset, int8_pixels=ranges, check=check, **choice)
    print(f"exported {budget.system}, at {budget.name}")
    for path in files:
        print(f"{path}  {path.stat().st_size:,} bytes")
    if kind == "onnx":
        print(f"opset {opset}")
    print(*said, sep="\n")
    if kind == "onnx":
        print("milliseconds of a single image, by the networks that run:")
        for name, milliseconds in export_check.milliseconds_per_route(folder, pixels).items():
            print(f"  {name:24}{milliseconds:8.3f}")
