"""Whose requests are taken: host names, pages of other sites, headers of answers, and what went wrong."""

import asyncio

import httpx
import pytest

from coe_core.serving.guard import Guard, LastResort
from coe_core.serving.limits import QuietLog, printable_text, refusals


async def hello(scope, receive, send):
    if scope["path"] == "/broken":
        raise RuntimeError("secret")
    headers = [(b"content-security-policy", b"own")] * (scope["path"] == "/page")
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["method"].encode()})


def ask(method="POST", host="127.0.0.1:8000", names=(), path="/predict", **headers):
    statuses = []
    app = LastResort(Guard(hello, host_names=names), count=statuses.append)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def call():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers={"host": host, **headers})

    reply = asyncio.run(call())
    assert statuses == [reply.status_code]
    return reply


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("localhost", ()),
        ("LOCALHOST.:80", ()),
        ("127.0.0.1:8000", ()),
        ("10.1.2.3", ()),
        ("[::1]:8000", ()),
        ("[fe80::1]", ()),
        ("Server.lan:1", ("server.LAN",)),
        ("anything", ("*",)),
        ("anything", None),
        ("", ()),
    ],
)
def test_host_names_that_are_ours(host, names):
    assert ask(host=host, names=names).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost, evil",
        "[::1",
        "a@b",
        "127.1",
        ":80",
        "\xe9",
        "x" * 300,
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_other_host_names_are_refused(host, method):
    reply = ask(method, host.encode("latin-1"), ("server.lan",))
    assert reply.status_code == 400
    if method != "HEAD":
        assert reply.json()["detail"].startswith("this server has no name '")
        assert reply.json()["detail"].endswith("`--host-names` gives it one")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "http://[::1"},
        {"origin": "https://127.0.0.1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:8000"},
        {"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:9000"},
        {"sec_fetch_site": "cross-site", "content_type": "multipart/form-data; boundary=x"},
    ],
)
def test_pages_of_other_sites_cannot_spend_the_server(headers):
    for method in ("POST", "PUT", "DELETE"):
        reply = ask(method, **headers)
        assert reply.status_code == 403
        assert reply.json() == {"detail": "pages of other sites may not use this server"}


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("127.0.0.1:8000", {}),  # no browser
        ("127.0.0.1:8000", {"origin": "http://127.0.0.1:8000"}),
        ("127.0.0.1", {"origin": "http://127.0.0.1"}),
        ("127.0.0.1:80", {"origin": "http://127.0.0.1"}),
        ("coe.example", {"origin": "https://coe.example"}),
        ("127.0.0.1:8000", {"origin": "https://coe.example"}),  # a proxy that names its own address
        ("127.0.0.1:8000", {"sec_fetch_site": "same-origin", "origin": "http://127.0.0.1:8000"}),
        ("127.0.0.1:8000", {"sec_fetch_site": "none"}),
        ("127.0.0.1:8000", {"sec_fetch_site": "same-site", "origin": "https://coe.example"}),
    ],
)
def test_our_own_pages_and_programs_may(host, headers):
    assert ask(host=host, names=("coe.example",), **headers).status_code == 200


def test_links_from_elsewhere_may_be_followed():
    assert ask("GET", sec_fetch_site="cross-site").status_code == 200


def test_head_is_get_without_a_body():
    reply = ask("HEAD")
    assert (reply.status_code, reply.content) == (200, b"")


def test_every_answer_has_the_headers():
    for reply in (ask(), ask(path="/page"), ask(host="evil"), ask(path="/broken")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["referrer-policy"] == "no-referrer"
    assert ask().headers["content-security-policy"].startswith("default-src 'none'")
    assert ask(path="/page").headers["content-security-policy"] == "own"


def test_an_error_of_ours_is_500_and_says_nothing_of_itself(caplog):
    reply = ask(path="/broken")
    assert reply.status_code == 500
    assert reply.json() == {"detail": "the server failed; its log has why"}
    assert "secret" in caplog.text


def test_refusals_cannot_fill_the_log(caplog):
    quiet = QuietLog(seconds=1000)
    for _ in range(50):
        quiet.told(429, "full\r\nforged line")
    quiet.told(413, "large")
    quiet.seconds = 0
    quiet.told(429, "full")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "refused with 429: full\\r\\nforged line",
        "refused with 413: large",
        "refused with 429: full (and 49 others since the last line)",
    ]
    assert refusals.seconds == 1


def test_printable():
    assert printable_text("a\x1b[31m\u202e\udcff é 猫") == "a\\x1b[31m\\u202e\\udcff é 猫"
    assert printable_text("x" * 300) == "x" * 199 + "…"
