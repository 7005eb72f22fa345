"""The command itself: help, bad usage, recipes, inspect; errors are one line without a traceback."""

import re

import pytest

from vision.commands.cli import COMMANDS as TABLE
from vision.recipe import load_recipe
from vision.shipped import shipped_recipes, shipped_studies

COMMANDS = [command.name for command in TABLE]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(cli, capsys, command):
    assert cli(command, "--help") == 0
    assert f"usage: coe-vision {command}" in capsys.readouterr().out


def test_help_lists_the_commands(cli, capsys):
    assert cli("--help") == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^ +{command}\b", shown, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["trian"], "; nearest: train; see coe-vision --help"),
        (["train"], "required: recipe;"),
        (["check"], "required: data;"),
        (["train", "digits", "--epochs", "3"], "unrecognized arguments: --epochs"),
        (["train", "digits", "--stop-after", "0"], "must be at least 1, got 0"),
        (["evaluate", "run", "--nothing"], "unrecognized arguments: --nothing"),
        (["train", "digits", "epochs"], "override 'epochs' is not of the form key=value"),
        (["train", "digts"], "'digts'; nearest: digits"),
        (["recipes", "copy"], "copy which recipe"),
        (["recipes", "list", "digits"], "list takes no name, got 'digits'; copy does"),
        (["train", "digits", "--out", ""], "argument out: is empty"),
        (["train", "a\udcff"], "'a\\udcff'"),
        (["train", "x" * 5000], "no recipe can be called 'xxx"),
        (["train", "/dev/null"], "no regular file"),
        (
            ["divide", "small_resnet", "-s", "2", "--size", "-3"],
            "--size: must be at least 1, got -3",
        ),
        (
            ["divide", "small_resnet", "-s", "2", "--size", "99999"],
            "must be at most 16384, got 99999",
        ),
        (
            ["divide", "small_resnet", "-s", "2", "--tolerance", "nan"],
            "must be in [0, inf), got nan",
        ),
        (["divide", "small_resnet", "-s", "x"], "-s: invalid int value: 'x'"),
        (["export", "run", "--to", "onnx", "--check", "0"], "--check: must be at least 1, got 0"),
        (["export", "run", "--to", "xml"], "invalid choice: 'xml'"),
        (
            ["predict", "run", "x.png", "--batch-size", "0"],
            "--batch-size: must be at least 1, got 0",
        ),
        (["predict", "run", "x.png", "--at", "-5M"], "--at: expected one argument"),
        (["evaluate", "none", "--batch-size", "1e9"], "'1e9' is no whole number"),
        (["serve", "run", "--max-bytes", "inf"], "--max-bytes: 'inf' is no size"),
        (
            ["serve", "run", "--body-seconds", "nan"],
            "--body-seconds: must be in (0, 86400], got nan",
        ),
        (["serve", "run", "--max-requests", "-1"], "--max-requests: must be at least 1, got -1"),
        (["study", "digts"], "nearest: study/digits"),
        (["recipes", "copy", "digts"], "nearest: digits"),
        (["inspect", "nothing"], "no recipe file and no shipped recipe is called 'nothing'"),
    ],
)
def test_usage_errors(cli, capsys, arguments, message):
    assert cli(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_overrides_before_and_after_options(cli, capsys, tmp_path):
    path = tmp_path / "file"
    path.write_text("")  # in the way: the recipe is read, then nothing is trained
    assert cli("train", "digits", "seed=1", "--out", path, "train.epochs=1") == 2
    assert "cannot write" in capsys.readouterr().err
    assert cli("train", "digits", "--out", path, "train.epocs=1") == 2
    assert "nearest: train.epochs" in capsys.readouterr().err


def test_recipes_list(cli, capsys):
    assert cli("recipes") == 0
    shown = capsys.readouterr().out
    shipped = shipped_recipes() | shipped_studies()
    assert len(shown.splitlines()) == len(shipped) >= 20
    assert all(name in shown for name in shipped)
    assert {"digits", "study/digits"} <= set(shipped)


def test_recipes_copy_of_a_study(cli, tmp_path, capsys):
    assert cli("recipes", "copy", "study/digits", tmp_path) == 0
    assert "run it with: coe-vision study" in capsys.readouterr().out


def test_recipes_copy(cli, tmp_path, capsys):
    assert cli("recipes", "copy", "digits", tmp_path) == 0
    copied = tmp_path / "digits.yaml"
    assert str(copied) in capsys.readouterr().out
    assert load_recipe(str(copied)) == load_recipe("digits")
    copied.write_text("mine")
    assert cli("recipes", "copy", "digits", tmp_path) == 2
    assert "exists already and is left as it is" in capsys.readouterr().err
    assert copied.read_text() == "mine"
    assert cli("recipes", "copy", "digits", tmp_path / "other.yaml") == 0
    assert cli("recipes", "copy", "digits", tmp_path / "none/other.yaml") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_inspect_recipe(cli, capsys):
    assert cli("inspect", "digits", "num_experts=3", "experts.options.width=6") == 0
    shown = capsys.readouterr().out
    assert shown.count("small_resnet width=6, stages=3") == 3
    assert "control expert" in shown
    assert "mean MMACs of the" in shown


@pytest.mark.slow
def test_inspect_mixture_at_an_exit_rate(cli, capsys):
    """By hand: delegator + (1 - rate) * expert, on the parts that the table above it shows."""
    assert cli("inspect", "digits", "--exit-rate", 0.26) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines()]
    parts = {row[0]: [float(cell) for cell in row[-2:]] for row in rows if len(row) == 4}
    ((_, macs, parameters),) = [map(float, row) for row in rows if len(row) == 3]
    delegator, expert = parts["delegator"], parts["expert 0"]
    assert macs == pytest.approx(delegator[0] + 0.74 * expert[0], rel=1e-3)
    assert parameters == pytest.approx(delegator[1] + 4 * expert[1], rel=1e-3)

    assert cli("inspect", "digits", "--exit-rate", 1.5) == 2
    assert "exit_rate must be in [0, 1], got 1.5" in capsys.readouterr().err
    assert cli("inspect", "divide/digits_terms", "--exit-rate", 0.5) == 2
    assert "this recipe trains ensembles only" in capsys.readouterr().err


