"""Exports are whole or not there, what was asked for, repeatable, and leave the caller as he was."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from vision.export import check as export_check
from vision.export import convert, team_graph
from vision.export import export as export_module
from vision.export.export import ExportError, export_run
from vision.export.graphs import example_pixels, own_run, system_graphs
from vision.export.runner import Runner
from vision.run import Run


def state_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.networks.state_dict().items()}


@pytest.mark.usefixtures("operators_once")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_the_callers_program_stays_as_it_was(untrained, tmp_path, kind):
    small = untrained(tmp_path)
    networks = small.networks.double().train()
    before, modes = state_of(small), [module.training for module in networks.modules()]
    torch.manual_seed(7)
    np.random.seed(7)
    drawn, also = torch.get_rng_state(), np.random.get_state()[1].copy()
    threads, folder = torch.get_num_threads(), tmp_path / "out"
    pixels = example_pixels(small, 8)

    def check(part: Path) -> None:
        export_check.check_export(small, part, kind, pixels, 0.5, 0.3)

    export_run(small, folder, kind, threshold=0.5, check=check)
    after = state_of(small)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {value.dtype for value in after.values()} >= {torch.float64}
    assert [module.training for module in networks.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (np.random.get_state()[1] == also).all()
    assert torch.get_num_threads() == threads


def test_examples_draw_from_no_generator_of_the_caller(small):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = example_pixels(small, 2)
    assert torch.equal(first, example_pixels(small, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("operators_once")
@pytest.mark.slow
def test_opset(small, tmp_path):
    for opset, message in [
        (11, "opset must be at least 18, got 11"),
        (99, rf"opset must be at most {onnx.defs.onnx_opset_version()} \(of the onnx package\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_run(small, tmp_path / "out", "onnx", opset=opset, threshold=0.5)
    assert not (tmp_path / "out").exists()
    expert = {"expert_0": system_graphs(own_run(small), "CoE")["expert_0"]}
    example = {"expert_0": example_pixels(small, 2)}
    convert.converted("onnx", 21, expert, example)["expert_0"](tmp_path / "a.onnx")
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [21]
    # An opset that the exporter cannot reach: it falls back, and says nothing.
    message = "expert_0: opset 99 was asked for, the exporter can write it in opset 18 only"
    with pytest.raises(ExportError, match=message):
        convert.converted("onnx", 99, expert, example)


@pytest.mark.usefixtures("operators_once")
@pytest.mark.slow
def test_a_mobilenet_in_8_bits(untrained, tmp_path, monkeypatch):
    """onnxruntime's preparation leaves nodes without a name; in one graph they met."""
    run = untrained(tmp_path, 3, 32, name="timm/mobilenetv3_small_050", options={})
    experts = run.networks.team.experts
    experts[1] = experts[0]  # converted once, which takes most of the time

    def once(kind, opset, graphs, example):
        few = {name: graphs[name] for name in ("delegator", "expert_0")}
        saves = convert.converted(kind, opset, few, example)
        return {**saves, "expert_1": saves["expert_0"]}

    monkeypatch.setattr(export_module, "converted", once)
    pixels = example_pixels(run, 8)
    parities = []

    def check(part: Path) -> None:
        parities.extend(
            export_check.check_export(run, part, "onnx", pixels, 2.0, 0.0, tolerance=1.0)
        )

    folder = tmp_path / "out"
    export_run(run, folder, "onnx", threshold=0.5, int8_pixels=pixels, check=check)
    assert [parity.same_route for parity in parities[:2]] == [8, 8]
    routing = json.loads((folder / "routing.json").read_text())
    assert [network["weights"] for network in routing["experts"]] == ["int8", "int8"]
    assert routing["delegator"]["weights"] == "float32"
    names = [node.name for node in onnx.load(folder / "team.onnx").graph.node]
    assert len(set(names)) == len(names)


def test_nodes_without_a_name_get_one_of_their_own():
    make = onnx.helper.make_node
    nodes = [make("Relu", ["x"], ["y"]), make("Relu", ["y"], ["z"]), make("Abs", ["z"], ["w"])]
    nodes[2].name = "Relu/z"  # taken
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    team_graph.name_nodes(graph)
    assert [node.name for node in graph.node] == ["Relu/y", "Relu/z_", "Relu/z"]


