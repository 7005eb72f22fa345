"""Exports: the run's routes and probabilities, nothing runs that is not needed, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from coe_core.support.exports import write_routing
from coe_core.support.files import sha256_of
from vision.budgets import resolve_budget
from vision.errors import RunError
from vision.export import check as export_check
from vision.export.export import ExportError, export_run
from vision.export.quantise import quantise
from vision.export.runner import Runner
from vision.export.team_graph import join_team
from vision.run import load_run, load_run_data


@pytest.fixture(scope="module")
def trained(trained, tmp_path_factory):
    """The tiny run with a delegator that selects several experts, not one for all images."""
    folder = tmp_path_factory.mktemp("selecting") / "run"
    shutil.copytree(trained, folder)
    path = folder / "checkpoints/last.ckpt"
    content, old = torch.load(path, weights_only=True), sha256_of(path)
    head = "networks.team.delegator.head.2"
    weight, bias = (content["state_dict"][f"{head}.{name}"] for name in ("weight", "bias"))
    weight[10:] = torch.randn(weight[10:].shape, generator=torch.manual_seed(1))
    weight[10:] -= weight[10:].mean(1, keepdim=True)
    bias[10:] = 0
    torch.save(content, path)
    for stored in folder.glob("*.json"):  # the thresholds shall hold for it
        stored.write_text(stored.read_text().replace(old, sha256_of(path)))
    return folder


@pytest.fixture(scope="module")
def onnx_folder(trained, tmp_path_factory, cli, operators_once):
    folder = tmp_path_factory.mktemp("export") / "onnx"
    assert cli("export", trained, "--to", "onnx", "--out", folder, "--at", "half") == 0
    return folder


@pytest.fixture(scope="module")
def pixels(trained):
    return export_check.images_to_check(load_run(trained), 1000)[0]


@pytest.fixture
def run(trained):
    return load_run(trained)


def middle(run, pixels):
    """A threshold that about half of the images pass, and a rough weight."""
    with torch.inference_mode():
        confidences = run.networks.team.infer(run.networks.prepare(pixels), 0.0).confidence
    return float(confidences.median()) + 1e-4, 0.3


def test_files_and_metadata(onnx_folder, run):
    names = {"delegator.onnx", "team.onnx", "routing.json", "runner.py"}
    names |= {f"expert_{j}.onnx" for j in range(3)}
    assert {path.name for path in onnx_folder.iterdir()} == names
    routing = json.loads((onnx_folder / "routing.json").read_text())
    assert routing["format"] == 2
    assert routing["task"] == "vision"
    assert set(routing["files"]) == names - {"routing.json", "runner.py"}
    assert routing["preprocess"] == run.networks.preprocess.to_dict()
    assert routing["classes"] == run.networks.classes
    assert routing["default"]["name"] == "half"
    assert routing["operating_points"]["best"] == run.operating_points["best"].to_dict()
    team = onnx.load(onnx_folder / "team.onnx")
    assert [(entry.domain, entry.version) for entry in team.opset_import] == [("", 18)]
    stored = {entry.key: entry.value for entry in team.metadata_props}
    own = {name: value for name, value in routing.items() if name not in ("files", "sha256")}
    assert {"format": 2, **json.loads(stored["routing"])} == own
    # Where this machine keeps its programs is nobody's business.
    assert b".py" not in (onnx_folder / "team.onnx").read_bytes()


def test_the_same_routes_and_probabilities(onnx_folder, run, pixels):
    assert len(pixels) == 660  # all of the validation and test images
    for threshold, weight in (middle(run, pixels), (0.0, 0.0), (2.0, 0.0)):
        parities = export_check.check_export(run, onnx_folder, "onnx", pixels, threshold, weight)
        forms = ["runner.py", "team.onnx", "runner.py, from files"]
        assert [parity.form for parity in parities] == forms
        for parity, count in zip(parities, (660, 660, 14), strict=True):
            assert parity.num_samples == count
            assert parity.same_route + parity.ties >= count
            assert parity.max_difference < 1e-4
    threshold = middle(run, pixels)[0]
    routes = Runner(onnx_folder, threads=1).infer(pixels.numpy(), threshold)
    assert 200 < routes.exited.sum() < 460
    assert len(np.unique(routes.selected_expert[~routes.exited])) > 1


def test_the_comparison_can_fail(onnx_folder, run, pixels):
    threshold, weight = middle(run, pixels)
    with torch.no_grad():
        next(run.networks.team.experts[0].parameters()).mul_(1.5)
        next(run.networks.team.experts[1].parameters()).mul_(1.5)
    with pytest.raises(
        ExportError, match=r"differs from the run: .* probabilities differ by up to"
    ):
        export_check.check_export(run, onnx_folder, "onnx", pixels, threshold, weight)


def test_defaults_of_the_single_file(onnx_folder, run, pixels):
    point = run.operating_points["half"]
    session = export_check.team_session(onnx_folder)
    runner = Runner(onnx_folder, threads=1)
    routed = runner.infer(pixels[:20].numpy(), point.threshold, point.rough_weight)
    for i in range(20):
        alone = session.run(None, {"images": pixels[i : i + 1].numpy()})
        np.testing.assert_allclose(alone[0][0], routed.probabilities[i], atol=1e-5)
        assert alone[1][0] == routed.exited[i]


def executed(folder, pixels, threshold, tmp_path):
    """Names of the operators that onnxruntime ran for one image."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, 1
    options.log_severity_level = 3
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(
        str(folder / "team.onnx"), options, providers=["CPUExecutionProvider"]
    )
    limit = np.array(threshold, np.float32)
    answer = session.run(None, {"images": pixels.numpy(), "threshold": limit})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event for event in events if event["name"].endswith("_kernel_time")]
    assert sum(event["args"]["op_name"] == "Conv" for event in ran) >= 3
    return [event["name"] for event in ran], int(answer[2][0])