def test_inspect_run(cli, trained, capsys):
    assert cli("inspect", trained) == 0
    of_run = capsys.readouterr().out
    assert cli("inspect", trained / "recipe.yaml") == 0
    assert capsys.readouterr().out == of_run
    assert cli("inspect", trained, "num_experts=2") == 2
    assert "overrides are for recipes" in capsys.readouterr().err


def test_a_folder_of_the_same_name_does_not_hide_a_recipe(cli, tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli("inspect", "digits") == 0


def test_interrupted_before_training(cli, monkeypatch, capsys):
    from vision import recipe

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "load_recipe", interrupted)
    assert cli("train", "digits") == 130
    assert capsys.readouterr().err == "coe-vision train: interrupted\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "RUN", "x.png", "--out", "none/x.csv"], "x.png"),
        (["predict", "RUN", "x.png", "--threshold", "nan"], "x.png"),
        (["predict", "RUN", "a\udcff.png"], "a\\xff.png"),
        (["calibrate", "RUN", "best", "--data", "none"], "digits come with the toolkit"),
        (
            ["calibrate", "RUN", "accuracy_drop=1%", "--guarantee", "nan"],
            "must be in (0, 1), got nan",
        ),
        (["evaluate", "RUN", "--no-time", "--out", "/dev/null/x"], "/dev/null/x: Not a directory"),
        (["train", "digits", "--out", "/dev/null/x"], "cannot write to /dev/null/x"),
        (
            ["train", "digits", "--dry-run", "--resume", "--out", "x"],
            "--out, --resume have no effect: --dry-run keeps no run; leave them out",
        ),
        (["train", "digits", "--dry-run", "--stop-after", "1"], "--stop-after has no effect"),
        (["evaluate", "RUN", "--no-time", "--batch-size", "8"], "--batch-size has no effect"),
        (["calibrate", "RUN", "best", "--batch-size", "8"], "a batch size is for latency=... only"),
        (["predict", "RUN", "x.png", "--format", "table", "--out", "x.csv"], "is for the terminal"),
        (["export", "RUN", "--to", "pt2", "--opset", "18"], "--opset has no effect: it is for"),
        (
            ["divide", "small_resnet", "-s", "2", "--rule", "none", "--match", "macs"],
            "--match has no effect: they are of rule solve, and this is rule none",
        ),
        (
            ["divide", "small_resnet", "-s", "1", "--regulariser", "drop_path=none"],
            "--regulariser has no effect: the network as it is given has no drop_path",
        ),
    ],
)
def test_one_line_for_what_a_run_cannot_be_asked(cli, capsys, trained, words, message):
    assert cli(*(trained if word == "RUN" else word for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
