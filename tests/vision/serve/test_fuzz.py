"""Whatever a client sends, it gets an answer that blames it, or none; and the next one is none the worse."""

import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vision.serve.app import ServerSettings, create_app

ALLOWED = {200, 400, 403, 404, 405, 408, 413, 422, 429, 499, 503}
TYPES = [
    "image/png",
    "multipart/form-data; boundary=x",
    'Multipart/Form-Data;BOUNDARY="x"',
    "text/html",
]
TYPES += [
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=x; charset=q",
]
TYPES += ["application/x-www-form-urlencoded", "multipart/form-data; boundary=" + "y" * 300]  # fmt: skip
PARTS = [
    b"--x",
    b"--x--",
    b"\r\n",
    b'Content-Disposition: form-data; name="image"; filename="a.png"',
]
PARTS += [b'content-disposition: form-data; name="image"', b"Content-Type: image/png", b"\xff\xfe"]
PARTS += [b"Content-Disposition: form-data; filename*=utf-8''%ff%00; name=image", b": :", b"\0"]

NAMES = [
    "Origin",
    "Sec-Fetch-Site",
    "Host",
    "Content-Length",
    "Transfer-Encoding",
    "Expect",
    "Range",
]
NAMES += ["Upgrade", "Connection", "Accept", "Content-Encoding", "Content-Type"]

words = st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x21), max_size=12)
queries = st.sampled_from(["", "budget=best", "threshold=0.5"]) | st.lists(
    st.tuples(
        st.sampled_from(["budget", "threshold", "bugdet", ""]) | words,
        st.sampled_from(["best", "100M", "1e999", "nan", "-0", "inf", "%ff", "%00", "60%", "0.5"])
        | words,
    ),
    max_size=3,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
headers = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(["chunked", "0", "-1", "9" * 30, "100-continue", "gzip", "websocket"])
        | words,
    ),
    max_size=3,
)
forms = st.lists(st.sampled_from(PARTS) | st.binary(max_size=30), max_size=10).map(b"\r\n".join)


@st.composite
def images_cut_up(draw, content):
    """An image with some of its bytes changed, or a part of it."""
    if draw(st.booleans()):
        return content
    content = bytearray(content[: draw(st.integers(0, len(content)))])
    for _ in range(draw(st.integers(0, 4)) if content else 0):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@st.composite
def requests(draw, image):
    """The bytes of a request that is almost one."""
    method = draw(
        st.sampled_from(["POST"] * 20 + ["GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "X"])
    )
    path = draw(st.sampled_from(["/predict"] * 20 + ["/", "/health", "/run", "*", "//", "/%ff"]))
    body = draw(images_cut_up(image) | images_cut_up(image) | forms | st.binary(max_size=100))
    lines = [f"{method} {path}?{draw(queries)} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines.append(f"Content-Type: {draw(st.sampled_from(TYPES))}")
    length = len(body) + draw(st.sampled_from([0] * 8 + [-1, 1, 30_000]))
    if draw(st.booleans()):
        lines.append(f"Content-Length: {max(0, length)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        body = f"{max(0, length):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    lines += [f"{name}: {value}" for name, value in draw(st.just([]) | headers)]
    text = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 19)) == 19 else text


def whole_request(image: bytes) -> bytes:
    """One that is answered, so that it is not left to chance whether any is."""
    lines = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += ["Content-Type: image/png", f"Content-Length: {len(image)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + image


@pytest.fixture(scope="module")
def served(serving, predictor):
    limits = ServerSettings(max_bytes=20_000, body_seconds=0.05, window=0, host_names=())
    quick = {"header": 0.05, "left_over": 0.05, "idle": 0.05}
    with serving(create_app(predictor, limits), **quick) as served:
        yield served


@pytest.mark.fuzz
def test_any_bytes(served, images, caplog):
    seen = Counter()

    @settings(
        max_examples=max(120, settings.default.max_examples),
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(images[0]))
    @example(whole_request(images[0]))
    def check(text):
        answer = served.raw(text)
        statuses = {int(status) for status in re.findall(rb"HTTP/1\.1 ([2-9]\d\d)", answer)}
        assert statuses <= ALLOWED
        assert b"Traceback" not in answer
        seen.update(statuses or {0})

    check()
    assert not [record for record in caplog.records if record.exc_info]
    assert served.client.post("/predict", content=images[0]).status_code == 200
    assert served.client.get("/health").json()["status"] == "ok"
    print(dict(seen))
    assert {200, 400, 422} <= set(seen)
