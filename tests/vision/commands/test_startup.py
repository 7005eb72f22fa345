"""What each command loads: modules, not seconds (those: benchmarks/startup.py).

The commands of a test are called one after the other in one process, so sets only grow.
"""

import shutil

import pytest
from PIL import Image

TINY = ["data.train_fraction=0.1", "train.batch_size=32", "num_experts=2", "controls={}"]


def test_what_needs_no_networks_loads_no_torch(loaded_after, tmp_path):
    calls = [["--help"], ["--version"], ["train", "--help"], ["recipes"]]
    calls += [["recipes", "copy", "digits", tmp_path]]
    assert loaded_after("vision", calls) == [set()] * len(calls)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("L", (8, 8)).save(path)
    return path


def test_what_predicts_and_fits(loaded_after, warm, trained, picture, tmp_path):
    """No library of networks, no trainer, no compiler: digits' networks are our own."""
    results = tmp_path / "results"
    run = shutil.copytree(trained, tmp_path / "run")
    assert loaded_after(
        "vision",
        [
            ["inspect", "digits"],
            ["predict", run, picture, "--threshold", 2],
            ["calibrate", run, "best"],
            ["evaluate", run, "--no-time", "--out", results],
        ],
        warm("torch") / "python",
    ) == [{"torch"}, {"torch"}, {"torch", "scipy"}, {"torch", "scipy", "matplotlib"}]


def test_what_serves_exports_and_trains(loaded_after, warm, trained, tmp_path):
    """A server is light; torch's exporter brings its compiler, which torch's own optimizers import, too."""
    serving, exporting, training = loaded_after(
        "vision",
        [
            ["serve", trained, "--port", 0],
            ["export", trained, "--to", "onnx", "--out", tmp_path / "exported"],
            ["train", "digits", *TINY, "train.epochs=1", "--out", tmp_path / "run"],
        ],
        warm("torch") / "python",
    )
    assert serving == {"torch", "fastapi"}
    assert exporting == serving | {"torch._dynamo", "sympy"}
    assert training == exporting | {"lightning", "scipy", "tensorboard"}
