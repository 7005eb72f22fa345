"""What exits are decided by, through calibrate, predict, evaluate and export."""

import json
import shutil

import pytest
import torch

from coe_core import ExitRule
from vision.budgets import resolve_budget
from vision.evaluation.predictions import predict_all
from vision.prediction.predictor import Predictor
from vision.run import load_run, load_run_data


@pytest.fixture(scope="module")
def run(cli, trained, tmp_path_factory):
    """A run with a point by gain, one by margin, and three by the largest probability."""
    folder = tmp_path_factory.mktemp("kinds") / "run"
    shutil.copytree(trained, folder)
    coe, drop = ["--system", "coe"], ["accuracy_drop=20%", "--guarantee", 0.9]
    assert cli("calibrate", folder, *drop, "--confidence", "gain", *coe) == 0
    assert cli("calibrate", folder, "accuracy=1%", "--confidence", "margin", *coe) == 0
    assert cli("calibrate", folder, "macs=60%", "--confidence", "gain", *coe) == 0
    return folder


def test_the_rule_is_stored_with_the_point_and_the_curve(run):
    loaded = load_run(run)
    point = loaded.operating_points["macs=60%"]
    assert point.exit_rule.kind == loaded.curve.exit_rule.kind == "gain"
    assert point.num_samples == 150  # the others fitted the rule
    assert point.fitted_with["confidence"] == "gain"
    assert loaded.operating_points["accuracy=1%"].exit_rule == ExitRule("margin")
    assert loaded.operating_points["half"].exit_rule == ExitRule()
    assert resolve_budget(loaded, "55%").rule == point.exit_rule
    own = resolve_budget(loaded, threshold=0.5)  # a threshold of one's own: on the probability
    assert (own.rule, own.exit_rate) == (ExitRule(), None)
    stored = json.loads((run / "operating_points.json").read_text())["points"]["CoE"]
    assert {entry["name"] for entry in stored if "exit_rule" in entry} == {
        "accuracy_drop=20%",
        "accuracy=1%",
        "macs=60%",
    }


def test_predictions_of_images_with_rules_of_their_own(run):
    predictor = Predictor(run)
    data = load_run_data(predictor.run)
    pixels = torch.stack([data.test[i]["image"] for i in range(30)])
    names = ["macs=60%", "half", "accuracy=1%"]
    budgets = [predictor.resolve(names[i % 3]) for i in range(30)]
    mixed = predictor.predict_pixels(pixels, budgets)
    for name in names:
        alone = predictor.predict_pixels(pixels, [predictor.resolve(name)] * 30)
        rows = [i for i in range(30) if budgets[i].name == name]
        for i in rows:
            assert mixed[i].exited == alone[i].exited
            assert mixed[i].confidence == pytest.approx(alone[i].confidence, abs=1e-5)
    logits = predict_all(predictor.networks, data.test).team
    rule = predictor.resolve("macs=60%").rule
    expected = rule.confidence(logits.rough_logits, logits.selection_logits)[:30]
    confidences = [p.confidence for p in predictor.predict_pixels(pixels, [budgets[0]] * 30)]
    assert confidences == pytest.approx(expected.tolist(), abs=1e-4)


def test_evaluated_by_gain(cli, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli("evaluate", run, "--no-time", "--confidence", "gain", "--out", out) == 0
    shown = capsys.readouterr().out
    assert "law of run: routable " in shown
    seed, *law = (out / "law.csv").read_text().splitlines()[1].split(",")
    assert seed == "0"
    _, _, gain, loss, pooling, specialising, above, single = map(float, law)
    assert gain - loss + pooling == pytest.approx(above, abs=1e-5)
    assert above + specialising == pytest.approx(single, abs=1e-5)


@pytest.mark.usefixtures("operators_once")
@pytest.mark.slow
def test_the_exported_delegator_decides_by_the_same(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from vision.export.convert import converted
    from vision.export.export import routing_of
    from vision.export.graphs import example_pixels, own_run, seen_by, system_graphs

    loaded = load_run(run)
    default = resolve_budget(loaded, "macs=60%")
    graphs = system_graphs(own_run(loaded), "CoE", default.rule)
    pixels = example_pixels(loaded, 5)
    few = {"delegator": graphs["delegator"]}
    converted("onnx", 18, few, seen_by(few, pixels[:2]))["delegator"](tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    _, confidence, _ = session.run(None, {"images": pixels.numpy()})
    expected = graphs["delegator"](pixels)[1]
    assert confidence.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    routing = routing_of(loaded, "onnx", default)
    assert routing["confidence"] == "gain"
    # Points of other rules stay behind; the same samples fit the same rule.
    assert set(routing["operating_points"]) == {"macs=60%", "accuracy_drop=20%"}
    assert "exit_rule" not in routing["operating_points"]["macs=60%"]
    assert routing_of(loaded, "onnx", resolve_budget(loaded, "half"))["curve"] is None
