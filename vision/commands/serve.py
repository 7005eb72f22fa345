"""`coe-vision serve`: its options, and the server process."""

from __future__ import annotations

import argparse

from coe_core.support.aims import parse_size
from coe_core.support.command import at_least, number_in, parsed_by
from vision.precision import PRECISIONS

MAX_SECONDS = 86400.0  # of anything that is waited for: a day


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="run folder or checkpoint")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 or :: for all (default: this machine)"
    )
    parser.add_argument(
        "--host-names",
        type=parsed_by(host_names),
        default=(),
        metavar="NAME[,NAME]",
        help="that it is reached by, besides addresses, localhost and --host; * for any",
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--at", help="when a request names no budget: operating point or multiply-adds"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=32, help="images predicted together"
    )
    parser.add_argument(
        "--window",
        type=number_in(0, 1000 * MAX_SECONDS),
        default=2.0,
        metavar="MS",
        help="the first of a batch waits so long",
    )
    parser.add_argument(
        "--max-requests", type=at_least(1), default=64, help="in work; further ones get 429"
    )
    parser.add_argument(
        "--max-bytes", type=parsed_by(parse_size), default="10M", help="of an upload"
    )
    parser.add_argument(
        "--max-memory",
        type=parsed_by(parse_size),
        default="1G",
        help="for images while they are decoded, all together",
    )
    parser.add_argument("--max-pixels", type=at_least(1), default=50_000_000, help="of an image")
    parser.add_argument(
        "--body-seconds",
        type=number_in(0, MAX_SECONDS, low_is_in=False),
        default=20.0,
        help="for an upload to arrive",
    )
    parser.add_argument(
        "--predict-seconds",
        type=number_in(0, MAX_SECONDS, low_is_in=False),
        default=60.0,
        help="for a batch to be predicted, and for memory to become free",
    )
    add_arithmetic(parser)


def add_arithmetic(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that predict."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="arithmetic (default: that of training)",
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="every network through torch.compile: slow first calls, needs a C++ compiler",
    )


def host_names(text: str) -> tuple[str, ...]:
    """Names with commas between them.

    Raises:
        ValueError: an empty one, or what is no name.

    Example:
        >>> host_names("coe.example.org, coe.lan")
        ('coe.example.org', 'coe.lan')
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name != "*" and (not name or set(name) & set(" \t/:@?#[]*")):
            raise ValueError(f"{name!r} is no host name such as coe.example.org")
    return names


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered first."""
    from vision.export.export import require

    require("fastapi", "uvicorn", "prometheus_client", "python_multipart", extra="serve")
    from vision.serve import process

    process.allow_connections(arguments.max_requests)
    with process.listen(arguments.host, arguments.port) as listening:
        # After the socket: a port in use is told at once.
        import torch

        from vision.prediction.predictor import Predictor
        from vision.serve.app import ServerSettings, create_app
        from vision.serve.start import serving_threads, warm_up

        predictor = Predictor(
            arguments.run,
            budget=arguments.at,
            batch_size=arguments.batch_size,
            precision=arguments.precision,
            compiled=arguments.compiled,
            max_pixels=arguments.max_pixels,
        )
        settings = ServerSettings(
            max_batch=arguments.batch_size,
            window=arguments.window / 1000,
            max_requests=arguments.max_requests,
            max_bytes=arguments.max_bytes,
            body_seconds=arguments.body_seconds,
            max_memory=arguments.max_memory,
            predict_seconds=arguments.predict_seconds,
            host_names=(*arguments.host_names, *process.own_names(arguments.host)),
        )
        app = create_app(predictor, settings)
        warm_up(predictor, arguments.batch_size)
        threads = serving_threads(predictor, arguments.batch_size)
        torch.set_num_threads(threads.count)
        print(f"serving {arguments.run} at {process.address(listening)}", flush=True)
        if threads.reason:
            print(f"computing with {threads}", flush=True)
        process.run_server(app, listening, arguments.max_requests)
