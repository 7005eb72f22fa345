"""Parallel text: check it, learn a vocabulary, make a recipe's, cut it into pieces."""

from __future__ import annotations

import argparse
from pathlib import Path

from coe_core.support.command import at_least
from coe_core.support.files import ready_to_write

_MOST_PAIRS = 1_000_000  # that are made


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation check`."""
    parser.add_argument("texts", nargs="+", help="source and target, one sentence a line, UTF-8")


def run_check(arguments: argparse.Namespace) -> None:
    """Check parallel text before fairseq-preprocess."""
    from translation.corpora.text import check_parallel

    report = check_parallel(arguments.texts)
    print(f"{report.num_lines} lines")
    for path in arguments.texts:
        print(f"{path}: {report.num_empty[path]} empty, longest {report.longest[path]} words")


def add_vocabulary_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation vocabulary`."""
    parser.add_argument("texts", nargs="+", help="both languages, one sentence a line, UTF-8")
    parser.add_argument("--size", type=at_least(1), required=True, help="number of pieces")
    parser.add_argument(
        "--kind", choices=("unigram", "bpe"), default="unigram", help="how words are cut"
    )
    parser.add_argument(
        "--normalization",
        choices=("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"),
        default="nmt_nfkc",
        help="SentencePiece's rule for texts before they are cut (cf: in lower case); identity keeps them",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        metavar="PART",
        help="part of all characters that get a piece, such as 0.9995 for Chinese or Japanese",
    )
    parser.add_argument(
        "--byte-fallback", action="store_true", help="unknown characters become bytes, not <unk>"
    )
    parser.add_argument(
        "--user-symbol",
        action="append",
        default=[],
        metavar="TEXT",
        help="a piece that is never cut; may be given several times",
    )
    parser.add_argument(
        "--soft-limit", action="store_true", help="fewer pieces than --size are no error"
    )
    parser.add_argument(
        "--longest-line",
        type=at_least(1),
        default=4192,
        metavar="BYTES",
        help="longer lines are not learned from",
    )
    parser.add_argument("--out", required=True, help="file to write, such as joint.model")
    parser.add_argument(
        "--dictionary",
        metavar="FILE",
        help="also write fairseq's dictionary of all pieces, for fairseq-preprocess --srcdict; training with "
        "--subword-sampling needs it",
    )


def run_vocabulary(arguments: argparse.Namespace) -> None:
    """Learn a joint SentencePiece vocabulary."""
    from translation.corpora.vocabulary import Segmentation, train_vocabulary, write_dictionary

    ready_to_write(arguments.out, arguments.texts)
    if arguments.dictionary is not None:
        ready_to_write(arguments.dictionary, [*arguments.texts, arguments.out])
    how = Segmentation(
        arguments.kind,
        arguments.normalization,
        arguments.character_coverage,
        arguments.byte_fallback,
        tuple(arguments.user_symbol),
        arguments.soft_limit,
        arguments.longest_line,
    )
    report = train_vocabulary(arguments.texts, arguments.size, arguments.out, segmentation=how)
    if arguments.dictionary is not None:
        write_dictionary(arguments.out, arguments.dictionary)
    print(f"{arguments.out}: {report.num_pieces} pieces")
    if report.num_too_long:
        shown = ", ".join(report.too_long) + (", ..." if report.num_too_long > 3 else "")
        print(
            f"left out: {report.num_too_long} of {report.num_lines} lines, over {how.longest_line} bytes "
            f"({shown}); --longest-line takes them"
        )
    if report.num_reserved:
        print(f"left out: {report.num_reserved} lines with U+2585, which SentencePiece reserves")
    if report.example is not None:
        before, after = (text if len(text) <= 60 else f"{text[:60]}..." for text in report.example)
        print(
            f"{how.normalization} changes {report.num_changed} of {report.num_lines} lines, such as "
            f"{before!r} to {after!r}; --normalization identity keeps them"
        )


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation corpus`."""
    parser.add_argument(
        "kind",
        choices=("numbers", "tatoeba", "iwslt14"),
        help="numbers: dates, times, numbers, amounts, durations, made by Babel and num2words; tatoeba: "
        "deu-eng.zip of manythings.org, split without a sentence in common; iwslt14: de-en of de-en.tgz",
    )
    parser.add_argument("source", nargs="?", help="file or folder; none for numbers")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument(
        "--train", type=at_least(1, _MOST_PAIRS), help="pairs of numbers to train on; 12000"
    )
    parser.add_argument(
        "--held-out",
        type=at_least(1, _MOST_PAIRS),
        help="pairs of valid, and of test, but for iwslt14; 2000",
    )
    parser.add_argument("--seed", type=int, help="of numbers and tatoeba; 1")
    parser.add_argument("--lowercase", action="store_true", help="as IWSLT'14's published baseline")


_OF_CORPUS = {"numbers": ("train", "held_out", "seed"), "tatoeba": ("held_out", "seed")}
_OF_CORPUS["iwslt14"] = ("lowercase",)


def run_corpus(arguments: argparse.Namespace) -> None:
    """Make the parallel text of a recipe: NAME.de and NAME.en."""
    from translation.corpora import published
    from translation.corpora.numbers import number_pairs

    kind = arguments.kind
    if (arguments.source is None) != (kind == "numbers"):
        which = "takes no file" if kind == "numbers" else "needs a file or folder"
        raise ValueError(f"corpus {kind} {which}, got {arguments.source}")
    for option in ("train", "held_out", "seed", "lowercase"):
        if getattr(arguments, option) not in (None, False) and option not in _OF_CORPUS[kind]:
            raise ValueError(f"corpus {kind} has no use for --{option.replace('_', '-')}")
    held_out = 2000 if arguments.held_out is None else arguments.held_out
    seed = 1 if arguments.seed is None else arguments.seed
    ready_to_write(Path(arguments.out) / "train.de")
    if kind == "numbers":
        train = 12000 if arguments.train is None else arguments.train
        pairs = number_pairs(train + 2 * held_out, seed)
        parts = {"valid": pairs[:held_out], "test": pairs[held_out : 2 * held_out]}
        parts["train"] = pairs[2 * held_out :]
    elif kind == "tatoeba":
        sizes = {"valid": held_out, "test": held_out}
        parts = published.split_apart(published.tatoeba_pairs(arguments.source), sizes, seed)
    else:
        parts = published.iwslt14_splits(arguments.source, arguments.lowercase)
    published.write_splits(parts, arguments.out, ("de", "en"))
    for name, part in parts.items():
        print(f"{arguments.out}/{name}: {len(part)} pairs")


def add_encode_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation encode`."""
    parser.add_argument("texts", nargs="+", help="one sentence a line; NAME becomes OUT/NAME")
    parser.add_argument("--model", required=True, help="SentencePiece model")
    parser.add_argument("--out", required=True, help="folder to write to")


def run_encode(arguments: argparse.Namespace) -> None:
    """Write texts as SentencePiece pieces, for fairseq-preprocess."""
    from translation.corpora.vocabulary import encode_file, encoded_names

    names = encoded_names(arguments.texts, arguments.out)
    for out in names.values():
        ready_to_write(out, [arguments.model])
    for text, out in names.items():
        print(f"{out}: {encode_file(arguments.model, text, out)} pieces")
