"""Operating points: aims as typed, fitted on validation data, kept with the run."""

import datetime
import json
import shutil

import pytest

from vision.budgets import resolve_budget
from vision.errors import RunError
from vision.recipe_networks import run_macs
from vision.run import load_run


@pytest.fixture
def run(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    return folder


@pytest.mark.parametrize(
    ("aim", "message"),
    [
        ("bset", "unknown aim 'bset'; nearest: best; known: best, macs=100M or macs=60%"),
        ("bleu_drop=1", "unknown aim 'bleu_drop=1'"),
        ("accuracy_drop=0.5", "write accuracy_drop=0.5% for half a point"),
        ("accuracy=0.9", "write accuracy=90%"),
        ("macs=nan", "needs a number"),
    ],
)
def test_aims_that_are_refused(cli, run, capsys, aim, message):
    """The grammar itself: tests/coe_core/support/test_aims.py."""
    before = (run / "operating_points.json").read_bytes()
    assert cli("calibrate", run, aim) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (run / "operating_points.json").read_bytes() == before


def test_a_part_of_what_no_exits_cost(cli, run):
    assert cli("calibrate", run, "macs=60%", "latency=100%") == 0
    calibrated = load_run(run)
    point = calibrated.operating_points["macs=60%"]
    assert point.value == pytest.approx(0.6 * calibrated.curve.macs[0])
    assert point.cost <= point.value


def test_default_points(trained):
    points = load_run(trained).operating_points
    assert [points[name].aim for name in ("best", "drop", "half")] == [
        "best",
        "accuracy_drop",
        "macs",
    ]
    assert points["half"].cost <= points["half"].value
    assert points["best"].quality >= max(point.quality for point in points.values())


def test_stored_with_provenance_and_replaced(cli, run, capsys):
    macs = run_macs(load_run(run).networks)
    budget = round(macs.delegator + 0.3 * macs.expert)
    aims = [f"macs={budget}", "accuracy_drop=50%", "accuracy=1%", "latency=1000"]
    assert cli("calibrate", run, *aims, "--system", "coe") == 0
    shown = capsys.readouterr().out
    assert "accuracy=1%: CoE, as --system says; no other was compared" in shown
    file = json.loads((run / "operating_points.json").read_text())
    assert file["task"] == "vision"
    stored = {point["name"]: point for point in file["points"]["CoE"]}
    assert set(stored) == {"best", "drop", "half", *aims}
    assert set(file["choices"]) == set(stored)
    point = stored[f"macs={budget}"]
    assert point["cost"] <= budget
    assert point["value"] == budget
    assert point["num_samples"] == 300
    assert point["data"] == "digits, validation split"
    assert point["date"] == datetime.date.today().isoformat()
    assert stored["latency=1000"]["cost_unit"] == "ms"
    assert stored["accuracy=1%"]["exit_rate"] == 1  # the cheapest that reaches it
    loaded = load_run(run).operating_points
    assert {name: p.to_dict() for name, p in loaded.items()} == stored
    assert cli("calibrate", run, "best") == 0
    assert len(load_run(run).operating_points) == 7


def test_guarantee(cli, run, capsys):
    assert cli("calibrate", run, "accuracy_drop=20%", "--guarantee", 0.95, "--system", "coe") == 0
    point = load_run(run).operating_points["accuracy_drop=20%"]
    assert point.guarantee == 0.95
    assert (
        cli("calibrate", run, "accuracy_drop=0.01%", "--guarantee", 0.999, "--system", "coe") == 0
    )
    assert load_run(run).operating_points["accuracy_drop=0.01%"].exit_rate == 0  # too few data
    assert cli("calibrate", run, "macs=1M", "--guarantee", 0.95) == 2
    assert "a guarantee is defined for accuracy_drop" in capsys.readouterr().err
    assert cli("calibrate", run, "accuracy_drop=20%", "--guarantee", 1.5) == 2
    assert "--guarantee: must be in (0, 1), got 1.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("aim", "message"),
    [
        (
            "macs=10",
            "below that of every system; the cheapest that exists is single:delegator at 3",
        ),
        ("accuracy=100%", "reached by no system at any threshold; the best on this data is 0."),
        ("latency=0.000001", "below that of every system; the cheapest that exists is "),
    ],
)
def test_unreachable_aims_say_what_can_be_reached(cli, run, capsys, aim, message):
    before = (run / "operating_points.json").read_bytes()
    assert cli("calibrate", run, "best", aim) == 2
    assert message in capsys.readouterr().err
    assert (run / "operating_points.json").read_bytes() == before


def test_damaged_file(cli, run, capsys):
    other_task = '{"task": "translation", "points": {}}'
    for content in ("{", "[]", '{"best": {"name": "best"}}', other_task):
        (run / "operating_points.json").write_text(content)
        assert cli("calibrate", run, "best") == 2
        assert "operating_points.json is damaged" in capsys.readouterr().err


def test_files_of_the_version_before(trained, run):
    """Points by name, without a task; they do not say what they were fitted with, so they hold."""
    loaded = load_run(trained)
    older = {name: point.to_dict() for name, point in loaded.operating_points.items()}
    for point in older.values():
        del point["fitted_with"]
    (run / "operating_points.json").write_text(json.dumps(older))
    curve = loaded.curve.to_dict()
    del curve["fitted_with"]
    (run / "trade_off_curve.json").write_text(json.dumps(curve))
    read = load_run(run)
    assert read.curve.macs == loaded.curve.macs
    assert list(read.operating_points) == ["best", "drop", "half"]
    assert resolve_budget(read, "half").threshold == resolve_budget(loaded, "half").threshold


def test_thresholds_of_another_checkpoint_are_refused(cli, run, capsys):
    import torch

    checkpoint = run / "checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    for name, value in content["state_dict"].items():
        if name.endswith("weight"):
            value.mul_(1.01)
    torch.save(content, checkpoint)
    replaced = load_run(run)
    for choice, what in (
        ({"budget": "half"}, "operating point 'half'"),
        ({}, "operating point 'best'"),
        ({"budget": "10G"}, "the trade-off curve"),
        ({"threshold": 0.5}, "the weight of the rough prediction"),
    ):
        with pytest.raises(
            RunError,
            match=rf"^{what} of .* was fitted with checkpoint \w{{12}}\.\.\., not \w{{12}}\.\.\.: run `coe-",
        ):
            resolve_budget(replaced, **choice)
    assert cli("calibrate", run, "best", "--system", "coe") == 0
    assert resolve_budget(load_run(run)).exit_rate is not None
    with pytest.raises(RunError, match="operating point 'half' of"):
        resolve_budget(load_run(run), "half")
    capsys.readouterr()
