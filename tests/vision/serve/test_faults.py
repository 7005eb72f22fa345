"""A predictor that hangs, fails or runs out of memory, clients that leave, and more than may be in work."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vision.prediction.predictor import Predictor
from vision.serve.app import ServerSettings, create_app

SETTINGS = ServerSettings(max_batch=8, window=0.005)


def ask(served, content, **parameters):
    return served.client.post("/predict", content=content, params=parameters)


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


def test_more_than_may_be_in_work_get_429_and_nothing_grows(serving, predictor, images):
    gate = Gate(predictor)
    with serving(create_app(gate, ServerSettings(max_requests=3, max_batch=1))) as served:
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


def test_a_client_that_leaves_frees_its_place_and_its_image_is_not_predicted(
    serving, predictor, images
):
    gate = Gate(predictor)
    with serving(create_app(gate, ServerSettings(max_requests=2, max_batch=1, window=0))) as served:
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


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Broken:
    """A predictor that raises while it is told to."""

    def __init__(self, predictor, error):
        self.predictor, self.error = predictor, error

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def predict_pixels(self, pixels, budgets):
        if self.error is not None:
            raise self.error
        return self.predictor.predict_pixels(pixels, budgets)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("odd"), MemoryError()])
def test_an_error_of_ours_is_500_and_health_tells(serving, predictor, images, error):
    broken = Broken(predictor, error)
    with serving(create_app(broken, SETTINGS)) as served:
        for _ in range(5):
            reply = ask(served, images[0])
            assert reply.status_code == 500
            assert reply.json()["detail"] == "the prediction failed; the server's log has why"
        health = served.client.get("/health")
        assert health.status_code == 503
        name = type(error).__name__
        assert health.json()["status"] == "failing"
        assert health.json()["reason"] == f"5 of the last 5 predictions failed, at last with {name}"
        assert served.client.head("/health").status_code == 503
        metrics = served.client.get("/metrics").text
        assert f'coe_failed_predictions_total{{error="{name}"}} 5.0' in metrics
        assert "coe_healthy 0.0" in metrics
        broken.error = None
        assert ask(served, images[0]).status_code == 200
        health = served.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert "coe_healthy 1.0" in served.client.get("/metrics").text


class Failing(torch.nn.Module):
    """An expert that raises, or answers with NaN."""

    def __init__(self, expert, raises):
        super().__init__()
        self.expert, self.raises = expert, raises

    def forward(self, images):
        if self.raises:
            raise RuntimeError("this expert is broken")
        return self.expert(images) * torch.nan


@pytest.fixture(scope="module")
def breakable(trained):
    return Predictor(trained)


@pytest.mark.parametrize("raises", [True, False])
def test_a_failing_expert_fails_its_own_images(
    serving, breakable, predictor, images, raises, monkeypatch
):
    thresholds = [2.0, 2.0, 0.0] * 8
    expected = [predictor(i, threshold=t)[0] for i, t in zip(images, thresholds, strict=True)]
    experts = [answer.expert for answer in expected if answer.expert is not None]
    failing = max(set(experts), key=experts.count)
    broken = Failing(predictor.networks.team.experts[failing], raises)
    monkeypatch.setitem(breakable.networks.team.experts._modules, str(failing), broken)
    settings = ServerSettings(max_batch=24, window=0.5)
    with serving(create_app(breakable, settings)) as served, ThreadPoolExecutor(24) as clients:
        work = [
            clients.submit(ask, served, image, threshold=threshold)
            for image, threshold in zip(images, thresholds, strict=True)
        ]
        for reply, answer in zip([request.result() for request in work], expected, strict=True):
            assert reply.status_code == (500 if answer.expert == failing else 200)
            if answer.expert != failing:
                assert reply.json()["label"] == answer.label
        health = served.client.get("/health").json()
        assert (health["predicted"], health["failed"]) == (24, experts.count(failing))


def test_a_prediction_that_hangs_is_504_the_next_503_and_the_server_recovers(
    serving, predictor, images
):
    gate = Gate(predictor)
    settings = ServerSettings(max_batch=1, predict_seconds=0.2)
    with serving(create_app(gate, settings)) as served:
        reply = ask(served, images[0])
        assert (reply.status_code, reply.json()["detail"]) == (504, "no prediction within 0.2 s")
        reply = ask(served, images[0])
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert "an earlier prediction has not returned within 0.2 s" in reply.json()["detail"]
        health = served.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "hung")
        gate.go.set()
        until(lambda: served.client.get("/health").json()["status"] != "hung")
        assert ask(served, images[0]).status_code == 200
        assert served.client.get("/health").status_code == 200


def test_a_dead_batcher_is_told(serving, predictor, images, caplog):
    app = create_app(predictor, SETTINGS)
    with serving(app) as served:
        app.state.batcher._take = lambda: 1 / 0
        reply = ask(served, images[0])
        assert reply.status_code == 503
        assert "nothing is predicted any more: the server must be restarted" in reply.text
        health = served.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "dead")
        assert ask(served, images[0]).status_code == 503
    assert "the batcher stopped: restart the server" in caplog.text


def test_a_client_that_sends_half_a_body_and_leaves_is_not_predicted(serving, predictor, images):
    gate = Gate(predictor)
    gate.go.set()
    app = create_app(gate, SETTINGS)
    head = f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: {len(images[0])}\r\n\r\n"
    with serving(app) as served:
        served.connect(head.encode() + images[0][:-10]).close()
        until(lambda: served.connections.num_open == 0)
        assert ask(served, images[0]).status_code == 200
        assert 'status="422"' not in served.client.get("/metrics").text
    assert gate.seen == [1]


def test_a_server_that_stops_answers_what_is_in_work(serving, predictor, images):
    gate = Gate(predictor)
    app = create_app(gate, SETTINGS)
    replies = []
    with serving(app) as served:
        client = threading.Thread(target=lambda: replies.append(ask(served, images[0])))
        client.start()
        assert gate.begun.wait(20)
        served.server.should_exit = True
        threading.Timer(0.3, gate.go.set).start()
        client.join()
    assert replies[0].status_code == 200
