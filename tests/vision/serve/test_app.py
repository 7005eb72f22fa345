"""The server as clients meet it: answers, refusals, limits, slow clients, pages, metrics."""

import io
import json
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from vision.prediction.predictor import Predictor
from vision.serve.app import ServerSettings, create_app

SETTINGS = ServerSettings(max_bytes=20_000, body_seconds=0.3, max_batch=8, window=0.005)


@pytest.fixture(scope="module")
def served(serving, predictor):
    with serving(create_app(predictor, SETTINGS)) as served:
        yield served


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def ask(served, content, **parameters):
    return served.client.post("/predict", content=content, params=parameters)


def test_answers_equal_the_predictor(served, predictor, images):
    for threshold in (0.0, 0.3, 2.0):
        expected = predictor(images, threshold=threshold)
        for content, prediction in zip(images, expected, strict=True):
            reply = ask(served, content, threshold=threshold)
            assert reply.status_code == 200
            answer = reply.json()
            assert answer["label"] == prediction.label
            assert answer["probability"] == pytest.approx(prediction.probability, abs=1e-4)
            assert answer["exited"] == prediction.exited
            assert answer["expert"] == prediction.expert
            assert answer["confidence"] == pytest.approx(prediction.confidence, abs=1e-4)
            assert answer["rough_label"] == prediction.rough_label
            assert answer["macs"] == prediction.macs
            assert answer["threshold"] == threshold
            assert answer["milliseconds"] > 0
            assert answer["top"][0]["label"] == prediction.label
            assert len(answer["top"]) == 5


def test_a_budget_for_each_request(served, predictor, images):
    for budget in ("half", "drop", "1G"):
        answer = ask(served, images[0], budget=budget).json()
        assert answer["budget"] == budget
        threshold = predictor.resolve(budget).threshold
        assert answer["threshold"] == (None if threshold == np.inf else threshold)
    assert ask(served, images[0]).json()["budget"] == "best"
    never = ask(served, images[0], threshold="inf").json()
    assert never["threshold"] is None
    assert not never["exited"]


def test_a_form_works_as_well(served, images):
    reply = served.client.post("/predict", files={"image": ("a.png", images[0], "image/png")})
    assert reply.json()["label"] == ask(served, images[0]).json()["label"]


@pytest.mark.parametrize(
    "kind", ["Multipart/Form-Data", "MULTIPART/FORM-DATA", "multipart/form-data "]
)
def test_content_types_in_any_case(served, images, kind):
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="\xc3\xa9.png"\r\n\r\n'
    body = head + images[0] + b"\r\n--x--\r\n"
    headers = {"content-type": f"{kind}; Boundary=x"}
    reply = served.client.post("/predict", content=body, headers=headers)
    assert reply.json()["label"] == ask(served, images[0]).json()["label"]
    broken = served.client.post("/predict", content=body.replace(b"PNG", b"xxx"), headers=headers)
    assert "cannot read the image é.png: " in broken.json()["detail"]


def test_head_is_answered_where_get_is(served):
    for path in ("/health", "/metrics", "/run", "/", "/docs"):
        head, get = served.client.head(path), served.client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert served.client.head("/predict").status_code == 405


def test_class_names_of_odd_letters(serving, trained, images):
    odd = Predictor(trained)
    names = [
        "<b>&amp;",
        "\udcff\udc80",
        "猫",
        "a\u202eb",
        "x" * 250,
        "é",
        '"',
        "\x1b[31m",
        "''",
        " ",
    ]
    odd.classes = odd.networks.classes = names
    shown = ["\\udcff\\udc80" if name.startswith("\udcff") else name for name in names]
    with serving(create_app(odd, SETTINGS)) as served:
        assert served.client.get("/run").json()["classes"] == shown
        reply = ask(served, images[0])
        assert reply.json()["label"] in shown
        assert set(entry["label"] for entry in reply.json()["top"]) <= set(shown)


def test_requests_at_once_share_batches_and_get_their_own_answers(served, predictor, images):
    limits = [0.0, 2.0] * 12
    expected = [predictor(i, threshold=t)[0] for i, t in zip(images, limits, strict=True)]
    answers = [None] * 24

    def work(i):
        answers[i] = ask(served, images[i], threshold=limits[i]).json()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [f["exited"] for f in answers] == [True, False] * 12
    assert [f["label"] for f in answers] == [prediction.label for prediction in expected]
    metrics = served.client.get("/metrics").text
    batches = float(re.search(r"^coe_batch_images_count (\S+)", metrics, re.M)[1])
    predicted = float(re.search(r"^coe_batch_images_sum (\S+)", metrics, re.M)[1])
    assert batches < predicted


