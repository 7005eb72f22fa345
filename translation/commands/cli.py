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
    parser = _parser()
    arguments, arguments.more = parser.parse_known_args(argv)
    if arguments.more and arguments.name != "decode":
        parser.error(f"unrecognized arguments: {' '.join(arguments.more)}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    try:
        return arguments.command(arguments) or 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        print(f"coe-translation {arguments.name}: {error}", file=sys.stderr)
        return USAGE
    except Exception as error:
        from coe_core import CoEError

        if not isinstance(error, CoEError):
            raise
        print(f"coe-translation {arguments.name}: {error}", file=sys.stderr)
        return FAILED


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

    vocabulary = command("vocabulary", _vocabulary, "Learn a joint SentencePiece vocabulary.")
    vocabulary.add_argument("texts", nargs="+", help="both languages, one sentence a line, UTF-8")
    vocabulary.add_argument("--size", type=int, required=True, help="number of pieces")
    vocabulary.add_argument(
        "--kind", choices=("unigram", "bpe"), default="unigram", help="how words are cut"
    )
    vocabulary.add_argument("--out", required=True, help="file to write, such as joint.model")

    corpus = command("corpus", _corpus, "Make the parallel text of a recipe: NAME.de and NAME.en.")
    corpus.add_argument(
        "kind",
        choices=("numbers", "tatoeba", "iwslt14"),
        help="numbers: dates, times, numbers, amounts, durations, made by Babel and num2words; tatoeba: "
        "deu-eng.zip of manythings.org, split without a sentence in common; iwslt14: de-en of de-en.tgz",
    )
    corpus.add_argument("source", nargs="?", help="file or folder; none for numbers")
    corpus.add_argument("--out", required=True, help="folder to write to")
    corpus.add_argument("--train", type=int, default=12000, help="pairs to train on, of numbers")
    corpus.add_argument("--held-out", type=int, default=2000, help="pairs of valid, and of test")
    corpus.add_argument("--seed", type=int, default=1, help="of numbers and tatoeba")
    corpus.add_argument("--lowercase", action="store_true", help="as IWSLT'14's published baseline")

    encode = command(
        "encode", _encode, "Write texts as SentencePiece pieces, for fairseq-preprocess."
    )
    encode.add_argument("texts", nargs="+", help="one sentence a line; NAME becomes OUT/NAME")
    encode.add_argument("--model", required=True, help="SentencePiece model")
    encode.add_argument("--out", required=True, help="folder to write to")

    average = command("average", _average, "Average the parameters of checkpoints of one training.")
    average.add_argument(
        "checkpoints", nargs="+", help="in any order; two after as many updates count once"
    )
    average.add_argument("--out", required=True, help="file to write; it is replaced")

    decode = command(
        "decode",
        _decode,
        "Translate a data set by every network of a team and by every control, for calibrate and curve. "
        "All options of fairseq-generate go with it.",
    )
    decode.add_argument("data", help="folder that fairseq-preprocess made")
    decode.add_argument("--path", required=True, help="checkpoint of the team")
    decode.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="NAME=CHECKPOINT",
        help="a plain transformer; expert-alone and delegator-alone are the parts of the cascade",
    )
    decode.add_argument("--reference", help="target text as it was before it was cut into pieces")
    decode.add_argument("--out", required=True, help="file to write (JSON)")

    calibrate = command(
        "calibrate", _calibrate, "Fit thresholds for stated aims on a translated validation set."
    )
    calibrate.add_argument("translations", help="what decode wrote, of held-out data")
    calibrate.add_argument(
        "aims",
        nargs="+",
        metavar="AIM",
        help="best, bleu_drop=POINTS, chrf_drop=POINTS, macs=AMOUNT (20M, or 60%% of that of no exits), "
        "latency=MILLISECONDS a sentence (or 60%%)",
    )
    calibrate.add_argument(
        "--out",
        required=True,
        help="file to write (JSON); --threshold FILE:AIM of fairseq-generate reads it",
    )

    curve = command(
        "curve",
        _curve,
        "BLEU and chrF against MACs and seconds: table, CSV and PNG, with all controls.",
    )
    curve.add_argument(
        "translations", nargs="+", help="what decode wrote, of one test set; a file for each seed"
    )
    curve.add_argument(
        "--points",
        action="append",
        default=[],
        help="what calibrate wrote: once for all, or once for each seed",
    )
    curve.add_argument("--out", required=True, help="folder to write to")

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

    export = command(
        "export",
        _export,
        "Write a team as CTranslate2 models with a runner that routes; compare it with fairseq.",
    )
    export.add_argument("checkpoint")
    export.add_argument("data", help="folder that fairseq-preprocess made")
    export.add_argument("--out", required=True, help="folder to write to, new or empty")
    export.add_argument("--int8", action="store_true", help="weights in 8 bits")
    export.add_argument("--points", help="what calibrate wrote: thresholds to store by their names")
    export.add_argument("--at", metavar="NAME", help="of them, the default; without it none exits")
    export.add_argument("--sentencepiece", metavar="MODEL", help="then the runner takes plain text")
    export.add_argument("--beam", type=int, default=5, help="of the runner, by default")
    export.add_argument("--lenpen", type=float, default=1.0, help="of the runner, by default")
    export.add_argument("--max-len-b", type=int, default=200, help="of the runner, by default")
    export.add_argument(
        "--check", type=int, default=200, metavar="N", help="sentences to compare; 0: none"
    )
    export.add_argument("--subset", default="valid", help="set that they are taken from")

    inspect = command("inspect", _inspect, "Networks, sizes and settings of a checkpoint.")
    inspect.add_argument("checkpoint")

    take = command("take", _take, "Take one network out, as a plain fairseq checkpoint.")
    take.add_argument("checkpoint")
    take.add_argument("network", help="delegator, expert-0, expert-1, ...")
    take.add_argument("--out", required=True, help="file to write")
    return parser


