"""Translations over HTTP: those of the translator, at any budget, with a reason where there are none."""

import math
import threading

import pytest

from coe_core.serving.app import ServerSettings
from translation.serve.app import create_app

TEXT = "eins Meter. Zwei Tage und drei Euro.\n\nVier Jahre!"


@pytest.fixture(scope="module")
def served(serving, translator):
    settings = ServerSettings(max_batch=60, window=0.001, max_bytes=20_000, host_names=())
    with serving(create_app(translator, settings, max_sentences=40)) as served:
        yield served


def ask(served, **question):
    return served.client.post("/translate", json=question)


def test_a_text_in_sentences(served, translator):
    reply = ask(served, text=TEXT).json()
    sources = ["eins Meter.", "Zwei Tage und drei Euro.", "", "Vier Jahre!"]
    expected = translator(sources)
    assert [s["source"] for s in reply["sentences"]] == sources
    assert [s["text"] for s in reply["sentences"]] == [t.text for t in expected]
    first, second, empty, last = (t.text for t in expected)
    assert reply["text"] == f"{first} {second}\n{empty}\n{last}"
    assert [s["route"] for s in reply["sentences"]] == [t.route for t in expected]
    assert reply["macs"] == pytest.approx(sum(t.macs for t in expected))
    assert (reply["budget"], reply["system"]) == ("best", "CoE")


def test_a_list_is_taken_as_it_is_and_each_request_has_its_budget(served, translator, corpus):
    lines = (corpus.text / "test.de").read_text(encoding="utf-8").split("\n")[:8]
    for wanted in ({"threshold": 0.0}, {"threshold": "inf"}, {"budget": "70%"}, {"budget": "80%"}):
        reply = ask(served, texts=lines, **wanted).json()
        setting = dict(wanted)
        if "threshold" in setting:
            setting["threshold"] = float(setting["threshold"])
        expected = translator(lines, **setting)
        assert [(s["text"], s["route"]) for s in reply["sentences"]] == [
            (t.text, t.route) for t in expected
        ]
        for sentence, one in zip(reply["sentences"], expected, strict=True):
            assert sentence["exited"] == one.exited
            if math.isnan(one.confidence):
                assert sentence["confidence"] is None
            else:
                assert sentence["confidence"] == pytest.approx(one.confidence, abs=1e-5)
    assert reply["threshold"] == pytest.approx(translator.resolve("80%").threshold)


def test_other_systems_and_hypotheses(served, translator):
    reply = ask(served, texts=["zwei Tage"], system="single:expert-alone", nbest=2).json()
    (expected,) = translator(["zwei Tage"], system="single:expert-alone", nbest=2)
    assert reply["sentences"][0]["hypotheses"] == list(expected.hypotheses)
    assert reply["sentences"][0]["route"] == "expert-alone"
    assert ask(served, texts=[]).json()["sentences"] == []


def test_an_over_long_sentence_is_cut_and_told(served):
    (sentence,) = ask(served, texts=["eins Meter und " * 60]).json()["sentences"]
    assert sentence["cut"] > 0
    assert sentence["text"]


@pytest.mark.parametrize(
    ("question", "status", "message"),
    [
        ({}, 422, "give text, or a list texts"),
        ({"text": "a", "texts": ["b"]}, 422, "give text, or a list texts"),
        ({"text": 3}, 422, "text: Input should be a valid string, got 3"),
        ({"texts": ["a", None]}, 422, "Input should be a valid string, got None"),
        ({"text": "a", "budgets": "x"}, 422, "budgets: Extra inputs are not permitted"),
        ({"text": "a", "budget": "fast"}, 400, "no operating point 'fast'; stored: best"),
        ({"text": "a", "budget": "1"}, 400, "1"),
        ({"text": "a", "budget": "best", "threshold": 0.5}, 400, "a budget or a threshold"),
        ({"text": "a", "threshold": "nan"}, 400, "outside the range of a probability"),
        ({"text": "a", "system": "x"}, 400, "no system 'x'; there are: CoE, cascade"),
        ({"text": "a", "nbest": 0}, 422, "nbest: Input should be greater than or equal to 1"),
        ({"text": "a", "nbest": 3}, 400, "nbest must be in [1, 2], the beam, got 3"),
        ({"texts": ["a"] * 41}, 413, "41 sentences, a request may have 40"),
        ({"text": "a" * 30_000}, 413, "the body may have 20,000 bytes"),
    ],
)
def test_refused_in_one_line(served, question, status, message):
    reply = ask(served, **question)
    assert reply.status_code == status
    assert message in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]


