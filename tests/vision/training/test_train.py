"""Training through the command line: what a run holds, exact resume, nothing lost."""

import csv
import json
import os
import re
import shutil
import signal
from importlib import metadata

import pytest
import torch
import yaml

from vision.recipe import load_recipe, recipe_from_dict
from vision.run import load_run
from vision.training.module import CoETraining

LAST = "checkpoints/last.ckpt"
# Dropout and stochastic depth, so that the random state matters; one of timm's smallest networks.
DROPOUT = "{name: test_efficientnet, options: {drop_rate: 0.3, drop_path_rate: 0.2}}"
SHORT = ["digits", "data.train_fraction=0.2", "train.batch_size=32", "num_experts=2"]
# Not bf16, which "auto" takes where it is fast: oneDNN's depthwise convolutions are not repeatable in it.
SHORT += ["train.epochs=3", "controls={}", "train.precision=32-true"]
BATCHES = 7  # per epoch


@pytest.fixture(scope="module")
def uninterrupted(cli, tmp_path_factory):
    """Folder of a run of three epochs that is trained once for all that are stopped."""
    known = {}

    def trained_with(overrides):
        key = tuple(overrides)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("uninterrupted") / "whole"
            assert cli("train", *SHORT, *overrides, "--out", known[key]) == 0
        return known[key]

    return trained_with


def rows(folder):
    with (folder / "metrics/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_run_folder(trained):
    content = torch.load(trained / LAST, weights_only=True)
    assert content["global_step"] == 2 * BATCHES
    assert content["epoch"] == 1
    run = load_run(trained)
    assert run.networks.classes == [str(digit) for digit in range(10)]
    assert run.networks.team.num_experts == 3
    assert not run.networks.training
    assert set(run.operating_points) == {"best", "drop", "half"}
    assert (trained / "checkpoints/best.ckpt").is_file()
    assert list((trained / "tensorboard").glob("events.*"))


def test_metrics_of_every_epoch(trained):
    logged = rows(trained)
    for name in ("val/rough_accuracy", "val/control_expert_accuracy", "train/expert_loss"):
        assert [row["epoch"] for row in logged if row[name]] == ["0", "1"]
    assert {row["step"] for row in logged} == {str(BATCHES - 1), str(2 * BATCHES - 1)}
    assert all(0 <= float(row["val/oracle_accuracy"] or 0) <= 1 for row in logged)


def test_saved_recipe_is_the_recipe(trained):
    saved = recipe_from_dict(yaml.safe_load((trained / "recipe.yaml").read_text()))
    assert saved == load_recipe(str(trained / "recipe.yaml")) == load_run(trained).recipe
    assert saved.train.epochs == 2
    assert saved.num_experts == 3


def test_provenance(trained):
    stored = json.loads((trained / "provenance.json").read_text())
    assert {"command", "commit", "packages", "python", "precision", "data"} <= set(stored)
    assert stored["packages"]["torch"] == metadata.version("torch")
    assert stored["data"]["num_train"] == 227


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [[f"delegator={DROPOUT}", f"experts={DROPOUT}"], ["train.ema_decay=0.9"]],
    ids=["dropout", "ema"],
)
def test_two_epochs_and_one_equal_three(cli, same, final_state, tmp_path, uninterrupted, overrides):
    whole, parts = uninterrupted(overrides), tmp_path / "parts"
    assert cli("train", *SHORT, *overrides, "--out", parts, "--stop-after", 2) == 0
    halfway = final_state(parts)
    assert halfway["global_step"] == 2 * BATCHES
    again = ["train", *SHORT, *overrides, "--out", parts, "--resume"]
    assert cli(*again, "--stop-after", 2) == 0  # it has these epochs: nothing to do
    assert same(final_state(parts), halfway)
    assert cli(*again) == 0
    assert same(final_state(parts), final_state(whole))
    assert not same(final_state(parts)["state_dict"], halfway["state_dict"])
    assert rows(parts) == rows(whole)
    if "train.ema_decay=0.9" in overrides:
        content = torch.load(parts / LAST, weights_only=True)
        averaged = load_run(parts).networks.team.delegator.state_dict()
        name = "networks.team.delegator.stem.0.weight"
        assert torch.equal(averaged["stem.0.weight"], content["state_dict"][name])
        assert not torch.equal(averaged["stem.0.weight"], content["current_model_state"][name])


