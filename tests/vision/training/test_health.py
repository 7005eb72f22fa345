"""What a training says of itself: cost, a loss that stands still, an average never reached; patience."""

import re
from types import SimpleNamespace

import pytest
import torch

from vision.recipe import load_recipe
from vision.recipe_networks import run_macs, untrained
from vision.training.health import Expectation, Patience, Standing, cost_line
from vision.training.loggers import further_logger


def test_the_cost_is_that_of_all_networks():
    recipe = load_recipe("digits", ["num_experts=2", "controls={}", "train.batch_size=10"])
    networks = untrained(recipe)
    macs = run_macs(networks)
    parameters = sum(p.numel() for p in networks.parameters())
    forward = macs.delegator + sum(macs.experts)
    line = cost_line(networks, macs, 105)
    assert line.startswith(f"to train: {parameters / 1e6:.3g} million parameters")
    assert f"{forward / 1e6:.4g} million multiply-adds an image" in line
    assert line.endswith(f"; {recipe.train.epochs} epochs of 10 steps of 10 images")
    once = untrained(load_recipe("digits", ["train.batch_size=10", "train.epochs=1"]))
    assert cost_line(once, macs, 105).endswith("; 1 epoch of 10 steps of 10 images")


def trainer(loss=None, epoch=0, **more):
    metrics = {} if loss is None else {"train/rough_loss": torch.tensor(loss)}
    return SimpleNamespace(
        callback_metrics=metrics,
        current_epoch=epoch,
        is_global_zero=True,
        should_stop=False,
        **more,
    )


MODULE = SimpleNamespace(recipe=load_recipe("digits"), num_steps=111, split_step=0)


@pytest.mark.parametrize(
    ("losses", "is_told"),
    [
        ([2.3, 2.301, 2.299, 2.3], True),
        ([2.3, 2.2, 2.3, 2.3], False),
        ([2.3, 2.3], False),
        ([0.9, 0.5, 0.5, 0.5], False),
        ([2.3, 2.3, 4.0], True),
    ],
)
def test_a_loss_that_stands_still_is_told_once(losses, is_told, capsys):
    watch = Standing()
    for epoch, loss in enumerate(losses):
        again = Standing()
        again.load_state_dict(watch.state_dict())  # as after --resume
        watch = again
        watch.on_train_epoch_end(trainer(loss, epoch), MODULE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == is_told
    if is_told:
        assert lines[0].startswith(f"the loss stands still: {losses[0]:.3f} in epoch 1, ")
        assert "in epoch 3; most likely train.lr=" in lines[0]


def test_time_is_told_from_the_first_steps(capsys, monkeypatch):
    clock = iter([100.0, 120.0])
    monkeypatch.setattr("vision.training.health.time.monotonic", lambda: next(clock))
    watch = Expectation()
    for step in range(1, 14):
        watch.on_train_batch_end(trainer(global_step=step), MODULE, None)
    out = capsys.readouterr().out
    assert out.startswith("expected: 0:03:20 more (from 10 steps); ")  # 100 steps of 2 s
    assert re.search(r"; [\d.]+ [MG]iB of memory so far\n$", out)


def test_patience(capsys):
    watch = Patience("val/selected_accuracy", 2)
    for epoch, value in enumerate((0.5, 0.6, 0.6, 0.55)):
        now = trainer(epoch=epoch, state=SimpleNamespace(fn="fit"), strategy=Strategy())
        now.callback_metrics = {"val/selected_accuracy": torch.tensor(value)}
        now.sanity_checking = now.fast_dev_run = False
        watch._should_skip_check = lambda _: False
        watch.on_validation_end(now, None)
        assert now.should_stop == (epoch == 3)
    assert capsys.readouterr().out == (
        "ended after epoch 4: 2 epochs without a higher val/selected_accuracy (train.patience)\n"
    )
    resumed = Patience("val/selected_accuracy", 2)
    resumed.load_state_dict(watch.state_dict())
    now = trainer()
    resumed.on_train_start(now, None)
    assert now.should_stop


class Strategy:
    def reduce_boolean_decision(self, decision, all):
        return decision


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_further_loggers_write_into_the_run(tmp_path, name):
    (logger,) = further_logger(name, tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.save()
    logger.finalize("success")
    assert [path for path in (tmp_path / "logs" / name).rglob("*") if path.is_file()]


def test_no_logger_and_one_without_its_package(tmp_path, monkeypatch):
    assert further_logger(None, tmp_path) == []

    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr("vision.training.loggers.MLFlowLogger", missing)
    with pytest.raises(
        ValueError, match=r"train.logger mlflow needs its package: pip install mlfl"
    ):
        further_logger("mlflow", tmp_path)
    with pytest.raises(ValueError, match=r"train.logger: expected one of .*'wandb'.*got wandbb"):
        load_recipe("digits", ["train.logger=wandbb"])


WORDS = ["digits", "data.train_fraction=0.2", "num_experts=2", "controls={}"]
WORDS += ["train.epochs=1", "train.batch_size=16", "train.ema_decay=0.999"]


@pytest.mark.slow
def test_rates_are_found_and_nothing_is_kept(cli, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vision.training.learning_rate.STEPS", 14)
    assert cli("train", *WORDS, "--find-lr") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("the loss falls ")
    assert len([line for line in lines if line.startswith("lr ")]) >= 10
    # Three steps an epoch: as many epochs as the test needs, whatever the recipe says.
    assert cli("train", *WORDS, "train.batch_size=64", "--find-lr") == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line[:3] == "lr "]) >= 10
    monkeypatch.setattr("vision.training.learning_rate.LOWEST", 1e3)
    monkeypatch.setattr("vision.training.learning_rate.HIGHEST", 1e9)
    assert cli("train", *WORDS, "--find-lr") == 2
    ended = r"ended after \d of 14 steps(, the last with .* of [\d.e+]+)?: the loss had grown"
    assert re.search(ended, capsys.readouterr().err)
    assert cli("train", *WORDS, "--find-lr", "--resume") == 2
    assert "--find-lr keeps no run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_cost_and_warns(cli, tmp_path, capsys):
    assert cli("train", *WORDS, "train.logger=csv", "--out", tmp_path / "run") == 0
    output = capsys.readouterr()
    assert "to train: " in output.out
    assert "expected: " not in output.out  # in a moment it is done
    assert "train.ema_decay=0.999 is not reached in 14 steps" in output.err
    assert "train/rough_loss" in (tmp_path / "run/logs/csv/metrics.csv").read_text()
