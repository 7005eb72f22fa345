"""Texts through a run, an export or a checkpoint: `translate` for files and pipes, `serve` for HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from coe_core.serving.options import add_server_options, require_serving
from coe_core.support.command import DONE, IN_PART, at_least, number_in
from coe_core.support.files import ready_to_write

if TYPE_CHECKING:
    from translation.prediction.stream import Output
    from translation.prediction.translator import Translator

_CONFIDENCE = (-1e9, float("inf"))
_LOOKED_AT = 100  # lines, for letters that were never seen
_UNLIKE = 0.3  # part of the letters from which on it is said


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """What translates, and how: of both commands."""
    parser.add_argument("source", metavar="RUN", help="run, export, or checkpoint with --data")
    parser.add_argument(
        "--at",
        metavar="BUDGET",
        help="operating point, or multiply-adds such as 60%% (of no exits) or 20M (default: best)",
    )
    parser.add_argument(
        "--system", help="CoE, cascade, single:NAME or ensemble:NAME (default: the collaboration)"
    )
    parser.add_argument("--data", help="of a checkpoint: folder that fairseq-preprocess made")
    parser.add_argument(
        "--vocabulary",
        metavar="MODEL",
        help="of a checkpoint: SentencePiece's model; without it lines are in pieces already",
    )
    parser.add_argument("--points", help="of a checkpoint: what calibrate wrote")
    parser.add_argument(
        "--max-tokens",
        type=at_least(1, 10**9),
        default=4096,
        help="source tokens translated together",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def loaded_translator(arguments: argparse.Namespace) -> Translator:
    """The translator that the options name."""
    from translation.prediction.translator import Translator

    return Translator(
        arguments.source,
        budget=arguments.at,
        system=arguments.system,
        data=arguments.data,
        vocabulary=arguments.vocabulary,
        points=arguments.points,
        max_tokens=arguments.max_tokens,
        device=arguments.device,
    )


def add_translate_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation translate`."""
    add_source_options(parser)
    parser.add_argument(
        "text",
        nargs="?",
        default="-",
        help="one sentence a line, also .gz (default: standard input)",
    )
    parser.add_argument(
        "--out", default="-", help="file to write, also .gz (default: standard output)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an --out that was stopped")
    parser.add_argument(
        "--json", action="store_true", help="a JSON object a line: text, route, confidence, macs"
    )
    parser.add_argument(
        "--threshold", type=number_in(*_CONFIDENCE), help="end early from it on, instead of --at"
    )
    parser.add_argument(
        "--nbest", type=at_least(1, 1000), default=1, help="hypotheses, with tabs between them"
    )
    parser.add_argument("--beam", type=at_least(1, 1000))
    parser.add_argument("--lenpen", type=number_in(-100, 100))
    parser.add_argument(
        "--target", metavar="LANGUAGE", help="of a run that translates into several"
    )
    parser.add_argument("--max-len", type=at_least(1, 100_000), help="pieces of a translation")
    parser.add_argument(
        "--over-long",
        choices=["cut", "skip"],
        default="cut",
        help="of a line of more pieces than the networks take: its beginning, or an empty line",
    )


def run_translate(arguments: argparse.Namespace) -> int:
    """Translate lines in their order; status 1 where a line was cut or skipped."""
    from translation.corpora.lines import open_lines

    if arguments.resume and arguments.out == "-":
        raise ValueError("--resume continues a file: give it with --out")
    if arguments.out != "-":
        ready_to_write(arguments.out, [arguments.text])
    source = open_lines(arguments.text)
    translator = loaded_translator(arguments)
    threads = translator.engine.choose_threads(arguments.max_tokens)
    if threads is not None and threads.measured:
        print(f"computing with {threads}", file=sys.stderr)
    from translation.prediction import stream

    if arguments.out == "-":
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a text of bytes
        return _translate(arguments, translator, source, stream.StandardOutput(), 0)
    search = translator.search.changed(arguments.beam, arguments.lenpen, arguments.max_len)
    setting = translator.resolve(None, arguments.threshold, None, search)
    settings = {
        "model": str(Path(arguments.source).resolve()),
        "system": setting.system,
        "threshold": str(setting.threshold),
        **{name: str(value) for name, value in search._asdict().items()},
        **{name: getattr(arguments, name) for name in ("nbest", "json", "over_long", "target")},
    }
    file = stream.ResumableFile(Path(arguments.out), settings, arguments.resume)
    with file.opened(source):
        return _translate(arguments, translator, source, file, file.lines)


