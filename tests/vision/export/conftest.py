"""A small team that was never trained, exported without being converted again and again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vision.export import convert
from vision.export import export as export_module
from vision.export.graphs import example_pixels, own_run, seen_by, system_graphs
from vision.recipe import load_recipe
from vision.recipe_networks import Networks
from vision.run import Run


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Run]:
    return _untrained


def _untrained(folder: Path, channels: int = 1, size: int = 8, **expert: object) -> Run:
    """A run of digits with 2 experts that was never trained."""
    recipe = load_recipe("digits", ["num_experts=2"]).to_dict()
    recipe["data"]["channels"] = channels
    for network in recipe["experts"]:
        network.update(expert)
    half = [0.5] * channels
    preprocess = {"size": size, "channels": channels, "mean": half, "std": half, "resize": "crop"}
    networks = Networks(recipe, [str(digit) for digit in range(10)], preprocess).eval()
    (folder / "last.ckpt").touch()
    return Run(folder, folder / "last.ckpt", networks)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Run:
    return _untrained(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def saves(small, operators_once) -> dict[str, dict]:
    """Its networks, converted once: that takes most of an export's time."""
    graphs = system_graphs(own_run(small), "CoE")
    example = seen_by(graphs, example_pixels(small, 2))
    return {kind: convert.converted(kind, 18, graphs, example) for kind in ("onnx", "pt2")}


@pytest.fixture
def converted_once(saves, monkeypatch) -> None:
    monkeypatch.setattr(export_module, "converted", lambda kind, *_: saves[kind])


@pytest.fixture(scope="session")
def small_export(small, saves, tmp_path_factory) -> Path:
    """Its export, ended early at confidence 0.5 by default. To be read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("small") / "export"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "converted", lambda kind, *_: saves[kind])
        export_module.export_run(small, folder, "onnx", threshold=0.5)
    return folder
