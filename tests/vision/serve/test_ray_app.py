"""The Ray Serve application on a local Ray: the predictor's answers over separate deployments."""

import asyncio
import io
import json
import shutil
import socket
from dataclasses import replace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from vision.errors import RunError
from vision.prediction.predictor import Predictor
from vision.run import load_run, load_run_data


@pytest.fixture(scope="module", autouse=True)
def ray():
    """Imported when it is needed: that takes seconds."""
    return pytest.importorskip("ray", reason="the optional extra `scale` is not installed")


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The tiny run cut down to two experts, both of them selected: each is a process of its own."""
    folder = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(trained, folder)
    path = folder / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["recipe"]["num_experts"] = 2
    weights = content["state_dict"]
    for name in [name for name in weights if name.startswith("networks.team.experts.2.")]:
        del weights[name]
    for name in ("networks.team.delegator.head.2.weight", "networks.team.delegator.head.2.bias"):
        weights[name] = weights[name][:12].clone()
        weights[name][10] = torch.randn(weights[name][10].shape, generator=torch.manual_seed(0))
        weights[name][11] = -weights[name][10]
    torch.save(content, path)
    pixels = load_run_data(load_run(folder)).test
    pixels = torch.stack([pixels[i]["image"] for i in range(12)])
    networks = load_run(folder).networks
    with torch.no_grad():
        selection = networks.team.delegate(networks.prepare(pixels))[1]
    weights["networks.team.delegator.head.2.bias"][10] -= (
        selection[:, 0] - selection[:, 1]
    ).median()
    torch.save(content, path)
    changed = load_run(folder)  # the stored thresholds are those of other weights: taken over
    for point in list(changed.operating_points.values()):
        kept = {"CoE": replace(point, fitted_with=changed.fitted_with())}
        changed.store(point.name, kept, changed.stored.choices[point.name])
    changed.store_curves({"CoE": replace(changed.curve, fitted_with=changed.fitted_with())})
    return folder


def test_the_run_of_these_tests_is_whole(run):
    assert Predictor(run).resolve("half").name == "half"


@pytest.fixture(scope="module")
def images(run):
    data = load_run_data(load_run(run)).test
    files = [io.BytesIO() for _ in range(12)]
    for i, file in enumerate(files):
        Image.fromarray(data[i]["image"][0].numpy()).save(file, "png")
    return [file.getvalue() for file in files]


@pytest.fixture(scope="module")
def application(ray, run):
    from ray import serve

    from vision.serve.ray_app import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local", num_cpus=8, include_dashboard=False, log_to_driver=False,
            _node_ip_address="127.0.0.1", object_store_memory=80 * 2**20,
        )  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            serve.run(build({"run": str(run), "num_cpus": "0.1", "max_bytes": 20_000}), name="team")
            yield serve, f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.mark.slow
def test_the_predictors_answers_and_refusals(application, run, images):
    serve, address = application
    handle = serve.get_app_handle("team")
    predictor = Predictor(run)
    seen = set()
    for threshold in (0.0, 2.0):
        asked = [handle.predict.remote(image, threshold=threshold) for image in images]
        expected = predictor(images, threshold=threshold)
        for reply, wanted in zip(asked, expected, strict=True):
            answer = reply.result(timeout_s=60)
            assert (answer.label, answer.exited, answer.expert) == (
                wanted.label,
                wanted.exited,
                wanted.expert,
            )
            assert answer.macs == wanted.macs
            assert answer.probabilities == pytest.approx(wanted.probabilities, abs=1e-4)
            seen.add(answer.expert)
    assert seen == {None, 0, 1}
    status = serve.status().applications["team"].deployments
    assert set(status) == {"ingress", "delegator", "expert_0", "expert_1"}
    reply = httpx.post(address, content=images[0], params={"budget": "half"}, timeout=60)
    assert reply.json()["budget"] == "half"
    for content, parameters, status, message in [
        (b"nothing", {}, 422, "cannot read the image in the body"),
        (b"", {}, 422, "the body is empty"),
        (b"x" * 30_000, {}, 413, "a body has its length, of at most 20,000 bytes"),
        (
            images[0],
            {"budget": "bset"},
            400,
            "run has no operating point 'bset' of CoE; stored: best",
        ),
        (images[0], {"threshold": "high"}, 422, "threshold: Input should be a valid number"),
    ]:
        reply = httpx.post(address, content=content, params=parameters, timeout=60)
        assert (reply.status_code, message in reply.json()["detail"]) == (status, True)


class Fake:
    """A deployment's handle that gives one answer."""

    def __init__(self, answer):
        self.answer = answer

    async def remote(self, pixels):
        return self.answer


def test_the_ingress_answers_and_refuses_without_a_cluster(trained):
    from starlette.requests import Request

    from vision.serve.ray_app import Ingress, Rough

    selection = np.array([0, 1, 0], dtype=np.float32)
    rough = Rough(np.arange(10, dtype=np.float32), selection, None)  # confidence 0.63
    experts = [Fake(-np.arange(10, dtype=np.float32)) for _ in range(3)]
    ingress = Ingress.func_or_class(
        str(trained),
        "CoE",
        Fake(rough),
        experts,
        max_pixels=2000,
        max_bytes=20_000,
        max_memory=15_000,
    )
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "png")
    large, larger = io.BytesIO(), io.BytesIO()
    Image.new("L", (40, 50)).save(large, "png")
    Image.new("RGBA", (40, 45)).save(larger, "png")

    def ask(content, query="", **headers):
        async def receive():
            return {"type": "http.request", "body": content, "more_body": False}

        headers = {"content-length": str(len(content)), **headers}
        scope = {
            "type": "http", "method": "POST", "path": "/", "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        reply = asyncio.run(ingress(Request(scope, receive)))
        return reply.status_code, json.loads(reply.body)

    status, answer = ask(file.getvalue(), "threshold=0")
    assert (status, answer["exited"], answer["label"]) == (200, True, ingress.classes[9])
    status, answer = ask(file.getvalue(), "threshold=0.7")
    assert (status, answer["expert"], answer["label"]) == (200, 1, ingress.classes[0])
    assert ask(large.getvalue())[0] == 200
    experts[1].answer = experts[1].answer * np.nan
    status, answer = ask(file.getvalue(), "threshold=0.7")
    assert (status, answer["detail"][:43]) == (500, "the prediction failed: expert 1 or the dele")
    for content, query, status, message in [
        (larger.getvalue(), "", 413, "the image is too large: it needs about "),
        (b"nothing", "", 422, "cannot read the image in the body"),
        (
            file.getvalue(),
            "budjet=half",
            400,
            "unknown parameter 'budjet'; known: budget, threshold",
        ),
        (file.getvalue(), "budget=bset", 400, "no operating point 'bset'"),
        (file.getvalue(), "threshold=x", 422, "threshold: Input should be a valid number"),
        (b"x" * 20_001, "", 413, "a body has its length, of at most 20,000 bytes"),
    ]:
        answered, answer = ask(content, query)
        assert (answered, message in answer["detail"]) == (status, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "run=FOLDER is missing; known: run, delegator_replicas"),
        ({"run": "x", "replicas": 2}, "unknown argument 'replicas'; known: run, "),
        ({"run": "nothing"}, "there is no checkpoint nothing"),
    ],
)
def test_refused(arguments, message):
    from vision.serve.ray_app import build

    with pytest.raises(RunError, match=message):
        build(arguments)