def test_what_is_no_question(served):
    post = served.client.post
    json = {"content-type": "application/json"}
    for reply, status, message in (
        (
            post("/translate", content=b"{", headers=json),
            422,
            "the body is not JSON: Expecting property name",
        ),
        (post("/translate", content=b"junk", headers=json), 422, "Expecting value, at character 0"),
        (
            post("/translate", content=b"[]", headers=json),
            422,
            "is no JSON object with Content-Type",
        ),
        (post("/translate", content=b"", headers=json), 422, "the body is empty"),
        (post("/translate", content=b'{"text": "a"}'), 422, "is no JSON object with Content-Type"),
        (
            post("/translate?budget=x", json={"text": "a"}),
            400,
            "unknown parameter 'budget'; known: none",
        ),
        (post("/translate", data={"text": "a"}), 422, ""),
        (post("/translate", json={"text": "a"}, headers={"host": "evil.example"}), 400, "no name"),
        (
            post("/translate", json={"text": "a"}, headers={"origin": "http://e.vil"}),
            403,
            "other sites",
        ),
        (served.client.get("/translate"), 405, ""),
    ):
        assert reply.status_code == status
        assert message in reply.json()["detail"]


def test_a_form_of_another_site_is_never_translated(served):
    before = served.client.get("/health").json()["predicted"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        body = b'{"text": "eins Meter"}'
        reply = served.client.post("/translate", content=body, headers={"content-type": kind})
        assert reply.status_code in (415, 422)
    assert served.client.get("/health").json()["predicted"] == before


def test_a_long_text_does_not_hold_up_a_short_one(serving, translator, monkeypatch):
    """The short text comes while the first batch of the long one runs, and is in the second."""
    batches, begun, go = [], threading.Event(), threading.Event()
    translate = translator.translate

    def watched(sentences, setting, **options):
        batches.append([sentence.size for sentence in sentences])
        begun.set()
        assert go.wait(20)
        return translate(sentences, setting, **options)

    monkeypatch.setattr(translator, "translate", watched)
    settings = ServerSettings(max_batch=60, window=0, host_names=())
    with serving(create_app(translator, settings)) as served:
        replies = {}

        def work(name, texts):
            replies[name] = ask(served, texts=texts).json()

        long = threading.Thread(target=work, args=("long", ["zwei Tage und drei Euro"] * 20))
        long.start()
        assert begun.wait(20)
        short = threading.Thread(target=work, args=("short", ["eins"]))
        short.start()
        while len(served.app.state.batcher) < 20 - len(batches[0]) + 1:
            pass
        go.set()
        short.join(20)
        long.join(20)
    size = translator.cut("eins").size
    assert [number for number, batch in enumerate(batches) if size in batch] == [1]
    assert len(batches) > 3
    assert len(replies["long"]["sentences"]) == 20


def test_reports(served, translator):
    ask(served, texts=["zwei Tage"], threshold=0.0)
    ask(served, texts=["zwei Tage"], threshold="inf")
    health = served.client.get("/health").json()
    assert health["status"] == "ok"
    assert health["drift"]["num_sentences"] > 0
    metrics = served.client.get("/metrics").text
    assert 'coe_sentences_total{route="exit"}' in metrics
    assert 'coe_sentences_total{route="expert_0"}' in metrics
    run = served.client.get("/run").json()
    assert run["systems"] == translator.engine.systems
    assert run["default"]["budget" if "budget" in run["default"] else "name"] == "best"
    assert len(run["curve"]["threshold"]) == len(run["curve"]["macs"])
    assert run["macs"]["experts"]
    page = served.client.get("/")
    assert "unsafe" not in page.headers["content-security-policy"]
    schema = served.client.get("/openapi.json").json()
    assert "/translate" in schema["paths"]


def test_a_translation_that_fails_is_500_and_health_tells(serving, translator, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(translator, "translate", broken)
    with serving(create_app(translator, ServerSettings(host_names=()))) as served:
        reply = ask(served, texts=["a", "b"])
        assert reply.status_code == 500
        assert "secret" not in reply.text
        assert served.client.get("/health").json()["status"] in ("degraded", "failing")
