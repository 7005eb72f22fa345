"""Options that both `serve` commands have, and how the served process begins."""

from __future__ import annotations

import argparse
import importlib.util

from coe_core.errors import CoEError
from coe_core.support.aims import parse_size
from coe_core.support.command import at_least, number_in, parsed_by

MAX_SECONDS = 86400.0  # of anything that is waited for: a day
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def add_server_options(parser: argparse.ArgumentParser, max_bytes: str) -> None:
    """Where a server listens, and what it takes from its clients.

    Args:
        parser: of the command.
        max_bytes: default of ``--max-bytes``.
    """
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
        "--max-bytes", type=parsed_by(parse_size), default=max_bytes, help="of an upload"
    )
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


def require_serving() -> None:
    """Say what to install where a package of the extra ``serve`` is missing.

    Raises:
        CoEError: one is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise CoEError(f"needs {', '.join(missing)}: pip install 'collaboration-of-experts[serve]'")