def test_untaken_branches_are_not_executed(onnx_folder, pixels, tmp_path):
    operators, _ = executed(onnx_folder, pixels[:1], 0.0, tmp_path)
    assert not [name for name in operators if name.startswith("expert_")]
    selected = Runner(onnx_folder, threads=1).infer(pixels.numpy(), 2.0).selected_expert
    seen = set()
    for j in np.unique(selected):
        row = int(np.flatnonzero(selected == j)[0])
        operators, expert = executed(onnx_folder, pixels[row : row + 1], 2.0, tmp_path)
        ran = {name.split("/")[0] for name in operators if name.startswith("expert_")}
        assert ran == {f"expert_{expert}"}
        seen |= ran
    assert len(seen) > 1


def test_time_per_route(onnx_folder, pixels):
    times = export_check.milliseconds_per_route(onnx_folder, pixels, rounds=3)
    assert {"delegator", "team.onnx: exit"} <= set(times)
    assert min(times.values()) > 0


def test_experts_in_8_bits_keep_the_routes(onnx_folder, run, pixels, tmp_path):
    folder = tmp_path / "int8"
    shutil.copytree(onnx_folder, folder)
    for j in range(3):
        quantise(folder / f"expert_{j}.onnx", pixels[:64])
    routing = json.loads((folder / "routing.json").read_text())
    join_team(folder, routing)
    write_routing(folder, routing, None)
    for name in ("expert_0.onnx", "team.onnx"):
        graph = onnx.load(folder / name).graph
        assert (folder / name).stat().st_size < (onnx_folder / name).stat().st_size
        if name == "expert_0.onnx":
            kinds = {node.op_type for node in graph.node}
            assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
            assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in graph.initializer}
    threshold, weight = middle(run, pixels)
    parities = export_check.check_export(
        run, folder, "onnx", pixels, threshold, weight, tolerance=1.0
    )
    for parity in parities[:2]:
        assert parity.same_route + parity.ties >= 660
        assert parity.max_difference > 1e-6  # it is another arithmetic
        assert parity.same_answer > 0.9 * 660


def test_programs(cli, trained, run, pixels, tmp_path, capsys):
    assert cli("export", trained, "--to", "pt2", "--out", tmp_path, "--threshold", 0.4) == 0
    shown = capsys.readouterr().out
    assert "programs: 660 of 660 take the same route" in shown
    threshold, weight = middle(run, pixels)
    parity = export_check.check_export(run, tmp_path, "pt2", pixels, threshold, weight)[0]
    assert parity.holds
    assert json.loads((tmp_path / "routing.json").read_text())["default"]["threshold"] == 0.4


