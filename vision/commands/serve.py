"""`coe-vision serve`: its options, and the server process."""

from __future__ import annotations

import argparse
import socket

_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


def add_options(serve: argparse.ArgumentParser) -> None:
    """Options of `coe-vision serve`."""
    serve.add_argument("run", help="run folder or checkpoint")
    serve.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 for all (default: this machine)"
    )
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument(
        "--at", help="when a request names no budget: operating point or multiply-adds"
    )
    serve.add_argument("--batch-size", type=int, default=32, help="images predicted together")
    serve.add_argument(
        "--window", type=float, default=2.0, metavar="MS", help="the first of a batch waits so long"
    )
    serve.add_argument("--max-requests", type=int, default=64, help="in work; further ones get 429")
    serve.add_argument("--max-bytes", type=_bytes, default="10M", help="of an upload")
    serve.add_argument("--max-pixels", type=int, default=50_000_000, help="of an image")
    serve.add_argument("--body-seconds", type=float, default=20.0, help="for an upload to arrive")
    add_arithmetic(serve)


def add_arithmetic(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that predict."""
    parser.add_argument(
        "--precision",
        choices=("auto", "32-true", "bf16-mixed", "16-mixed"),
        default="auto",
        help="arithmetic (default: that of training)",
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="every network through torch.compile: slow first calls, needs a C++ compiler",
    )


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:].lower(), 1)
    try:
        return int(float(text if unit == 1 else text[:-1]) * unit)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500k or 10M") from error


def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered first."""
    for name in ("batch_size", "max_requests", "max_bytes", "max_pixels"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {getattr(arguments, name)}")
    if not arguments.window >= 0 or not arguments.body_seconds > 0:
        raise ValueError("--window must be at least 0 and --body-seconds above 0")
    from vision.export.export import require

    require("fastapi", "uvicorn", "prometheus_client", "python_multipart", extra="serve")
    import uvicorn

    from vision.prediction.predictor import Predictor
    from vision.serve.app import ServerSettings, create_app
    from vision.serve.limits import ImpatientProtocol

    listening = _listen(arguments.host, arguments.port)
    with listening:
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
        )
        app = create_app(predictor, settings)
        host, port = listening.getsockname()[:2]
        print(f"serving {arguments.run} at http://{host}:{port}", flush=True)
        config = uvicorn.Config(
            app,
            http=ImpatientProtocol,
            ws="none",
            log_level="warning",
            server_header=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=10,
            limit_concurrency=4 * arguments.max_requests + 64,  # connections, idle ones included
        )
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is loaded: a port in use is told at once."""
    from vision.errors import RunError

    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise RunError(f"cannot listen on {host}:{port}: {error}") from error