def _translate(
    arguments: argparse.Namespace,
    translator: Translator,
    source: BinaryIO,
    output: Output,
    done: int,
) -> int:
    from coe_core.support.progress import ProgressLine
    from translation.prediction.stream import Summary, as_line, blocks, count_lines, decoded

    name = "standard input" if arguments.text == "-" else arguments.text
    summary, total = Summary(), count_lines(source)
    with ProgressLine(total, "translating", "lines") as progress:
        for block in blocks(source):
            lines = decoded(block, name, done)
            if not summary.routes:
                _tell_of_another_script(translator, name, lines)
            translations = translator(
                lines,
                threshold=arguments.threshold,
                beam=arguments.beam,
                lenpen=arguments.lenpen,
                max_len=arguments.max_len,
                nbest=arguments.nbest,
                target=arguments.target,
                over_long=arguments.over_long,
            )
            output.write(
                "".join(as_line(translation, arguments.json) for translation in translations), block
            )
            for number, translation in enumerate(translations, done + 1):
                summary.add(translation)
                if translation.cut or translation.route == "over-long":
                    _tell(
                        name,
                        number,
                        translation.pieces,
                        translator.engine.longest,
                        bool(translation.cut),
                    )
            done += len(block)
            progress.advance(len(block))
    print(summary, file=sys.stderr)
    return IN_PART if summary.incomplete else DONE


def _tell_of_another_script(translator: Translator, name: str, lines: Sequence[str]) -> None:
    unknown = translator.unknown(lines[:_LOOKED_AT])
    if unknown > _UNLIKE:
        print(
            f"warning: {name}: {100 * unknown:.0f}% of the letters were never seen in training: is it in "
            "another script, or in another language?",
            file=sys.stderr,
        )


def _tell(name: str, number: int, pieces: int, longest: int, was_cut: bool) -> None:
    what = "only its beginning was translated" if was_cut else "it was skipped, its line is empty"
    print(
        f"{name}:{number}: {pieces:,} pieces, the networks take {longest:,}; {what}",
        file=sys.stderr,
    )


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Options of `coe-translation serve`."""
    add_source_options(parser)
    parser.set_defaults(max_tokens=1024)
    add_server_options(parser, max_bytes="1M")
    parser.add_argument(
        "--max-sentences", type=at_least(1, 100_000), default=512, help="of one request"
    )


def run_serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered first."""
    require_serving()
    from coe_core.serving import process

    process.allow_connections(arguments.max_requests)
    with process.listen(arguments.host, arguments.port) as listening:
        # After the socket: a port in use is told at once.
        from coe_core.serving.app import ServerSettings

        translator = loaded_translator(arguments)
        from translation.serve.app import create_app

        settings = ServerSettings(
            max_batch=arguments.max_tokens,
            window=arguments.window / 1000,
            max_requests=arguments.max_requests,
            max_bytes=arguments.max_bytes,
            body_seconds=arguments.body_seconds,
            predict_seconds=arguments.predict_seconds,
            host_names=(*arguments.host_names, *process.own_names(arguments.host)),
        )
        app = create_app(translator, settings, arguments.max_sentences)
        threads = translator.engine.choose_threads(arguments.max_tokens)
        if threads is not None and threads.reason:
            print(f"computing with {threads}", flush=True)
        target = next(iter(translator.engine.targets), None)
        translator(["1"], target=target)  # what is done only once is not paid for by a request
        print(f"serving {arguments.source} at {process.address(listening)}", flush=True)
        process.run_server(app, listening, arguments.max_requests)
