"""The server as clients meet it: answers, refusals, limits, slow and vanishing clients, metrics, drift."""

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from vision.errors import RunError
from vision.prediction.predictor import Predictor
from vision.run import load_run, load_run_data
from vision.serve.app import ServerSettings, create_app
from vision.serve.limits import ImpatientProtocol
from vision.serve.metrics import ExitRateDrift


def png(pixels, size=None) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image if size is None else image.resize(size)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def images(trained):
    data = load_run_data(load_run(trained)).test
    return [png(data[i]["image"][0].numpy()) for i in range(24)]


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained, max_pixels=10_000)


class Impatient(ImpatientProtocol):
    header_seconds = 0.3


class Served:
    """A server in a thread of this process, on a free port."""

    def __init__(self, predictor, settings):
        self.app = create_app(predictor, settings)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        config = uvicorn.Config(self.app, http=Impatient, log_level="critical", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))

    def __enter__(self):
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


SETTINGS = ServerSettings(max_bytes=20_000, body_seconds=0.3, max_batch=8, window=0.005)


@pytest.fixture(scope="module")
def served(predictor):
    with Served(predictor, SETTINGS) as served:
        yield served


def ask(served, content, **parameters):
    return served.client.post("/predict", content=content, params=parameters)


def test_answers_equal_the_predictor(served, predictor, images):
    for threshold in (0.0, 0.3, 2.0):
        expected = predictor(images, threshold=threshold)
        for content, one in zip(images, expected, strict=True):
            reply = ask(served, content, threshold=threshold)
            assert reply.status_code == 200
            found = reply.json()
            assert found["label"] == one.label
            assert found["probability"] == pytest.approx(one.probability, abs=1e-4)
            assert found["exited"] == one.exited
            assert found["expert"] == one.expert
            assert found["confidence"] == pytest.approx(one.confidence, abs=1e-4)
            assert found["rough_label"] == one.rough_label
            assert found["macs"] == one.macs
            assert found["threshold"] == threshold
            assert found["milliseconds"] > 0
            assert found["top"][0]["label"] == one.label
            assert len(found["top"]) == 5


def test_a_budget_for_each_request(served, predictor, images):
    for budget in ("half", "drop", "1G"):
        found = ask(served, images[0], budget=budget).json()
        assert found["budget"] == budget
        threshold = predictor.resolve(budget).threshold
        assert found["threshold"] == (None if threshold == np.inf else threshold)
    assert ask(served, images[0]).json()["budget"] == "best"
    never = ask(served, images[0], threshold="inf").json()
    assert never["threshold"] is None
    assert not never["exited"]


def test_a_form_works_as_well(served, images):
    reply = served.client.post("/predict", files={"image": ("a.png", images[0], "image/png")})
    assert reply.json()["label"] == ask(served, images[0]).json()["label"]


def test_requests_at_once_share_batches_and_get_their_own_answers(served, predictor, images):
    limits = [0.0, 2.0] * 12
    expected = [predictor(i, threshold=t)[0] for i, t in zip(images, limits, strict=True)]
    found = [None] * 24

    def work(i):
        found[i] = ask(served, images[i], threshold=limits[i]).json()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f["exited"] for f in found] == [True, False] * 12
    assert [f["label"] for f in found] == [one.label for one in expected]
    metrics = served.client.get("/metrics").text
    batches = float(re.search(r"^coe_batch_images_count (\S+)", metrics, re.M)[1])
    predicted = float(re.search(r"^coe_batch_images_sum (\S+)", metrics, re.M)[1])
    assert batches < predicted


@pytest.mark.parametrize(
    ("content", "parameters", "status", "message"),
    [
        (b"not an image", {}, 422, "cannot read the image in the body: UnidentifiedImageError"),
        (b"", {}, 422, "the body is empty: send the image file in it"),
        ("CUT", {}, 422, "cannot read the image in the body: "),
        ("BOMB", {}, 422, "200 x 100 pixels, above the limit of 10000"),
        ("LARGE", {}, 413, "the body may have 20,000 bytes, this one has 20,001"),
        ("IMAGE", {"budget": "bset"}, 400, "run has no operating point 'bset'; stored: best, drop"),
        ("IMAGE", {"budget": "1k"}, 400, "1000 is below the delegator's own"),
        ("IMAGE", {"budget": "best", "threshold": 1}, 400, "a budget or a threshold, not both"),
        ("IMAGE", {"threshold": -1}, 400, "threshold must be at least 0, got -1"),
        ("IMAGE", {"threshold": "nan"}, 400, "threshold must be at least 0, got nan"),
        ("IMAGE", {"threshold": "high"}, 422, "Input should be a valid number"),
    ],
)
def test_refused_with_a_reason(served, images, content, parameters, status, message):
    bomb = png(np.zeros((100, 200), np.uint8))
    content = {
        "CUT": images[0][:50],
        "BOMB": bomb,
        "LARGE": b"x" * 20_001,
        "IMAGE": images[0],
    }.get(content, content)
    reply = ask(served, content, **parameters)
    assert reply.status_code == status
    assert message in json.dumps(reply.json()["detail"], ensure_ascii=False)
    assert ask(served, images[0]).status_code == 200  # the next client is none the worse


