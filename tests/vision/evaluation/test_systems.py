"""The best system is what users get: on a run whose collaboration loses, in every command and program."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vision import Predictor, evaluate, export_run
from vision.errors import RunError
from vision.evaluation.predictions import predict_all
from vision.recipe_networks import run_macs
from vision.run import load_run, load_run_data
from vision.systems import build_system, systems_of

SINGLES = ("delegator", "expert")


@pytest.fixture(scope="module")
def losing(cli, trained, tmp_path_factory):
    """The tiny run with delegator and experts spoilt, calibrated."""
    folder = tmp_path_factory.mktemp("losing") / "run"
    shutil.copytree(trained, folder)
    checkpoint = folder / "checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    draw = torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if name.startswith("networks.team.") and name.endswith("weight"):
            order = torch.randperm(value.numel(), generator=draw)
            value.copy_(value.flatten()[order].view_as(value))
    torch.save(content, checkpoint)
    (folder / "operating_points.json").unlink()
    assert cli("calibrate", folder, "best", "accuracy_drop=5%", "macs=100%", "latency=1000") == 0
    return folder


@pytest.fixture(scope="module")
def winner(losing):
    """Name of the system that is deployed at best."""
    return load_run(losing).stored.deployed("best")


@pytest.fixture(scope="module")
def pixels(losing):
    data = load_run_data(load_run(losing)).test
    return [data[i]["image"][0].numpy() for i in range(20)]


def expected(losing, winner, pixels):
    """Labels of the deployed network itself."""
    networks = load_run(losing).networks
    control = networks.controls[winner.removeprefix("single:")]
    with torch.inference_mode():
        logits = control(networks.prepare(torch.from_numpy(np.stack(pixels))[:, None]))
    return [networks.classes[i] for i in logits.argmax(1).tolist()]


def test_the_deployed_accuracy_is_the_controls(losing, winner, tmp_path):
    assert winner.startswith("single:")
    run = load_run(losing)
    data = load_run_data(run)
    evaluation = evaluate([run], tmp_path, time_images=0)
    (best,) = [row for row in evaluation.deployed if row.name == "best"]
    assert best.systems == (winner,)
    assert best.exit_rate is None
    test = predict_all(run.networks, data.test)
    accuracies = {
        name: float(test.right(each).mean()) for name, each in test.control_logits.items()
    }
    assert best.accuracies.mean == pytest.approx(100 * accuracies[winner.removeprefix("single:")])
    coe = next(line for line in evaluation.lines if line.name == "CoE no exits")
    assert coe.accuracy < best.accuracies.mean - 10
    rows = list(csv.DictReader((tmp_path / "deployed.csv").open()))
    assert {row["deployed_at"] for row in rows} == set(run.operating_points)
    assert float(rows[0]["top1_percent"]) == pytest.approx(best.accuracies.mean)
    right = test.right(test.control_logits[winner.removeprefix("single:")])
    by_class = [float(right[test.target == c].mean()) for c in test.target.unique()]
    balanced = 100 * sum(by_class) / len(by_class)
    assert float(rows[0]["balanced_percent"]) == pytest.approx(balanced)


def test_why_it_was_chosen(cli, losing, winner, capsys):
    choice = load_run(losing).stored.choices["best"]
    assert choice.rivals["CoE"].is_worse
    assert choice.rivals["CoE"].difference.high < 0
    assert choice.num_samples == 300
    assert set(choice.rivals) == set(systems_of(load_run(losing).recipe))
    not_worse = [rival for rival in choice.rivals.values() if not rival.is_worse]
    assert choice.rivals[winner].parts == min(rival.parts for rival in not_worse)
    assert cli("calibrate", losing, "best") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"best: {winner} (1 network), " in shown
    assert "95% interval" in shown
    assert "p = " in shown


def test_the_budget_bounds_the_choice(cli, losing):
    macs = run_macs(load_run(losing).networks)
    budget = macs.controls["delegator"]
    assert cli("calibrate", losing, f"macs={budget}") == 0
    run = load_run(losing)
    assert run.operating_points[f"macs={budget}"].cost <= budget
    assert "single:expert" not in run.stored.choices[f"macs={budget}"].rivals


def test_in_a_program(losing, winner, pixels):
    labels = expected(losing, winner, pixels)
    predictor = Predictor(losing)
    predictions = predictor(pixels)
    assert [prediction.label for prediction in predictions] == labels
    cost = run_macs(load_run(losing).networks).controls[winner.removeprefix("single:")]
    assert {(p.exited, p.expert, p.macs) for p in predictions} == {(None, None, cost)}
    assert {p.expert is None for p in Predictor(losing, system="coe")(pixels, threshold=2.0)} == {
        False
    }
    assert predictor.resolve("10G").system.startswith("single:")  # the best on the stored curves
    mixed = [predictor.resolve("best"), predictor.resolve(threshold=2.0)] * 10
    alternating = predictor.predict_pixels(torch.from_numpy(np.stack(pixels))[:, None], mixed)
    assert [p.label for p in alternating[::2]] == labels[::2]
    assert all(p.expert is not None for p in alternating[1::2])


@pytest.mark.parametrize("system", ["coe", "CASCADE", "single:expert"])
def test_any_system_by_its_name(losing, pixels, system):
    run = load_run(losing)
    predictor = Predictor(run, system=system)
    built = build_system(run.networks, run_macs(run.networks), system)
    prepared = run.networks.prepare(torch.from_numpy(np.stack(pixels))[:, None])
    budget = predictor.resolve()
    with torch.inference_mode():
        answers = built.infer(prepared, budget.threshold, rough_weight=budget.rough_weight)
    labels = [run.networks.classes[i] for i in answers.prediction.argmax(1).tolist()]
    assert [prediction.label for prediction in predictor(pixels)] == labels


def test_predict(cli, losing, winner, pixels, tmp_path, capsys):
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    out = tmp_path / "out.jsonl"
    assert cli("predict", losing, tmp_path, "--out", out) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["label"] for record in records] == expected(losing, winner, pixels)
    assert {record["system"] for record in records} == {winner}
    capsys.readouterr()
    assert cli("predict", losing, tmp_path, "--out", out, "--resume", "--system", "coe") == 2
    assert "the same --at" in capsys.readouterr().err
    assert cli("predict", losing, tmp_path / "00.png", "--system", "coe") == 0
    assert "CoE, threshold" in capsys.readouterr().out


@pytest.mark.usefixtures("operators_once")
@pytest.mark.parametrize(("kind", "system"), [("onnx", None), ("pt2", None), ("pt2", "cascade")])
def test_an_export_holds_only_its_parts(losing, winner, pixels, tmp_path, kind, system):
    from vision.export.check import check_export
    from vision.export.runner import Runner

    pytest.importorskip("onnxruntime")
    run, folder = load_run(losing), tmp_path / "export"
    export_run(run, folder, kind, system=system)
    names = {path.name for path in folder.iterdir()}
    routing = json.loads((folder / "routing.json").read_text())
    images = torch.from_numpy(np.stack(pixels))[:, None]
    point = run.stored.named(system or winner)["best"]
    parities = check_export(
        run, folder, kind, images, point.threshold, point.rough_weight, system=system or winner
    )
    assert all(parity.holds for parity in parities)
    assert routing["system"] == (system or winner)
    assert set(routing["operating_points"]) <= set(run.stored.named(system or winner))
    if system == "cascade":
        assert names == {"delegator.pt2", "expert_0.pt2", "routing.json"}
        return
    assert names == {f"network.{kind}", "routing.json", *["runner.py"] * (kind == "onnx")}
    if kind == "onnx":
        files = [Image.fromarray(image) for image in pixels]
        answers = Runner(folder)(files, at="best")
        assert [answer["label"] for answer in answers] == expected(losing, winner, pixels)
        assert {(a["exited"], a["expert"]) for a in answers} == {(None, None)}


def test_over_http(losing, winner, pixels):
    testclient = pytest.importorskip("fastapi.testclient")
    from vision.serve.app import create_app
    from vision.serve.start import serving_threads, warm_up

    predictor = Predictor(losing)
    warm_up(predictor, 4)
    assert serving_threads(predictor, 4).count >= 1
    labels = expected(losing, winner, pixels[:3])
    with testclient.TestClient(create_app(predictor), base_url="http://localhost") as client:
        for image, label in zip(pixels, labels, strict=False):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            answer = client.post("/predict", content=file.getvalue()).json()
            assert (answer["label"], answer["system"], answer["exited"]) == (label, winner, None)
        facts = client.get("/run").json()
        assert facts["operating_points"]["best"]["system"] == winner
        assert facts["default"]["system"] == winner
        metrics = client.get("/metrics").text
        assert 'coe_images_total{route="whole"} 3.0' in metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--system", "single:exprt"],
            "no system 'single:exprt'; nearest: single:expert",
        ),
        (["--system", "single:expert", "--threshold", "0.5"], "single:expert always runs whole"),
        (
            ["--system", "cascade", "--at", "fast"],
            "no operating point 'fast' of cascade; stored: best",
        ),
        (
            ["--at", "1"],
            "a mean cost of 1 is below that of every system; the cheapest that exists is",
        ),
    ],
)
def test_refused(cli, losing, capsys, arguments, message):
    assert cli("predict", losing, losing / "recipe.yaml", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_levels(cli, losing, capsys):
    assert cli("calibrate", losing, "best", "--level", 0) == 2
    assert "must be in (0, 1], got 0" in capsys.readouterr().err


def test_a_run_that_was_never_calibrated(trained, tmp_path):
    """A network alone has nothing to fit; what has a threshold needs one."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "operating_points.json").unlink()
    (folder / "trade_off_curve.json").unlink()
    assert Predictor(folder, system="single:expert").resolve().system == "single:expert"
    for system in (None, "coe", "cascade"):
        with pytest.raises(RunError, match="run `coe-vision calibrate` first"):
            Predictor(folder, system=system).resolve()