def test_resuming_a_complete_run_changes_nothing(cli, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    kept = ("metrics/metrics.csv", LAST, "recipe.yaml")
    before = {name: (folder / name).read_bytes() for name in kept}
    assert cli("train", folder / "recipe.yaml", "--out", folder, "--resume") == 0
    assert {name: (folder / name).read_bytes() for name in kept} == before
    stored = json.loads((folder / "provenance.json").read_text())
    assert len(stored["resumed"]) == 1
    assert stored["command"] == json.loads((trained / "provenance.json").read_text())["command"]


def signal_at(monkeypatch, step, number):
    """The process gets the signal while it trains on the batch with this number."""
    original = CoETraining.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CoETraining, "training_step", training_step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step", "overrides"),
    [
        (signal.SIGINT, BATCHES + 2, [f"delegator={DROPOUT}", f"experts={DROPOUT}"]),
        (signal.SIGTERM, BATCHES + 2, ["objective.scope=dataset"]),
        (
            signal.SIGINT,
            0,
            ["objective.scope=queue", "objective.queue_size=100", "train.ema_decay=0.9"],
        ),
        (signal.SIGTERM, 2 * BATCHES - 1, []),  # the last batch of an epoch
    ],
    ids=["dropout", "dataset", "queue-ema", "last-batch"],
)
def test_signal_and_resume_equal_the_uninterrupted_run(
    cli, same, final_state, tmp_path, monkeypatch, capsys, uninterrupted, number, step, overrides
):
    recipe = [*SHORT, *overrides]
    whole, parts = uninterrupted(overrides), tmp_path / "parts"
    capsys.readouterr()
    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        signal_at(patched, step, number)
        assert cli("train", *recipe, "--out", parts) == 128 + number
    assert signal.getsignal(number) == before
    assert re.search(
        rf"stopped by {number.name}; state kept in .*last.ckpt", capsys.readouterr().err
    )
    assert final_state(parts)["global_step"] == step + 1
    assert cli("train", *recipe, "--out", parts, "--resume") == 0
    assert same(final_state(parts), final_state(whole))
    # Losses are logged as means over the batches since the resume; accuracies are exact.
    held_out = [
        [{k: v for k, v in r.items() if "train" not in k} for r in rows(f)] for f in (parts, whole)
    ]
    assert held_out[0] == held_out[1]


@pytest.mark.slow
def test_a_killed_run_repeats_no_rows(cli, tmp_path):
    """Rows written after the last checkpoint are trained, and written, again."""
    folder = tmp_path / "run"
    recipe = [*SHORT, "train.epochs=2"]
    assert cli("train", *recipe, "--out", folder, "--stop-after", 1) == 0
    first = rows(folder)
    with (folder / "metrics/metrics.csv").open("a", newline="") as file:
        csv.DictWriter(file, first[0]).writerow({**first[0], "epoch": 1, "step": BATCHES + 3})
    assert cli("train", *recipe, "--out", folder, "--resume") == 0
    # The second half of the training measures more (the selection): its columns are added behind.
    kept = [{name: row[name] for name in first[0]} for row in rows(folder)[: len(first)]]
    assert kept == first
    assert [row["step"] for row in rows(folder)] == ["6", "6", "13", "13"]


def test_an_existing_run_is_left_alone(cli, trained, capsys):
    before = files(trained)
    assert cli("train", "digits", "--out", trained) == 2
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err
    assert files(trained) == before


def test_resume_with_another_recipe_names_what_differs(cli, trained, capsys):
    before = files(trained)
    changed = ["train.lr=0.3", "experts.options.width=5", "data.workers=0"]
    recipe = trained / "recipe.yaml"
    assert cli("train", recipe, *changed, "--out", trained, "--resume") == 2
    message = capsys.readouterr().err
    assert "train.lr was 0.1, now 0.3" in message
    assert "'width': 2" in message
    assert "'width': 5" in message
    assert "workers" not in message  # how data are read does not matter
    assert files(trained) == before


def test_resume_on_other_data(cli, trained, tmp_path, monkeypatch, capsys):
    from vision.training import train as module

    original = module.load_data

    def fewer(settings):
        data = original(settings)
        data.classes = [f"other {name}" for name in data.classes]
        return data

    monkeypatch.setattr(module, "load_data", fewer)
    assert cli("train", trained / "recipe.yaml", "--out", trained, "--resume") == 2
    assert re.search("trained on other data: classes was .*'other 0'", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: writing it was broken off, or the disk was full"),
        (b"no checkpoint at all", "cannot be read as a checkpoint"),
        ("half", "is damaged: it is cut short, its end is missing"),
        ({"weights": 1}, "not a checkpoint of coe-vision: it holds no recipe"),
        ({"hyper_parameters": None}, "not a checkpoint of coe-vision: it holds no recipe"),
        ([1, 2], "not a checkpoint of coe-vision"),
    ],
    ids=["empty", "text", "cut", "foreign", "no-parameters", "list"],
)
def test_what_is_no_checkpoint(cli, trained, tmp_path, capsys, content, message):
    path = tmp_path / LAST
    path.parent.mkdir()
    if content == "half":
        whole = (trained / LAST).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    before = files(tmp_path)
    for arguments in (("train", "digits", "--out", tmp_path, "--resume"), ("evaluate", path)):
        assert cli(*arguments) == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert error.count("\n") == 1
    assert files(tmp_path) == before


def test_weights_that_do_not_fit(cli, trained, tmp_path, capsys):
    content = torch.load(trained / LAST, weights_only=True)
    content["hyper_parameters"]["recipe"]["experts"][0]["options"]["width"] = 8
    torch.save(content, tmp_path / "changed.ckpt")
    assert cli("inspect", tmp_path / "changed.ckpt") == 2
    assert "do not fit its recipe" in capsys.readouterr().err


def test_missing_run(cli, tmp_path, capsys):
    assert cli("evaluate", tmp_path / "nothing") == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert cli("evaluate", tmp_path) == 2
    assert "is not a run folder: it has no checkpoints/last.ckpt" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(cli, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file/run", "/proc/run"):
        assert cli("train", "digits", "--out", out) == 2
        assert f"cannot write to {out}: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_network_that_cannot_take_the_images_fails_before_training(cli, tmp_path, capsys):
    assert cli("train", *SHORT, "experts.name=vit_tiny_patch16_224", "experts.options={}",
               "--out", tmp_path / "run") == 2  # fmt: skip
    assert "expert 0 (vit_tiny_patch16_224) cannot take images" in capsys.readouterr().err
    assert not (tmp_path / "run" / LAST).exists()
