"""`coe-vision serve`: its options, and the server process."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, NamedTuple

from coe_core.serving.options import add_server_options, require_serving
from coe_core.support.aims import parse_size
from coe_core.support.command import at_least, parsed_by
from vision.precision import PRECISIONS, RUNTIMES

if TYPE_CHECKING:
    from coe_core.threads import Threads
    from vision.prediction.predictor import Predictor

_TOGETHER = 4  # images of a server's batch by which time is measured: most are small


class Chosen(NamedTuple):
    """What a command computes with."""

    threads: Threads
    runtime: str = ""  # for one line of output; empty where there was nothing to choose


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
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="what computes on a CPU (default: onnxruntime, in fp32, where it is faster)",
    )


def choose_runtime(
    predictor: Predictor,
    arguments: argparse.Namespace,
    systems: list[str],
    images: float = math.inf,
) -> Chosen:
    """Threads, then what the networks run through, as the options say.

    Args:
        predictor: whose systems may be replaced.
        arguments: of a command with `add_arithmetic` and a batch size.
        systems: that will answer.
        images: that will be answered.

    Raises:
        ValueError: options that do not go together.
    """
    import torch

    from vision.serve.start import serving_threads

    fixed = "--compiled" if arguments.compiled else f"--precision {arguments.precision}"
    if arguments.compiled or arguments.precision not in ("auto", "32-true"):
        if arguments.runtime == "onnxruntime":
            raise ValueError(f"--runtime onnxruntime computes in fp32: leave {fixed} out")
        arguments.runtime = "torch"
    threads = serving_threads(predictor, arguments.batch_size)
    torch.set_num_threads(threads.count)
    if arguments.runtime == "torch":
        return Chosen(threads)
    from vision.export.accelerate import accelerate

    together = min(arguments.batch_size, _TOGETHER) if images == math.inf else arguments.batch_size
    runtime = accelerate(
        predictor, systems, runtime=arguments.runtime, batch_size=together, images=images
    )
    return Chosen(threads, str(runtime) if runtime.reason else "")


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered first."""
    require_serving()
    from coe_core.serving import process

    process.allow_connections(arguments.max_requests)
    with process.listen(arguments.host, arguments.port) as listening:
        # After the socket: a port in use is told at once.
        from vision.prediction.predictor import Predictor
        from vision.serve.app import ServerSettings, create_app
        from vision.serve.start import warm_up

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
        chosen = choose_runtime(predictor, arguments, predictor.expected_systems)
        warm_up(predictor, arguments.batch_size)
        print(f"serving {arguments.run} at {process.address(listening)}", flush=True)
        if chosen.threads.reason:
            print(f"computing with {chosen.threads}", flush=True)
        if chosen.runtime:
            print(f"networks by {chosen.runtime}", flush=True)
        process.run_server(app, listening, arguments.max_requests)
