"""What a training keeps and tells: locks, best and metrics after a kill, averages, divergence, any folder."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from coe_core import CoEError
from coe_core.support.locks import locked
from coe_core.threads import Threads
from vision.recipe import load_recipe, recipe_from_dict
from vision.run import load_run
from vision.training import records
from vision.training import train as module
from vision.training.callbacks import warm_average
from vision.training.folder import held_folder
from vision.training.records import MetricsFile
from vision.training.train import train

LAST = "checkpoints/last.ckpt"
SHORT = ["data.train_fraction=0.15", "train.batch_size=32", "num_experts=2", "controls={}"]
SHORT += ["train.precision=32-true", "data.workers=0"]
SMALL = {"name": "small_resnet", "options": {"width": 4}}
ENSEMBLES = {"a": {"network": SMALL, "s": 2, "rule": "none"}, "b": {"network": SMALL, "s": 1}}


def rows(folder):
    with (folder / "metrics/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def digits():
    return load_recipe("digits", [*SHORT, "train.epochs=3"])


@pytest.fixture(scope="module")
def brief():
    """For what does not depend on how much is learned."""
    return load_recipe("digits", [*SHORT, "train.epochs=2", "data.train_fraction=0.05"])


@pytest.fixture(scope="module")
def trained_once(digits, tmp_path_factory):
    """A whole run; beside it what lay there before each of its writes, as a kill would leave it."""
    base, count = tmp_path_factory.mktemp("trained_once"), 0

    def remembering(write):
        def call(path, content):
            nonlocal count
            count += 1
            shutil.copytree(base / "whole", base / f"before {count}")
            write(path, content)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "write_bytes", remembering(records.write_bytes))
        patch.setattr(records, "write_text", remembering(records.write_text))
        train(digits, base / "whole")
    return base


@pytest.fixture(scope="module")
def whole(trained_once):
    return trained_once / "whole"


# Whoever kills it, at whatever write: nothing is lost, nothing is there twice


@pytest.mark.parametrize("number", range(8), ids=lambda number: f"write-{number}")
def test_a_kill_at_any_write_of_an_epoch_leaves_the_same_run(
    digits, trained_once, whole, tmp_path, same, number
):
    """Writes of an epoch: validation's row, the epoch's, best (where it is), last."""
    folder = tmp_path / "run"
    shutil.copytree(trained_once / f"before {number + 4}", folder)  # after the first epoch's
    train(digits, folder, resume=True)
    for name in (LAST, "checkpoints/best.ckpt"):
        assert same(weights(folder / name), weights(whole / name))
    assert rows(folder) == rows(whole)


def test_half_a_row_of_an_earlier_version_goes(tmp_path):
    path = tmp_path / "metrics/metrics.csv"
    path.parent.mkdir()
    path.write_bytes(b"epoch,step,train/x\r\n0,6,0.5\r\n1,13,0.25\r\n2,\x00\x00\xff")
    file = MetricsFile(tmp_path, 14)
    file.log_metrics({"train/x": torch.tensor(0.125), "epoch": 2}, 20)
    file.log_metrics({"train/x": torch.tensor(0.125), "epoch": 2}, 20)  # by the trainer, again
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == ["6", "13", "20"]


# One at a time


def test_a_folder_that_is_trained_into_is_refused_by_process_and_host(
    cli, trained, tmp_path, capsys
):
    with held_folder(tmp_path):
        for options in ([], ["--resume"]):
            assert cli("train", "digits", *SHORT, "--out", tmp_path, *options) == 2
            error = capsys.readouterr().err
            assert re.search(
                rf"{tmp_path} is being written by .*, process {os.getpid()} on \S+, since .*; wait for it, "
                "stop it, or choose another --out",
                error,
            )
            assert error.count("\n") == 1


@pytest.mark.process
def test_the_lock_of_a_killed_training_is_taken_over_and_that_is_said(digits, tmp_path, capsys):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    with held_folder(tmp_path):
        pass
    assert f"process {child.pid} on" in capsys.readouterr().err
    with locked(tmp_path):
        assert (tmp_path / "checkpoints").is_dir()


HOLD = """
import sys, time
from coe_core import CoEError
from coe_core.support.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