def _user_dir(arguments: argparse.Namespace) -> None:
    print(Path(__file__).resolve().parents[1])


def _check(arguments: argparse.Namespace) -> None:
    from translation.corpora.text import check_parallel

    found = check_parallel(arguments.texts)
    print(f"{found.num_lines} lines")
    for path in arguments.texts:
        print(f"{path}: {found.num_empty[path]} empty, longest {found.longest[path]} words")


def _vocabulary(arguments: argparse.Namespace) -> None:
    from translation.corpora.vocabulary import train_vocabulary

    train_vocabulary(arguments.texts, arguments.size, arguments.out, arguments.kind)
    print(f"{arguments.out}: {arguments.size} pieces")


def _corpus(arguments: argparse.Namespace) -> None:
    from translation.corpora import published
    from translation.corpora.numbers import number_pairs

    if (arguments.source is None) != (arguments.kind == "numbers"):
        which = "takes no file" if arguments.kind == "numbers" else "needs a file or folder"
        raise ValueError(f"corpus {arguments.kind} {which}, got {arguments.source}")
    for option in ("train", "held_out"):
        if (value := getattr(arguments, option)) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    held_out = arguments.held_out
    if arguments.kind == "numbers":
        pairs = number_pairs(arguments.train + 2 * held_out, arguments.seed)
        parts = {"valid": pairs[:held_out], "test": pairs[held_out : 2 * held_out]}
        parts["train"] = pairs[2 * held_out :]
    elif arguments.kind == "tatoeba":
        pairs = published.tatoeba_pairs(arguments.source)
        sizes = {"valid": held_out, "test": held_out}
        parts = published.split_apart(pairs, sizes, arguments.seed)
    else:
        parts = published.iwslt14_splits(arguments.source, arguments.lowercase)
    published.write_splits(parts, arguments.out, ("de", "en"))
    for name, some in parts.items():
        print(f"{arguments.out}/{name}: {len(some)} pairs")


def _encode(arguments: argparse.Namespace) -> None:
    from translation.corpora.vocabulary import encode_file, encoded_names

    names = encoded_names(arguments.texts, arguments.out)
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    for text, out in names.items():
        print(f"{out}: {encode_file(arguments.model, text, out)} pieces")


def _average(arguments: argparse.Namespace) -> None:
    import torch

    from translation.plugin.checkpoints import average, load_state

    loaded = (load_state(path) for path in arguments.checkpoints)
    by_updates = {state["optimizer_history"][-1]["num_updates"]: state for state in loaded}
    states = [by_updates[updates] for updates in sorted(by_updates)]
    part = Path(f"{arguments.out}.part")
    torch.save(average(states), part)
    os.replace(part, arguments.out)
    updates = ", ".join(map(str, sorted(by_updates)))
    print(f"{arguments.out}: mean of {len(states)} checkpoints, after {updates} updates")


def _decode(arguments: argparse.Namespace) -> None:
    _load_fairseq()
    from translation.corpora.lines import read_lines
    from translation.evaluation.decode_all import decode_all, generation_options

    controls = _pairs(arguments.control, "--control", "NAME=CHECKPOINT")
    for path in (arguments.path, *controls.values()):
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
    reference = None if arguments.reference is None else read_lines(arguments.reference)
    cfg = generation_options([arguments.data, "--path", arguments.path, *arguments.more])
    decode_all(cfg, controls, reference, tell=lambda line: print(line, flush=True)).save(
        arguments.out
    )


