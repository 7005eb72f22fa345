"""torch.compile of each network: the same training, the same names, the same average."""

import csv

import pytest
import torch

from vision.training import module as training


@pytest.mark.slow
def test_compiled_training_and_its_average_equal_the_uncompiled(cli, tmp_path, monkeypatch):
    # What is compiled is the same for every back end; this one needs no C++ compiler and no minute.
    monkeypatch.setattr(training, "COMPILER", "aot_eager")
    called = []
    original = torch.nn.Module.compile

    def compile_module(self, *args, **kwargs):
        called.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    recipe = ["digits", "data.train_fraction=0.1", "train.batch_size=32", "num_experts=2"]
    recipe += ["train.epochs=2", "train.precision=32-true", "train.ema_decay=0.9"]
    recipe += ["controls={expert: {name: small_resnet, options: {width: 2, stages: 2}}}"]
    recipe += ["experts={name: small_resnet, options: {width: 2, stages: 2}}"]
    for name in ("plain", "compiled"):
        options = [f"train.compile={str(name == 'compiled').lower()}"]
        assert cli("train", *recipe, *options, "--out", tmp_path / name) == 0
    assert len(called) == 1 + 2 + 1  # delegator, experts, control
    plain, compiled = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)
        for name in ("plain", "compiled")
    )
    for kind in ("state_dict", "current_model_state"):
        assert plain[kind].keys() == compiled[kind].keys()
        for key, value in plain[kind].items():
            torch.testing.assert_close(
                compiled[kind][key], value, atol=1e-4, rtol=1e-4, equal_nan=True, msg=key
            )
    weight = "networks.team.delegator.stem.0.weight"
    assert not torch.equal(plain["state_dict"][weight], plain["current_model_state"][weight])
    logged = []
    for name in ("plain", "compiled"):
        with (tmp_path / name / "metrics/metrics.csv").open(newline="") as file:
            logged.append([row["train/rough_loss"] for row in csv.DictReader(file)])
    for a, b in zip(*logged, strict=True):
        assert abs(float(a or 0) - float(b or 0)) < 1e-4
    assert cli("evaluate", tmp_path / "compiled", "--no-time") == 0
