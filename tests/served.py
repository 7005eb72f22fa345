"""A real server in a thread of the test's process, and clients that speak bytes."""

import socket
import threading
from dataclasses import replace

import httpx
import pytest
import uvicorn

from coe_core.serving.connections import Connections, ConnectionTimes

TIMES = ConnectionTimes(header=0.3, left_over=0.3, unread=0.3, idle=5.0)


class Served:
    """An ASGI application on a free port, behind the connections that the command has.

    Args:
        app: the application.
        most: connections.
        times: changed ones of `TIMES`.
    """

    def __init__(self, app, most=320, **times):
        self.app = app
        self.closed: dict[str, int] = {}
        self.connections = Connections(most, times=replace(TIMES, **times), closed=self._count)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        config = uvicorn.Config(
            app, http=self.connections.protocol, log_level="critical", ws="none",
            timeout_keep_alive=60, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))

    def _count(self, reason):
        self.closed[reason] = self.closed.get(reason, 0) + 1

    def __enter__(self):
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def connect(self, text: bytes = b"") -> socket.socket:
        """A connection that has sent so much."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(text)
        return connection

    def raw(self, text: bytes) -> bytes:
        """All that the server answers to bytes after which nothing comes."""
        with self.connect(text) as connection:
            return rest_of(connection)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    answer = b""
    try:
        while part := connection.recv(65536):
            answer += part
    except ConnectionResetError:
        pass
    return answer


@pytest.fixture(scope="session")
def serving():
    """See `Served`."""
    return Served


@pytest.fixture(scope="session")
def rest():
    """See `rest_of`."""
    return rest_of