def _calibrate(arguments: argparse.Namespace) -> None:
    from translation.evaluation.calibrate import fit_all, save_points
    from translation.evaluation.translations import Translations

    made = Translations.load(arguments.translations)
    points, unmet = fit_all(made, arguments.aims, arguments.translations)
    save_points(arguments.out, points, made.provenance)
    print(f"{'system':8} {'aim':16} {'threshold':>9} {'exits %':>8} {'quality':>8} {'cost':>14}")
    for system, some in points.items():
        for one in some:
            cost = (
                f"{one.cost / 1e6:.2f} MMACs" if one.cost_unit == "macs" else f"{one.cost:.2f} ms"
            )
            print(
                f"{system:8} {one.name:16} {one.threshold:9.4f} {100 * one.exit_rate:8.1f} "
                f"{one.quality:8.2f} {cost:>14}"
            )
    for line in unmet:
        print(f"left out: {line}", file=sys.stderr)


def _curve(arguments: argparse.Namespace) -> None:
    from translation.evaluation import table
    from translation.evaluation.calibrate import load_points
    from translation.evaluation.metrics import METRICS, CorpusQuality
    from translation.evaluation.translations import Translations

    seeds = [Translations.load(path) for path in arguments.translations]
    if any(made.reference != seeds[0].reference for made in seeds):
        raise ValueError("the files are of different test sets; give seeds of one set")
    points = [load_points(path) for path in arguments.points] or [{}]
    if len(points) not in (1, len(seeds)):
        raise ValueError(
            f"{len(points)} files of --points for {len(seeds)} seeds; give one for all, or one for each"
        )
    points *= len(seeds) // len(points)
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    of_seeds = [table.rows(made, own) for made, own in zip(seeds, points, strict=True)]
    found = table.summary(of_seeds)
    table.write_csv(folder / "table.csv", found)
    for place, (made, rows) in enumerate(zip(seeds, of_seeds, strict=True)):
        end = f"-{place}" if len(seeds) > 1 else ""
        table.write_curves(folder / f"trade_off{end}.csv", made)
        table.draw(folder / f"trade_off{end}.png", made, Path(arguments.translations[place]).stem)
        texts = folder / f"translations{end}"
        texts.mkdir(exist_ok=True)
        for row in rows:
            if row.text is not None:
                name = row.name.replace(", ", "_").replace(" ", "_")
                (texts / name).write_text(
                    "".join(f"{line}\n" for line in row.text), encoding="utf-8"
                )
        load = ", ".join(f"{100 * part:.1f}" for part in table.loads(made))
        print(
            f"{arguments.translations[place]}: {len(made)} sentences, load of the experts {load} %"
        )
    print(table.shown(found))
    for metric in METRICS:
        print(f"{metric}: {CorpusQuality(metric, seeds[0].reference).signature}")


def _load_fairseq() -> None:
    """fairseq and the plugin, without the lines that its parts log while they load."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="fairseq|hydra|torch")
    for name in ("fairseq", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import translation

    translation.register()


def _pairs(words: Sequence[str], option: str, form: str) -> dict[str, str]:
    """NAME=VALUE words by name."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} must be {form}, got {word!r}")
        if name in found:
            raise ValueError(f"{option} {name} is given twice")
        found[name] = value
    return found


def _score(arguments: argparse.Namespace) -> None:
    from translation.corpora.lines import read_lines
    from translation.corpora.text import hypotheses_of
    from translation.evaluation.scoring import compare, score

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


def _inspect(arguments: argparse.Namespace) -> None:
    from translation.plugin.checkpoints import load_state, network_names, take_network

    state = load_state(arguments.checkpoint)
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


def _export(arguments: argparse.Namespace) -> None:
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
    _load_fairseq()
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


def _tensors(state: dict, name: str) -> list:
    prefix = "delegator." if name == "delegator" else f"experts.{name.removeprefix('expert-')}."
    own = (value for key, value in state["model"].items() if key.startswith(prefix))
    return [value for value in own if value.dim() > 0 and value.numel() > 1]


def _take(arguments: argparse.Namespace) -> None:
    import torch

    from translation.plugin.checkpoints import load_state, take_network

    if Path(arguments.out).exists():
        raise ValueError(f"{arguments.out} exists; it is not overwritten")
    torch.save(take_network(load_state(arguments.checkpoint), arguments.network), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