@pytest.mark.usefixtures("operators_once")
@pytest.mark.slow
def test_condconv_is_refused_in_one_line(untrained, tmp_path):
    run = untrained(tmp_path, condconv=2, condconv_where="blocks")
    message = (
        r"expert_0 cannot be exported to ONNX: its \d+ CondConv layers, such as blocks\.\S+, mix"
    )
    with pytest.raises(ExportError, match=message) as refused:
        export_run(run, tmp_path / "out", "onnx", threshold=0.5)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_one_file_cannot_hold_lies_beside_it(
    converted_once, small, small_export, tmp_path, monkeypatch
):
    for module in (convert, team_graph, export_module):
        monkeypatch.setattr(module, "MAX_BYTES", 2000)
    for name in ("a", "b"):
        export_run(small, tmp_path / name, "onnx", threshold=0.5)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"expert_0.onnx.data", "expert_1.onnx.data"} <= names
    assert "team.onnx.data" not in names  # it reads those of the networks
    for name in names:  # repeatable
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pixels = example_pixels(small, 3).numpy()
    ours, theirs = (
        Runner(folder, threads=1).infer(pixels, 2.0) for folder in (tmp_path / "a", small_export)
    )
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    team = onnxruntime.InferenceSession(
        str(tmp_path / "a/team.onnx"), providers=["CPUExecutionProvider"]
    )
    never = {"threshold": np.array(2, np.float32)}
    alone = team.run(None, {"images": pixels[:1], **never})[0]
    np.testing.assert_allclose(alone[0], theirs.probabilities[0], atol=1e-6)
    with pytest.raises(
        ExportError, match="bytes of weights, int8 can be made of 2,000; export wit"
    ):
        export_run(
            small, tmp_path / "c", "onnx", threshold=0.5, int8_pixels=example_pixels(small, 2)
        )


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_full_disk_leaves_nothing(converted_once, small, tmp_path, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            export_run(small, tmp_path / "out", kind, threshold=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_its_check_does_not_stay(converted_once, small, tmp_path):
    def check(part: Path) -> None:
        assert {path.name for path in part.iterdir()} >= {"team.onnx", "routing.json"}
        raise ExportError("differs")

    with pytest.raises(ExportError, match="differs"):
        export_run(small, tmp_path / "out", "onnx", threshold=0.5, check=check)
    assert not list(tmp_path.iterdir())


def test_the_comparison_sees_other_pixels(small, small_export, tmp_path, monkeypatch):
    from vision.export import runner_images

    pixels, photo, damaged = example_pixels(small, 4), tmp_path / "a.jpg", tmp_path / "b.jpg"
    Image.effect_mandelbrot((320, 97), (-2, -1, 1, 1), 99).save(photo)
    damaged.write_bytes(b"")  # as training leaves it out, so does the comparison
    files = [photo, damaged]
    parities = export_check.check_export(small, small_export, "onnx", pixels, 0.5, 0.0, files=files)
    plain = export_check.check_export(small, small_export, "onnx", pixels, 0.5, 0.0)
    assert parities[2].num_samples == plain[2].num_samples + 1
    fit = runner_images._fit
    shifted = lambda image, preprocess: fit(image.rotate(90), preprocess)  # noqa: E731
    monkeypatch.setattr(runner_images, "_fit", shifted)
    message = r"runner.py decodes \S+ otherwise than the run: pixels differ by up to \d+"
    with pytest.raises(ExportError, match=message):
        export_check.check_export(small, small_export, "onnx", example_pixels(small, 4), 0.5, 0.0)


def test_a_light_import(warm):
    """The exporter and what comes with it are loaded when something is exported."""
    code = "import vision.export.export, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [warm("torch") / "python", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(loaded.stdout.split())
    assert "vision.export.convert" in loaded
    heavy = {"sympy", "torch._dynamo", "onnx", "onnxscript", "onnxruntime", "lightning", "sklearn"}
    assert not (heavy | {"torchvision", "matplotlib", "scipy", "timm"}) & loaded


@pytest.mark.process
def test_full_tmpfs(converted_once, small, tmp_path):
    """The real thing, where this machine lets one mount a small disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("no right to mount")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount")
    try:
        for kind in ("pt2", "onnx"):
            with pytest.raises(OSError, match="No space left on device"):
                export_run(small, disk / "out", kind, threshold=0.5)
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
