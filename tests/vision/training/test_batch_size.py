"""train.batch_size: auto: what is chosen of which bytes, what is said, and that a run keeps its number."""

import re
import signal

import pytest
import torch
import yaml

from vision.checkpoints import LAST
from vision.errors import Interrupted, RunError
from vision.evaluation.advise import shortened
from vision.recipe import Train, load_recipe
from vision.run import load_run
from vision.training import batch_size
from vision.training.batch_size import choose_batch_size, with_batch_size
from vision.training.dry_run import DryRun, two_steps
from vision.training.processes import Processes
from vision.training.train import train

GIB, MIB = 2**30, 2**20
SMALL = ["digits", "data.train_fraction=0.2", "num_experts=2", "controls={}", "train.epochs=2"]
SMALL += ["train.precision=32-true", "train.batch_size=auto"]


@pytest.mark.parametrize(
    ("available", "state", "image", "num_images", "accumulate", "images"),
    [
        # (4 - 1) GiB / 25 MiB = 122.9 images
        (8 * GIB, GIB, 25 * MIB, 50_000, 1, 64),
        (8 * GIB, GIB, 24 * MIB, 50_000, 1, 128),  # exactly 128
        # at least ten steps of 1,279 images: 127 a step
        (80 * GIB, GIB, MIB, 1_279, 1, 64),
        (80 * GIB, GIB, MIB, 1_280, 1, 128),
        # never more than 256; as many where the number of images is not known
        (80 * GIB, GIB, MIB, 10**6, 1, 256),
        (80 * GIB, GIB, MIB, None, 1, 256),
        # four parts of a step: memory is of one, the other bounds are of the step
        (8 * GIB, GIB, 96 * MIB, 50_000, 4, 128),  # 32 at once
        (80 * GIB, GIB, MIB, 50_000, 4, 256),
        (80 * GIB, GIB, MIB, 50_000, 3, 192),  # 85 at once: 64
        # few images: two at once, whatever the number of steps
        (80 * GIB, GIB, MIB, 15, 1, 2),
        (80 * GIB, GIB, 0, 50_000, 1, 256),  # nothing is kept
        (2 * GIB, 0, 512 * MIB, 50_000, 1, 2),  # just two
    ],
)
def test_what_is_chosen(available, state, image, num_images, accumulate, images):
    assert choose_batch_size(available, state, image, num_images, accumulate).images == images


def test_what_is_said():
    line = choose_batch_size(8 * GIB, GIB, 25 * MIB, 5_000).line(lr=0.1)
    assert line == (
        "train.batch_size: auto chose 64: memory holds 122 images at once (50% of 8 GiB available, 1 GiB for "
        "weights, gradients and optimiser, 25 MiB an image), 10 steps an epoch allow 500 a step, the most is "
        "256; train.lr=0.1 is left as it is (--find-lr tries others)"
    )
    line = choose_batch_size(8 * GIB, GIB // 4, 96 * MIB, None, accumulate=4).line(lr=0.01)
    assert "chose 128 in 4 parts of 32: memory holds 40 images at once (" in line
    assert "256 MiB for weights" in line
    assert "), the number of images is not known yet, the most is 256; train.lr=0.01 is" in line


@pytest.mark.parametrize(("available", "image"), [(8, 2 * GIB), (1, MIB)])
def test_no_room(available, image):
    with pytest.raises(
        RunError,
        match=rf"auto finds no room for 2 images at once: 50% of {available} GiB available, 1 GiB for .*, "
        r"\d (MiB|GiB) an image; lower data.size, take smaller or fewer networks, or give train.batch_s",
    ):
        choose_batch_size(available * GIB, GIB, image, 50_000)


@pytest.mark.parametrize("word", ["large", "auot", "6.5", "null", "[64]", "true"])
def test_bad_values(word):
    with pytest.raises(ValueError, match=r"train\.batch_size: expected int or 'auto', got "):
        load_recipe("digits", [f"train.batch_size={word}"])


def test_values_in_a_program_and_before_a_training():
    assert load_recipe("digits", ["train.batch_size=32"]).train.images_per_step == 32
    with pytest.raises(ValueError, match=r"train.batch_size must be a number or auto, got 'most'"):
        Train(batch_size="most")
    with pytest.raises(ValueError, match=r"must be at least 1, got 0 and auto"):
        Train(epochs=0, batch_size="auto")
    section = Train(batch_size="auto", accumulate=3)
    with pytest.raises(ValueError, match="auto, which is chosen when a training begins: give a nu"):
        section.images_at_once  # noqa: B018


@pytest.fixture
def measured(monkeypatch):
    """What is available, and what two steps are said to have shown."""

    def say(available, state=GIB, image=25.0 * MIB):
        steps = DryRun(4, (1.0, 1.0), (1.0, 1.0), state, image, None, 0.0)
        monkeypatch.setattr(batch_size, "available_memory", lambda: available)
        monkeypatch.setattr(batch_size, "_measured", lambda *_: steps)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    return say


def test_a_system_that_tells_nothing(measured):
    measured(None)
    with pytest.raises(RunError, match="does not tell how much memory is available; give a number"):
        with_batch_size(load_recipe("digits", SMALL[1:]), 5_000, train)


def test_a_gpu_is_asked_for_what_is_free(measured, monkeypatch, capsys):
    measured(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * GIB, 80 * GIB))
    assert with_batch_size(load_recipe("digits", SMALL[1:]), 5_000, train).train.batch_size == 64
    assert "50% of 8 GiB available" in capsys.readouterr().out


