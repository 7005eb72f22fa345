"""The server process: its socket, its connections, its end."""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from coe_core.errors import CoEError

if TYPE_CHECKING:
    from fastapi import FastAPI

_RESERVE = 32  # connections for /health and /metrics, where all others are in work
GRACE_SECONDS = 10  # that requests in work have when the server is told to stop


class ServerError(CoEError):
    """A server cannot start as asked."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is loaded: a port in use is told at once.

    Args:
        host: an address of this machine (also of IPv6), or a name that has one.
        port: 0 takes a free one.

    Raises:
        ServerError: no such address, or a port that is in use or not allowed.
    """
    if not 0 <= port <= 65535:
        raise ServerError(f"cannot listen on port {port}: ports are 0 (a free one) to 65535")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        addresses = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE, proto=socket.IPPROTO_TCP
        )
        family, _, _, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
        both = bare == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServerError(f"cannot listen on {place(bare, port)}: {reason}") from error


def place(host: str, port: int) -> str:
    """Host and port as they stand in a URL.

    Example:
        >>> place("127.0.0.1", 80), place("::1", 80)
        ('127.0.0.1:80', '[::1]:80')
    """
    try:
        six = ipaddress.ip_address(host.partition("%")[0]).version == 6
    except ValueError:
        six = False
    return f"[{host}]:{port}" if six else f"{host}:{port}"


def address(listening: socket.socket) -> str:
    """The URL of a server, for people.

    Example:
        >>> with listen("127.0.0.1", 0) as listening:
        ...     address(listening).startswith("http://127.0.0.1:")
        True
    """
    host, port = listening.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host)
    if here is None:
        return f"http://{place(host, port)}"
    return f"http://{place(here, port)} and this machine's other addresses"


def own_names(host: str) -> tuple[str, ...]:
    """Names that a server which listens on a host is reached by, addresses and localhost aside."""
    return (socket.gethostname(),) if host in ("", "0.0.0.0", "::", "[::]") else (host,)


def run_server(app: FastAPI, listening: socket.socket, max_requests: int) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered first.

    Args:
        app: with `coe_core.serving.metrics.LiveMetrics` in its state.
        listening: its socket.
        max_requests: that may be predicted at a time; there are four times as many connections.
    """
    import uvicorn

    from coe_core.serving.connections import Connections

    connections = Connections(_most(max_requests), _RESERVE, closed=app.state.metrics.count_closed)
    config = uvicorn.Config(
        app,
        http=connections.protocol,
        ws="none",
        log_level="error",  # what clients do wrong is counted, and told by `limits.refuse`
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(connections.times.idle) + 1,  # the table's own time comes first
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the same, of forms
    uvicorn.Server(config).run([listening])


def _most(max_requests: int) -> int:
    """Connections, idle ones included."""
    return 4 * max_requests + 64


def allow_connections(max_requests: int) -> None:
    """Let this process hold the connections of so many requests open.

    Raises:
        ServerError: the system allows fewer.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    number = _most(max_requests) + _RESERVE + 64  # the run's files and others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or number <= soft:
        return
    if hard != resource.RLIM_INFINITY and number > hard:
        raise ServerError(
            f"--max-requests {max_requests} needs {number:,} open files for its connections, this "
            f"process may have {hard:,}: lower it, or raise `ulimit -n`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
