"""Hundreds of real connections that say nothing, half of something, or do not listen."""

import asyncio
import time

import pytest

from coe_core.serving.guard import LastResort
from coe_core.serving.limits import Limits, places

GET = b"GET /page HTTP/1.1\r\nhost: a\r\n\r\n"
HALF = b"GET /page HTTP/1.1\r\nho"


class Application:
    """Answers 200; /large with 20 MB; /slow once it is let go."""

    def __init__(self):
        self.go = asyncio.Event()
        self.slow = 0
        self.statuses: dict[int, int] = {}

    def let_go(self):
        self.loop.call_soon_threadsafe(self.go.set)

    def count(self, status):
        self.statuses[status] = self.statuses.get(status, 0) + 1

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        size = {"/large": 20_000_000}.get(scope["path"], 2)
        if scope["path"] == "/slow":
            self.slow += 1
            self.loop = asyncio.get_running_loop()
            await self.go.wait()
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * size})


@pytest.fixture
def application():
    return Application()


@pytest.fixture
def limited(application):
    limits = Limits(application, max_requests=4, max_bytes=1000, body_seconds=0.5)
    return LastResort(limits, count=application.count)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def answered(connection):
    answer = b""
    while not answer.endswith(b"xx"):
        answer += connection.recv(1000)


def close(connections):
    for connection in connections:
        connection.close()


def test_half_headers_of_second_requests_hold_no_places(serving, limited, rest):
    with serving(limited, most=300, header=2.0) as served:
        held = [served.connect(GET) for _ in range(319)]
        for connection in held[-290:]:
            answered(connection)
            connection.sendall(HALF)
        for path in ("/page", "/health", "/metrics"):
            assert served.client.get(path).status_code == 200
        assert set(served.closed) == {"gave way"}  # the time of none was over
        assert served.closed["gave way"] >= 20
        assert served.connections.num_open <= 300
        assert [rest(connection) for connection in held[-100:]] == [b""] * 100
        assert served.closed["header"] >= 100
        close(held)


def test_a_header_that_trickles_in_has_no_more_time(serving, limited, rest):
    with serving(limited) as served, served.connect(GET) as connection:
        answered(connection)
        started = time.monotonic()
        while not served.closed and time.monotonic() < started + 5:
            connection.sendall(b"G")
            time.sleep(0.02)
        assert time.monotonic() - started < 2
        assert served.closed == {"header": 1}


@pytest.mark.parametrize("text", [b"", b"GET /pa", b"\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 9000])
def test_first_headers_that_never_end(serving, limited, text):
    with serving(limited) as served:
        served.raw(text)
        assert sum(served.closed.values()) == 1


def test_pauses_between_requests_end(serving, limited):
    with serving(limited, idle=0.2) as served:
        answer = served.raw(GET)
        assert answer.endswith(b"xx")
        assert served.closed == {"idle": 1}


def test_a_body_nobody_waits_for_ends(serving, limited):
    with serving(limited) as served:
        answer = served.raw(b"GET /page HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx")
        assert answer.endswith(b"xx")
        assert served.closed == {"left over": 1}


def test_who_does_not_read_an_answer_is_cut_off(serving, limited, application):
    with serving(limited) as served:
        large = GET.replace(b"/page", b"/large")
        held = [served.connect(large) for _ in range(5)]
        held.append(served.connect(large.replace(b"host", b"connection: close\r\nhost")))
        until(lambda: served.closed.get("unread") == 6)
        assert served.connections.num_open == 0
        close(held)


def test_a_reader_in_time_gets_all_of_it(serving, limited):
    with serving(limited) as served:
        assert len(served.client.get("/large").content) == 20_000_000


def test_uploads_in_all_places_leave_health_and_pages_alone(serving, limited, application):
    head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 900\r\n\r\n"
    with serving(limited) as served:
        held = [served.connect(head) for _ in range(4)]
        until(lambda: served.app.app.in_work == 4)
        refused = served.client.post("/predict", content=b"x")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json() == {"detail": "4 requests are in work already; try again later"}
        for path in ("/health", "/metrics", "/page"):
            assert served.client.get(path).status_code == 200
        assert all(connection.recv(1000).startswith(b"HTTP/1.1 408") for connection in held)
        assert served.client.post("/predict", content=b"x").status_code == 200
        assert application.statuses == {200: 4, 408: 4, 429: 1}
        close(held)


def test_the_slowest_upload_gives_its_place_away(serving, limited, application, monkeypatch):
    monkeypatch.setattr("coe_core.serving.limits.GRACE", 0.0)
    limited.app.body_seconds = 60.0
    head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 900\r\n\r\n"
    with serving(limited) as served:
        fast = served.connect(head + b"x" * 890)
        held = [fast, *(served.connect(head + b"x") for _ in range(3))]
        until(lambda: served.app.app.in_work == 4)
        until(lambda: max(upload.size for upload in served.app.app.uploads) == 890)
        for slow in held[1:]:
            assert served.client.post("/predict", content=b"x").status_code == 200
            answer = slow.recv(1000)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"more slowly than others, and all places were taken" in answer
            held.append(served.connect(head + b"x" * 800))
            until(lambda: served.app.app.in_work == 4)
        fast.sendall(b"x" * 10)
        answered(fast)
        close(held)
        until(lambda: served.app.app.in_work == 0)
        assert not served.app.app.uploads


def test_a_flood_of_requests_in_work_leaves_health_alone(serving, limited, application):
    slow = GET.replace(b"/page", b"/slow")
    with serving(limited, most=60) as served:
        held = [served.connect(slow) for _ in range(60)]
        until(lambda: application.statuses.get(503) == 60 - places(4))
        assert application.slow == places(4)
        reply = served.client.get("/page")
        assert reply.status_code == 503
        assert reply.json() == {"detail": "the server has no place left; try again later"}
        assert reply.headers["retry-after"] == "1"
        for path in ("/health", "/metrics"):
            assert served.client.get(path).status_code == 200
        application.let_go()
        until(lambda: served.client.get("/page").status_code == 200)
        close(held)


def test_more_connections_than_places_and_reserve_are_closed(serving, application):
    slow = GET.replace(b"/page", b"/slow")
    with serving(application, most=10) as served:
        held = [served.connect(slow) for _ in range(42)]
        until(lambda: application.slow == 42)  # 10 and the reserve
        held += [served.connect(slow) for _ in range(3)]
        until(lambda: served.closed.get("too many") == 3)
        close(held)
        application.let_go()
        until(lambda: served.connections.num_open == 0)
        assert served.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        b"hello\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        GET + b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    ],
)
def test_what_is_no_http_is_400_without_a_traceback(serving, limited, text, caplog):
    with serving(limited) as served:
        answer = served.raw(text)
        assert b"HTTP/1.1 400" in answer
        assert served.client.get("/page").status_code == 200
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