@pytest.mark.process
def test_runner_without_this_package(onnx_folder, trained, run, pixels, tmp_path):
    """In a process of its own, away from the checkout: only numpy, Pillow and onnxruntime load."""
    for i in range(3):
        Image.fromarray(pixels[i, 0].numpy()).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    files = [f"{i}.png" for i in range(3)]

    def call(*arguments):
        return subprocess.run(
            [sys.executable, str(onnx_folder / "runner.py"), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )

    done = call(*files, "bad.png", "--at", "best")
    assert done.returncode == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert "UnidentifiedImageError" in records[3]["error"]
    from vision.prediction.predictor import Predictor

    expected = Predictor(run, precision="32-true")([tmp_path / name for name in files])
    for record, prediction in zip(records[:3], expected, strict=True):
        assert record["label"] == prediction.label
        assert record["exited"] == prediction.exited
        assert record["expert"] == prediction.expert
        assert record["macs"] == prediction.macs
        assert record["probability"] == pytest.approx(prediction.probability, abs=1e-4)
    refused = call(*files, "--at", "bset")
    assert refused.returncode == 2
    assert "no operating point 'bset'; stored: best, drop, half" in refused.stderr
    loaded = subprocess.run(
        [sys.executable, "-c", "import runner, sys; print(*sys.modules)"],
        cwd=onnx_folder, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "PIL" in loaded
    assert not {"torch", "vision", "coe_core", "torchvision"} & set(loaded)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x.flatten(1)[:, :10])


@pytest.mark.usefixtures("operators_once")
def test_an_unsupported_operator_is_named_and_nothing_is_written(run, tmp_path):
    run.networks.team.experts[1] = Bessel()
    with pytest.raises(
        ExportError,
        match=r"expert_1 cannot be exported: the operator prims\.bessel_j0 is not",
    ):
        export_run(run, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


class Branches(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] if x.sum() > 0 else -x.flatten(1)[:, :10]


def test_a_network_that_cannot_be_traced_is_named(run, tmp_path):
    run.networks.team.experts[0] = Branches()
    with pytest.raises(ExportError, match=r"expert_0 cannot be exported: .* is not supported"):
        export_run(run, tmp_path / "out", "pt2")


def test_refused(cli, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    bare = tmp_path / "moved.ckpt"
    bare.write_bytes((trained / "checkpoints/last.ckpt").read_bytes())
    for arguments, message in [
        (["--out", tmp_path], "exists and is not empty; choose another folder with --out"),
        (["--out", tmp_path / "file"], "exists and is not empty"),
        (["--out", tmp_path / "a", "--opset", 11], "opset must be at least 18, got 11"),
        (["--out", tmp_path / "a", "--at", "bset"], "no operating point 'bset'; stored: best, dr"),
        (["--out", tmp_path / "a", "--check", 0], "--check: must be at least 1, got 0"),
        (["--out", tmp_path / "a", "--threshold", -1], "threshold must be at least 0, got -1"),
    ]:
        assert cli("export", trained, "--to", "onnx", *arguments) == 2
        assert message in capsys.readouterr().err
    assert cli("export", bare, "--to", "onnx", "--out", tmp_path / "a") == 2
    assert "stored: none; run `coe-vision calibrate` first" in capsys.readouterr().err
    assert cli("export", trained, "--to", "pt2", "--int8") == 2
    assert "--int8 has no effect: it is for --to onnx" in capsys.readouterr().err
    assert cli("export", trained, "--to", "tflite") == 2
    assert "invalid choice: 'tflite'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_missing_package_says_what_to_install(trained, tmp_path, monkeypatch):
    import importlib.util

    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else plain(name, *a)
    )
    with pytest.raises(
        RunError, match=r"needs onnx: pip install 'collaboration-of-experts\[export"
    ):
        export_run(load_run(trained), tmp_path / "a", "onnx")


def test_data_that_are_not_here(run, monkeypatch):
    def missing(*_, **options):
        raise ValueError("no such folder")

    monkeypatch.setattr(export_check, "load_run_data", missing)
    pixels, what, files = export_check.images_to_check(run, 5)
    assert not files
    assert pixels.shape == (5, 1, 8, 8)
    assert what == "random pixels (the data are not here: no such folder)"
    with pytest.raises(ValueError, match="no such folder"):
        export_check.images_to_check(run, 5, "given")
    with pytest.raises(ValueError, match="no such folder"):
        export_check.images_to_check(run, 5, required=True)  # ranges for int8


def test_images_of_data_sorted_by_class_are_of_all_classes(run, monkeypatch):
    data = load_run_data(run)
    order = data.validation.targets.argsort()
    images = [data.validation[row] for row in order.tolist()]

    class Sorted(list):
        paths = None

    given = SimpleNamespace(validation=Sorted(images), test=Sorted(images[:1]))
    monkeypatch.setattr(export_check, "load_run_data", lambda *_, **__: given)
    pixels = export_check.images_to_check(run, 30)[0]
    stored = {item["image"].numpy().tobytes(): item["target"] for item in images}
    assert len({stored[image.numpy().tobytes()] for image in pixels}) > 5  # of 10


def test_the_export_is_at_the_budget_asked_for(onnx_folder, run):
    budget = resolve_budget(run, "half")
    default = json.loads((onnx_folder / "routing.json").read_text())["default"]
    assert default["threshold"] == budget.threshold
    assert default["rough_weight"] == budget.rough_weight