# Any name is a plain local path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["a::b", "file:x::zip:y", "100%#?*[x]", " spaces ", "new\nline", "~", "memory:", "registry:x"],
)
def test_any_folder(brief, tmp_path, monkeypatch, name):
    folder = tmp_path / name
    monkeypatch.chdir(tmp_path)
    train(brief, module.Path(name), stop_after=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    train(brief, module.Path(name), resume=True)
    assert load_run(folder).networks.team is not None
    assert list((folder / "tensorboard").glob("events*"))
    assert {row["epoch"] for row in rows(folder)} == {"0", "1"}


def test_a_folder_that_is_not_utf_8(brief, tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    train(brief, folder, stop_after=1)
    train(brief, folder, resume=True)
    assert len(rows(folder)) == 4
    assert (
        capsys.readouterr().err.count("no TensorBoard events: the folder's name is not UTF-8") == 2
    )


# Averages and what diverges


@pytest.mark.slow
def test_a_short_training_with_a_long_average_learns(tmp_path):
    """A decay that looks back on 10,000 steps, over 66: without a warm-up it stays at its random start."""
    recipe = load_recipe("digits", ["num_experts=2", "controls={}", "train.epochs=3", "data.workers=0",
                                    "train.ema_decay=0.9999"])  # fmt: skip
    train(recipe, tmp_path)
    last = [
        float(row["val/expert_accuracy"]) for row in rows(tmp_path) if row["val/expert_accuracy"]
    ]
    assert last[-1] > 0.35


def test_the_average_is_warmed_up_to_its_decay():
    zero, one = torch.zeros(()), torch.ones(())
    assert float(warm_average(0.9)(zero, one, 0)) == pytest.approx(0.9)  # 1 - 1/10
    assert float(warm_average(0.9)(zero, one, 40)) == pytest.approx(1 - 41 / 50)
    assert float(warm_average(0.9)(zero, one, 10_000)) == pytest.approx(0.1)


def diverging(original):
    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            next(self.networks.ensembles["a"].parameters()).fill_(torch.nan)
        return original(self, batch, batch_idx)

    return training_step


def ensembles(entries, **changes):
    values = {
        "data": {"name": "digits", "train_fraction": 0.15, "workers": 0},
        "ensembles": entries,
    }
    return recipe_from_dict({**values, "train": {"epochs": 2, "batch_size": 32, **changes}})


@pytest.mark.slow
def test_an_ensemble_that_diverged_is_told_and_kept_on_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        module.CoETraining, "training_step", diverging(module.CoETraining.training_step)
    )
    train(ensembles(ENSEMBLES), tmp_path)
    error = capsys.readouterr().err
    assert re.search(
        r"ensemble a diverged in epoch 1: values that are not finite; most likely train\.lr=0\.1 is too "
        "high: lower it, or raise train.warmup; the others train on",
        error,
    )
    assert error.count("diverged") == 1  # once, not in every epoch
    assert json.loads((tmp_path / "provenance.json").read_text())["diverged"] == ["ensemble a"]
    assert load_run(tmp_path, team=False).networks.diverged() == ["ensemble a"]


@pytest.mark.slow
def test_a_learning_rate_that_is_too_high(cli, tmp_path, capsys):
    """Weights grow beyond all numbers: the team's scores tell, and the ensembles' weights."""
    values = ensembles({"a": ENSEMBLES["a"]}).to_dict()
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    plain = json.dumps({"name": "test_resnet", "options": {"norm_layer": "groupnorm1"}})
    team = ["digits", *SHORT, f"delegator={plain}", f"experts={plain}", "data.size=16"]
    network = f"ensembles.a.network={plain}"
    for recipe in (team, [tmp_path / "recipe.yaml", network, "data.size=16"]):
        fast = ["train.lr=1000", "train.epochs=3", "train.optimizer=sgd", "train.precision=32-true"]
        assert cli("train", *recipe, *fast, "--out", tmp_path / str(len(recipe))) == 2
        error = capsys.readouterr().err
        assert re.search(r"diverged in epoch \d: .*train\.lr=1000 is too high: lower it", error)
        assert error.count("\n") == 1


@pytest.mark.slow
def test_one_sample_and_batch_normalisation(cli, tmp_path, capsys):
    network = '{"name": "test_resnet", "options": {}}'
    recipe = [*SHORT, "train.batch_size=1", "data.size=8", "data.train_fraction=0.05"]
    recipe += [f"delegator={network}", f"experts={network}"]
    assert cli("train", "digits", *recipe, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert re.search(r"batches of one image, .*batch normalisation.*raise train\.batch_size", error)
    assert error.count("\n") == 1
    assert not (tmp_path / LAST).exists()


# What is resumed from


@pytest.mark.parametrize("place", ["loops", "callbacks", "optimizer_states", "lr_schedulers"])
@pytest.mark.parametrize("value", [None, 3, {}, [], {"a": 1}, [None], ["x"], [{}]])
def test_a_state_of_another_kind_in_one_line(digits, whole, tmp_path, place, value):
    content = torch.load(whole / LAST, weights_only=True)
    content[place] = value
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / LAST)
    try:
        train(digits, tmp_path, resume=True)
    except (CoEError, ValueError) as error:
        assert str(tmp_path) in str(error)  # noqa: PT017  what is not used may be anything
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert isinstance(value, dict | list)


# Threads


def test_a_resumed_run_takes_the_threads_it_began_with(digits, tmp_path, monkeypatch, capsys):
    """Sums depend on their number; and choosing draws nothing from the training's random state."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "choose_threads", lambda *_: Threads(2, "measured"))
    train(digits, tmp_path, stop_after=1)
    assert "computing with 2 threads (measured)\n" in capsys.readouterr().out
    monkeypatch.setattr(module, "choose_threads", lambda *_: Threads(1, "measured"))
    before = torch.get_num_threads()
    train(digits, tmp_path, resume=True, stop_after=2)
    assert "computing with 2 threads (as before)\n" in capsys.readouterr().out
    assert torch.get_num_threads() == before
    content = torch.load(tmp_path / LAST, weights_only=True)
    assert content["callbacks"]["ThreadCount"] == {"count": 2}


def test_trying_threads_changes_nothing(digits):
    networks = load_networks(digits)
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    state = torch.get_rng_state()
    module._trial(networks, 8)()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in networks.state_dict().items())


def load_networks(recipe):
    from vision.recipe_networks import Networks

    classes = [str(label) for label in range(10)]
    return Networks(recipe.to_dict(), classes, recipe.data.preprocess().to_dict())
