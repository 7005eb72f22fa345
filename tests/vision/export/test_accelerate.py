"""A predictor through onnxruntime: the same answers and routes, kept networks, and when torch stays."""

import os
import shutil

import pytest
import torch

from vision.budgets import ResolvedBudget
from vision.errors import RunError
from vision.export import accelerate as module
from vision.export.accelerate import accelerate
from vision.export.convert import ExportError
from vision.export.graphs import example_pixels
from vision.prediction.predictor import Predictor

COE, ALONE = "CoE", "single:delegator"


@pytest.fixture(scope="module")
def kept(small, operators_once, tmp_path_factory):
    """A folder with the converted networks of two systems. To be read only."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COE_CACHE", str(folder))
        accelerate(Predictor(small), [COE, ALONE], runtime="onnxruntime", batch_size=2)
    return folder


@pytest.fixture
def cache(kept, tmp_path, monkeypatch):
    """A copy of it, in use; nothing is too small."""
    shutil.copytree(kept, tmp_path / "cache")
    monkeypatch.setenv("COE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LEAST_MACS", 0)
    return tmp_path / "cache" / "networks"


def _answers(predictor, system, threshold=0.2):
    pixels = example_pixels(predictor.run, 12)
    budget = ResolvedBudget("some exit", threshold, 0.25, None, None, system=system)
    return predictor.predict_pixels(pixels, [budget] * 12)


def _seconds(faster):
    return lambda *_: {"onnxruntime": 1.0 if faster else 3.0, "torch": 2.0}


@pytest.mark.parametrize("system", [COE, ALONE])
def test_answers_and_routes_are_the_same(small, cache, system, monkeypatch):
    monkeypatch.setattr(module, "_seconds", _seconds(faster=True))
    monkeypatch.setattr(module, "converted", None)  # they are kept
    predictor = Predictor(small)
    chosen = accelerate(predictor, [system], batch_size=4)
    assert str(chosen) == (
        "onnxruntime (fp32, answers checked; 4 images take 1e+03 ms, with torch 2e+03)"
    )
    assert predictor.systems[system].sees_pixels
    wanted = Predictor(small, precision="32-true")
    confidences = [one.confidence for one in _answers(wanted, system)]
    threshold = sorted(confidences)[6]
    for one, other in zip(
        _answers(predictor, system, threshold - 1e-6),
        _answers(wanted, system, threshold - 1e-6),
        strict=True,
    ):
        assert (one.label, one.exited, one.expert, one.macs) == (
            other.label,
            other.exited,
            other.expert,
            other.macs,
        )
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_torch_stays_where_it_is_faster(small, cache, monkeypatch):
    monkeypatch.setattr(module, "_seconds", _seconds(faster=False))
    predictor = Predictor(small)
    chosen = accelerate(predictor, [ALONE], batch_size=4)
    assert chosen.runtime == "torch"
    assert chosen.reason == "4 images with onnxruntime take 3e+03 ms, with torch 2e+03"
    assert not predictor.systems[ALONE].sees_pixels


def test_few_images_are_not_worth_a_conversion(small, cache, monkeypatch):
    predictor = Predictor(small)
    assert accelerate(predictor, [ALONE], batch_size=4, images=10) == ("torch", "")
    monkeypatch.setattr(module, "WORTH_LOADING", 0)
    monkeypatch.setattr(module, "_seconds", _seconds(faster=True))
    assert accelerate(predictor, [ALONE], batch_size=4, images=10).runtime == "onnxruntime"
    shutil.rmtree(cache)
    assert accelerate(Predictor(small), [ALONE], batch_size=4, images=10) == ("torch", "")
    monkeypatch.setenv("COE_CACHE", "off")
    assert accelerate(Predictor(small), [ALONE], batch_size=4) == ("torch", "")


def test_what_is_kept_is_checked_and_made_anew(small, cache, monkeypatch):
    monkeypatch.setattr(module, "_seconds", _seconds(faster=True))
    (path,) = [module._path(Predictor(small), f"{ALONE}/network")]
    other = module._path(Predictor(small), f"{COE}/expert 0")
    good = path.read_bytes()
    for content in (b"no network", good[:1000], other.read_bytes()):
        path.write_bytes(content)
        monkeypatch.setattr(
            module, "converted", lambda *_: {f"{ALONE}/network": lambda to: to.write_bytes(good)}
        )
        assert accelerate(Predictor(small), [ALONE], batch_size=2).runtime == "onnxruntime"
        assert path.read_bytes() == good


def test_other_answers_are_refused(small, cache, monkeypatch):
    other = module._path(Predictor(small), f"{COE}/expert 0").read_bytes()
    shutil.rmtree(cache)
    monkeypatch.setattr(
        module, "converted", lambda *_: {f"{ALONE}/network": lambda to: to.write_bytes(other)}
    )
    predictor = Predictor(small)
    chosen = accelerate(predictor, [ALONE], batch_size=2)
    assert chosen.runtime == "torch"
    assert "single:delegator/network: onnxruntime's answers differ by" in chosen.reason
    with pytest.raises(ExportError, match=r"from torch.s, more than 0\.0001"):
        accelerate(predictor, [ALONE], runtime="onnxruntime", batch_size=2)
    with pytest.raises(ExportError, match=r"answers with shape \(2, 3\), torch with \(2, 4\)"):
        module._check("x: one", torch.zeros(2, 3), torch.zeros(2, 4))


def test_what_is_asked_for_and_impossible_is_said(small, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RunError, match=r"--runtime onnxruntime: needs onnxruntime, onnx, onnxscript"
    ):
        accelerate(Predictor(small), [ALONE], runtime="onnxruntime", batch_size=2)
    assert accelerate(Predictor(small), [ALONE], batch_size=2) == ("torch", "")


def test_those_unused_for_longest_make_room(cache, monkeypatch):
    files = sorted(cache.iterdir())
    os.utime(files[0])  # the newest
    monkeypatch.setattr(module, "MAX_BYTES", files[0].stat().st_size)
    module._make_room(files[0])
    assert list(cache.iterdir()) == [files[0]]