def test_forms_that_are_refused(served, images):
    for files, data in [({"picture": images[0]}, {}), (None, {"image": "text"})]:
        reply = served.client.post("/predict", files=files, data=data)
        assert reply.status_code == 422
    reply = served.client.post("/predict", files={"picture": images[0]})
    assert reply.json()["detail"] == "the form has no file field `image`"
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert served.client.post("/predict", content=b"--y", headers=broken).status_code == 400
    assert served.client.get("/predict").status_code == 405
    assert served.client.get("/nothing").status_code == 404


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1", "I;16"])
def test_any_channels_are_converted(served, mode):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    image = Image.new(mode, (8, 8)) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, "tiff")
    assert ask(served, file.getvalue()).status_code == 200


def test_a_large_body_of_unknown_length(served):
    reply = served.client.post("/predict", content=(b"x" * 1000 for _ in range(30)))
    assert reply.status_code == 413
    assert reply.json()["detail"] == "the body may have 20,000 bytes, this one has more"


def raw(served, text: bytes) -> bytes:
    """All that the server answers to bytes after which nothing comes."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(text)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_slow_clients_are_cut_off(served, images):
    head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf"
    answer = raw(served, head)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not arrive within 0.3 s" in answer
    assert raw(served, b"POST /pre") == b""  # the header never ends: closed
    assert raw(served, b"") == b""  # nothing is said
    assert ask(served, images[0]).status_code == 200


def test_what_is_no_http_is_refused(served):
    assert raw(served, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400")


class Gate:
    """A predictor that waits until it is let go, and tells how many images it was given."""

    def __init__(self, predictor):
        self.predictor, self.go, self.begun = predictor, threading.Event(), threading.Event()
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def predict_pixels(self, pixels, budgets):
        self.begun.set()
        assert self.go.wait(20)
        self.seen.append(len(pixels))
        return self.predictor.predict_pixels(pixels, budgets)


def test_more_than_may_be_in_work_get_429_and_nothing_grows(predictor, images):
    gate = Gate(predictor)
    with Served(gate, ServerSettings(max_requests=3, max_batch=1)) as served:
        replies = []
        threads = [
            threading.Thread(target=lambda: replies.append(ask(served, images[0])))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        assert gate.begun.wait(20)
        refused = []
        while not refused or refused[-1].status_code != 429:  # until the three are in
            refused.append(served.client.post("/predict", content=b"", timeout=20))
        assert "3 requests are in work already; try again later" in refused[-1].text
        assert refused[-1].headers["retry-after"] == "1"
        assert served.client.get("/health").json()["queue"] <= 3  # it still answers
        gate.go.set()
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200] * 3
        assert ask(served, images[0]).status_code == 200
        assert 'coe_requests_total{status="429"}' in served.client.get("/metrics").text


def test_a_client_that_leaves_frees_its_place_and_its_image_is_not_predicted(predictor, images):
    gate = Gate(predictor)
    with Served(gate, ServerSettings(max_requests=2, max_batch=1, window=0)) as served:
        first = threading.Thread(target=lambda: ask(served, images[0]))
        first.start()
        assert gate.begun.wait(20)
        head = f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: {len(images[1])}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", served.port)) as leaving:
            leaving.sendall(head.encode() + images[1])
            while served.client.get("/health").json()["queue"] < 1:
                pass
            assert ask(served, images[2]).status_code == 429
        text = ""
        while 'coe_requests_total{status="499"}' not in text:  # until it is noticed
            text = served.client.get("/metrics").text
        gate.go.set()
        first.join()
        assert ask(served, images[2]).status_code == 200
    assert gate.seen == [1, 1]  # the first and the last


def test_an_error_of_ours_is_500_and_the_server_goes_on(predictor, images):
    class Broken(Gate):
        def predict_pixels(self, pixels, budgets):
            if not self.seen:
                self.seen.append(1)
                raise RuntimeError("out of memory")
            return self.predictor.predict_pixels(pixels, budgets)

    with Served(Broken(predictor), SETTINGS) as served:
        reply = ask(served, images[0])
        assert reply.status_code == 500
        assert reply.json()["detail"] == "the prediction failed; the server's log has why"
        assert ask(served, images[0]).status_code == 200


def test_run_health_and_pages(served, predictor, images):
    run = served.client.get("/run").json()
    assert run["classes"] == predictor.classes
    assert run["macs"] == {"delegator": predictor.macs.delegator, "experts": predictor.macs.experts}
    assert set(run["operating_points"]) == {"best", "drop", "half"}
    assert run["curve"] == predictor.run.curve.to_dict()
    assert run["default"]["name"] == "best"
    assert served.client.get("/health").json()["status"] == "ok"
    for path in ("/", "/docs"):
        page = served.client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        links = re.findall(r"""(?:src|href)=["']([^"']+)|url\(|@import""", page.text)
        assert links
        assert not [link for link in links if "//" in link]  # nothing from elsewhere


def test_openapi(served):
    api = served.client.get("/openapi.json").json()
    post = api["paths"]["/predict"]["post"]
    assert {p["name"] for p in post["parameters"]} == {"budget", "threshold"}
    assert {"image/*", "multipart/form-data"} == set(post["requestBody"]["content"])
    assert {"200", "400", "408", "413", "422", "429"} <= set(post["responses"])
    assert {"/health", "/metrics", "/run"} <= set(api["paths"])


def test_metrics_count_routes_and_macs(predictor, images):
    with Served(predictor, SETTINGS) as served:
        spent = 0
        for content in images[:6]:
            spent += ask(served, content, threshold=2.0).json()["macs"]
            spent += ask(served, content, threshold=0.0).json()["macs"]
        ask(served, b"nothing")
        text = served.client.get("/metrics").text
        values = dict(re.findall(r"^(coe_\S+) (\S+)$", text, re.M))
        assert float(values['coe_images_total{route="exit"}']) == 6
        experts = [float(values[f'coe_images_total{{route="expert_{j}"}}']) for j in range(3)]
        assert sum(experts) == 6
        assert float(values["coe_macs_total"]) == spent
        assert float(values['coe_requests_total{status="200"}']) == 12
        assert float(values['coe_requests_total{status="422"}']) == 1
        assert float(values["coe_request_seconds_count"]) == 12
        assert float(values["coe_exit_rate_live"]) == 0.5
        assert float(values["coe_exit_rate_expected"]) == 0.5  # none at 2, all at 0
        drift = served.client.get("/health").json()["drift"]
        assert drift["num_images"] == 12
        assert drift["drifted"] is False


# drift


def drifted(rate, expected, n=1000, num_calibration=1000):
    drift = ExitRateDrift()
    random = np.random.default_rng(0)
    for exited in random.random(n) < rate:
        drift.add(bool(exited), expected, num_calibration)
    return drift.report()


def test_drift_by_hand():
    drift = ExitRateDrift()
    for i in range(100):
        drift.add(i < 70, 0.5, 100)
    report = drift.report()
    assert (report.live, report.expected) == (0.7, 0.5)
    # sqrt(.25 (1/100 + 1/100)) = 0.0707
    assert report.standard_errors == pytest.approx(0.2 / 0.0707, rel=1e-3)
    assert not report.drifted


def test_drift_is_told_and_chance_is_not():
    assert drifted(0.5, 0.3).drifted
    assert drifted(0.1, 0.3).drifted
    assert not drifted(0.3, 0.3).drifted
    assert not drifted(0.5, 0.3, n=50).drifted  # too few to judge
    assert drifted(0.1, 0.0).drifted
    assert not drifted(0.0, 0.0).drifted
    assert ExitRateDrift().report().live is None


def test_drift_forgets():
    drift = ExitRateDrift(window=200)
    for exited in [True] * 500 + [False] * 200:
        drift.add(exited, 0.0, 100)
    assert drift.report().live == 0


# the command


def test_a_run_without_calibration(trained, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(RunError, match="stored: none; run `coe-vision calibrate` first"):
        create_app(Predictor(tmp_path))


def test_refused_before_anything_is_loaded(cli, trained, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in [
            ([trained, "--port", port], f"cannot listen on 127.0.0.1:{port}: "),
            ([trained, "--port", 0, "--max-requests", 0], "--max-requests must be at least 1"),
            (
                [trained, "--port", 0, "--max-bytes", "much"],
                "'much' is no size such as 500k or 10M",
            ),
            ([trained, "--port", 0, "--window", -1], "--window must be at least 0"),
            ([trained, "--port", 0, "--at", "bset"], "no operating point 'bset'; stored: best"),
            (["nothing", "--port", 0], "there is no checkpoint nothing"),
        ]:
            assert cli("serve", *arguments) == 2
            assert message in capsys.readouterr().err


def test_the_command_serves_and_stops(trained, images):
    command = [sys.executable, "-m", "vision", "serve", str(trained), "--port", "0", "--at", "half"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = re.search(r"at (http://127\.0\.0\.1:\d+)", line)[1]
        reply = httpx.post(f"{address}/predict", content=images[0], timeout=30)
        assert reply.json()["budget"] == "half"
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        errors = process.communicate()[1]
    assert "Traceback" not in errors