@pytest.mark.parametrize(
    ("content", "parameters", "status", "message"),
    [
        (b"not an image", {}, 422, "cannot read the image in the body: cannot identify it"),
        (b"", {}, 422, "the body is empty: send the image file in it"),
        ("CUT", {}, 422, "cannot read the image in the body: "),
        ("BOMB", {}, 422, "200 x 100 pixels, above the limit of 10000"),
        ("LARGE", {}, 413, "the body may have 20,000 bytes, this one has 20,001"),
        ("IMAGE", {"budget": "bset"}, 400, "has no operating point 'bset'; stored: best, drop"),
        ("IMAGE", {"budget": "1k"}, 400, "1,000 is below that of every system; the cheapest that"),
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


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("budjet=half", "unknown parameter 'budjet'; known: budget, threshold; nearest: budget"),
        ("Threshold=1", "unknown parameter 'Threshold'; known: budget, threshold; nearest: thr"),
        ("x%0Ay=1", "unknown parameter 'x\\\\ny'; known: budget, threshold"),
        ("budget=half&budget=best", "parameter 'budget' is given 2 times"),
        ("budget=", "has no operating point ''; stored: best"),
        ("budget=%FF", "has no operating point '\ufffd'; stored: best"),
        ("budget=" + "9" * 5000, "is no amount"),
        ("budget=-5M", "'-5M'"),
        ("budget=101%25", "101% is more than what no exits cost; write at most 100%"),
        ("budget=0", "must be above 0"),
        ("threshold=-inf", "threshold must be at least 0, got -inf"),
        ("threshold=1&budget=half", "a budget or a threshold, not both"),
    ],
)
def test_parameters_that_are_refused_in_one_line(served, images, parameters, message):
    reply = served.client.post(f"/predict?{parameters}", content=images[0])
    assert reply.status_code == 400
    detail = reply.json()["detail"]
    assert message in detail
    assert "\n" not in detail
    assert str(served.app.state.service.predictor.run.folder.parent) not in detail


def test_absurd_thresholds_are_numbers_all_the_same(served, images):
    for threshold in ("1e999", "inf", "1e308", "0", "-0"):
        assert ask(served, images[0], threshold=threshold).status_code == 200


def test_forms_that_are_refused(served, images):
    for files, data in [({"picture": images[0]}, {}), (None, {"image": "text"})]:
        reply = served.client.post("/predict", files=files, data=data)
        assert reply.status_code == 422
    reply = served.client.post("/predict", files={"picture": images[0]})
    assert reply.json()["detail"] == "the form has no file field `image`"
    for kind in (
        "boundary=x",
        "boundary=",
        "",
        "boundary=x; charset=nonsense",
        "boundary=" + "x" * 999,
    ):
        broken = {"content-type": f"multipart/form-data; {kind}".strip()}
        for body in (b"--y", b"", b"--x\r\n", b"--x\r\n: \r\n\r\n--x--", b"--x\r\na: \xff\r\n\r\n"):
            reply = served.client.post("/predict", content=body, headers=broken)
            assert reply.status_code in (400, 422)
            assert reply.json()["detail"].startswith("the form")
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
    for size in (1000, 100_000):  # 3 MB: more than any buffer on the way holds
        reply = served.client.post("/predict", content=(b"x" * size for _ in range(30)))
        assert reply.status_code == 413
        assert reply.json()["detail"] == "the body may have 20,000 bytes, this one has more"


def test_who_waits_to_be_asked_for_a_large_body_is_refused_before(served):
    head = b"POST /predict HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 99999\r\n\r\n"
    assert served.raw(head).startswith(b"HTTP/1.1 413")


def test_slow_clients_are_cut_off(served, images):
    head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf"
    answer = served.raw(head)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not arrive within 0.3 s" in answer
    assert served.raw(b"POST /pre") == b""  # the header never ends: closed
    assert served.raw(b"") == b""  # nothing is said
    assert ask(served, images[0]).status_code == 200


def test_what_is_no_http_is_refused(served):
    assert served.raw(b"hello\r\n\r\n").startswith(b"HTTP/1.1 400")


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
        assert "default-src 'none'; script-src 'sha256-" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        links = re.findall(r"""(?:src|href)=["']([^"']+)|url\(|@import""", page.text)
        assert links
        assert not [link for link in links if "//" in link]  # nothing from elsewhere


def test_stored_points_that_vanish_are_those_the_server_began_with(
    serving, trained, images, tmp_path
):
    folder = shutil.copytree(trained, tmp_path / "run")
    with serving(create_app(Predictor(folder), SETTINGS)) as served:
        before = served.client.get("/run").json()
        shutil.rmtree(folder)
        for budget in ("best", "half", "100M"):
            assert ask(served, images[0], budget=budget).status_code == 200
        assert served.client.get("/run").json() == before
        assert str(tmp_path) not in ask(served, images[0], budget="bset").text


def test_openapi(served):
    api = served.client.get("/openapi.json").json()
    post = api["paths"]["/predict"]["post"]
    assert {p["name"] for p in post["parameters"]} == {"budget", "threshold"}
    assert {"image/*", "multipart/form-data"} == set(post["requestBody"]["content"])
    assert {"200", "400", "408", "413", "422", "429"} <= set(post["responses"])
    assert {"/health", "/metrics", "/run"} <= set(api["paths"])


def test_metrics_count_routes_and_macs(serving, predictor, images):
    with serving(create_app(predictor, SETTINGS)) as served:
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
