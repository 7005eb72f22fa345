"""The coe-translation command: what fairseq's own commands do not do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

FAILED = 1
USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit status; what is wrong is said in one line on stderr."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    try:
        return arguments.command(arguments) or 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        print(f"coe-translation {arguments.name}: {error}", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "coe-translation",
        description="Beside fairseq's own commands, which take --user-dir $(coe-translation user-dir).",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=run)
        return added

    command("user-dir", _user_dir, "Print the folder to give to fairseq's --user-dir.")

    check = command("check", _check, "Check parallel text before fairseq-preprocess.")
    check.add_argument("texts", nargs="+", help="source and target, one sentence a line, UTF-8")

    score = command("score", _score, "sacreBLEU with its signature, chrF, TER, tokenised BLEU.")
    score.add_argument(
        "systems",
        nargs="+",
        help="translations: the output of fairseq-generate or -interactive, or one translation a line; "
        "several are compared with the first by paired bootstrap",
    )
    score.add_argument(
        "--reference", "-r", action="append", required=True, help="may be given several times"
    )
    score.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")

    inspect = command("inspect", _inspect, "Networks, sizes and settings of a checkpoint.")
    inspect.add_argument("checkpoint")

    take = command("take", _take, "Take one network out, as a plain fairseq checkpoint.")
    take.add_argument("checkpoint")
    take.add_argument("network", help="delegator, expert-0, expert-1, ...")
    take.add_argument("--out", required=True, help="file to write")
    return parser


def _user_dir(arguments: argparse.Namespace) -> None:
    print(Path(__file__).resolve().parent)


def _check(arguments: argparse.Namespace) -> None:
    from translation.text import check_parallel

    found = check_parallel(arguments.texts)
    print(f"{found.num_lines} lines")
    for path in arguments.texts:
        print(f"{path}: {found.num_empty[path]} empty, longest {found.longest[path]} words")


def _score(arguments: argparse.Namespace) -> None:
    from translation.scoring import compare, score
    from translation.text import hypotheses_of, read_lines

    references = [read_lines(path) for path in arguments.reference]
    systems = {path: hypotheses_of(path) for path in arguments.systems}
    if len(systems) != len(arguments.systems):
        raise ValueError("a system is named twice; give each file once")
    if arguments.resamples < 1:
        raise ValueError(f"--resamples must be at least 1, got {arguments.resamples}")
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


def _load(path: str) -> dict:
    import torch

    from translation.checkpoints import register_safe_classes

    register_safe_classes()
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    return torch.load(path, map_location="cpu", weights_only=True)


def _inspect(arguments: argparse.Namespace) -> None:
    from translation.checkpoints import network_names, take_network

    state = _load(arguments.checkpoint)
    first = take_network(state, "delegator")  # says what is wrong with another checkpoint
    config = state["cfg"]
    num_experts = config["model"]["num_experts"]
    print(f"{config['model']['_name']}, {num_experts} experts")
    print(f"updates {state['optimizer_history'][-1]['num_updates']}")
    print(f"{'network':12} {'encoder':>8} {'decoder':>8} {'width':>6} {'parameters':>12}")
    for name in network_names(num_experts):
        network = first if name == "delegator" else take_network(state, name)
        model = network["cfg"]["model"]
        # Shared tensors are listed under each of their names, and counted once here.
        seen = {one.data_ptr(): one.numel() for one in _tensors(state, name)}
        print(
            f"{name:12} {model['encoder_layers']:8} {model['decoder_layers']:8} "
            f"{model['encoder_embed_dim']:6} {sum(seen.values()):12,}"
        )
    shown = ("focus", "focus_warmup", "selection_labels", "selection_weight", "agreement")
    for name in shown:
        print(f"{name} {config['criterion'].get(name)}")


def _tensors(state: dict, name: str) -> list:
    prefix = "delegator." if name == "delegator" else f"experts.{name.removeprefix('expert-')}."
    own = (value for key, value in state["model"].items() if key.startswith(prefix))
    return [value for value in own if value.dim() > 0 and value.numel() > 1]


def _take(arguments: argparse.Namespace) -> None:
    import torch

    from translation.checkpoints import take_network

    if Path(arguments.out).exists():
        raise ValueError(f"{arguments.out} exists; it is not overwritten")
    torch.save(take_network(_load(arguments.checkpoint), arguments.network), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