def test_what_is_measured(monkeypatch):
    """One process, no parts, nothing compiled, and experts that are no longer one network."""
    tried = []
    monkeypatch.setattr(batch_size, "two_steps", lambda recipe, _: tried.append(recipe))
    words = [*SMALL[1:], "train.accumulate=3", "train.compile=true"]
    batch_size._measured(load_recipe("digits", words), train)
    short = tried[0].train
    assert (short.batch_size, short.accumulate, short.compile) == (64, 1, False)

    def stopped(*_):
        raise Interrupted(signal.SIGTERM, "state kept in a folder that is gone")

    monkeypatch.setattr(batch_size, "two_steps", stopped)
    with pytest.raises(Interrupted, match="auto was measured; nothing was kept"):
        batch_size._measured(load_recipe("digits", words), train)


@pytest.mark.slow
def test_a_long_shared_start_is_measured_after_it():
    words = [*SMALL[1:], "train.batch_size=32"]
    apart, late = (
        two_steps(load_recipe("digits", [*words, f"objective.shared_start={part}"]), train)
        for part in (0, 0.9)
    )
    assert late.activation_bytes == apart.activation_bytes


@pytest.mark.slow
def test_a_run_keeps_its_number(cli, tmp_path, capsys, monkeypatch):
    assert cli("train", *SMALL, "--stop-after", 1, "--out", tmp_path / "run") == 0
    (line,) = re.findall(r"train\.batch_size: auto chose (.*)", capsys.readouterr().out)
    # 227 images: 22 a step
    assert line.startswith("16: memory holds ")
    assert "10 steps an epoch allow 22 a step, the most is 256; train.lr=0.1 is left as" in line
    saved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert saved["train"]["batch_size"] == 16

    monkeypatch.setattr(batch_size, "_measured", None)  # nothing is measured again
    assert cli("train", *SMALL, "--out", tmp_path / "run") == 2
    assert "already holds a run; continue it with --resume" in capsys.readouterr().err
    assert cli("train", *SMALL, "--resume", "--out", tmp_path / "run") == 0
    assert "train.batch_size: auto is 16, as the run began\n" in capsys.readouterr().out
    assert cli("train", *SMALL, "train.batch_size=16", "--out", tmp_path / "number") == 0
    ours, theirs = (load_run(tmp_path / name).networks.state_dict() for name in ("run", "number"))
    assert load_run(tmp_path / "run").recipe.train.batch_size == 16
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    # Several processes: not measured, but a number that is known holds.
    team = Processes(count=2, rank=1, launcher="torchrun")
    monkeypatch.setattr(batch_size, "processes", lambda: team)
    recipe = load_recipe("digits", SMALL[1:])
    assert with_batch_size(recipe, 227, train, tmp_path / "run").train.batch_size == 16
    with pytest.raises(
        ValueError,
        match="auto measures one process, and 2 were started: give a number of images over all of them",
    ):
        with_batch_size(recipe, 227, train, tmp_path / "new")
    # A trial of several starts that was interrupted.
    (tmp_path / "trials/starts").mkdir(parents=True)
    (tmp_path / "run").rename(tmp_path / "trials/starts/0")
    assert (tmp_path / "trials/starts/0" / LAST).is_file()
    assert with_batch_size(recipe, 227, train, tmp_path / "trials").train.batch_size == 16


@pytest.mark.slow
def test_commands_that_keep_no_run(cli, tmp_path, capsys, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    measured(8 * GIB)
    monkeypatch.setattr("vision.training.learning_rate.STEPS", 14)
    assert cli("inspect", *SMALL) == 0
    assert cli("train", *SMALL, "--find-lr") == 0
    assert "train.batch_size: auto chose 16: memory holds 122" in capsys.readouterr().out
    assert cli("train", *SMALL, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "auto chose 64: memory holds 122 images at once" in shown
    assert "(the recipe's batch: 64): losses " in shown
    assert not list(tmp_path.iterdir())
    study = "recipe: digits\nvariants: {plain: [], mine: [train.batch_size=auto]}\n"
    (tmp_path / "mine.yaml").write_text(study + "baseline: plain\nseeds: [0]\n")
    assert cli("study", "mine.yaml", "--out", "studies") == 2
    assert (
        "variant 'mine' has train.batch_size: auto; a study compares runs of equal batches: give a number"
        in capsys.readouterr().err
    )


def test_an_advice_takes_as_few_images_as_it_likes():
    short = shortened(load_recipe("digits", SMALL[1:]), 1_000, seen=100)
    assert short.data.train_fraction == pytest.approx(0.2 * 100 / (2 * 1_000))
