"""`coe-vision serve`: its options, and the server process."""

from __future__ import annotations

import argparse

from coe_core.serving.options import add_server_options, require_serving
from coe_core.support.aims import parse_size
from coe_core.support.command import at_least, parsed_by
from vision.precision import PRECISIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", help="run folder or checkpoint")
    add_server_options(parser, max_bytes="10M")
    parser.add_argument(
        "--at", help="when a request names no budget: operating point or multiply-adds"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=32, help="images predicted together"
    )
    parser.add_argument(
        "--max-memory",
        type=parsed_by(parse_size),
        default="1G",
        help="for images while they are decoded, all together",
    )
    parser.add_argument("--max-pixels", type=at_least(1), default=50_000_000, help="of an image")
    add_system(parser)
    add_arithmetic(parser)


def add_system(parser: argparse.ArgumentParser) -> None:
    """The option of the commands that use a run's systems."""
    parser.add_argument(
        "--system",
        metavar="NAME",
        help="coe, cascade, single:NAME or ensemble:NAME (default: the one that calibrate chose)",
    )


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


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered first."""
    require_serving()
    from coe_core.serving import process

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
            system=arguments.system,
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
