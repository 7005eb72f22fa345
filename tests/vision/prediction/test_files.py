"""Predicting image files: order, formats, routes, and what goes wrong with single files."""

import csv
import io
import json
import re
import shutil

import pytest
import torch
from PIL import Image

from vision.evaluation.predictions import predict_all
from vision.run import load_run, load_run_data


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """Test images as files; one subfolder."""
    root = tmp_path_factory.mktemp("images")
    images = load_run_data(load_run(trained)).test
    (root / "sub").mkdir()
    for index in range(12):
        name = f"{index:02}[1].png" if index < 9 else f"sub/{index:02}.PNG"
        Image.fromarray(images[index]["image"][0].numpy()).save(root / name)
    (root / "notes.txt").write_text("not an image by its name")
    return root


def predicted(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("threshold", [0, 0.15, 1.1])
def test_equals_the_evaluation(cli, trained, folder, capsys, threshold):
    run = load_run(trained)
    data = load_run_data(run)
    expected = predict_all(run.networks, data.test)
    arguments = ["predict", trained, folder, "--threshold", threshold, "--format", "jsonl"]
    assert cli(*arguments, "--batch-size", 5) == 0
    records = predicted(capsys)
    assert [record["file"] for record in records] == [
        str(folder / f"{i:02}[1].png") if i < 9 else str(folder / f"sub/{i:02}.PNG")
        for i in range(12)
    ]
    confidences = expected.rough_logits.softmax(1).amax(1)
    weight = run.operating_points["best"].rough_weight
    final = expected.selected_logits + weight * expected.rough_logits
    for i, record in enumerate(records):
        exits = bool(confidences[i] >= threshold)
        probabilities = (expected.rough_logits if exits else final)[i].softmax(0)
        assert record["exited"] == exits
        assert record["expert"] == (None if exits else int(expected.selected_expert[i]))
        assert record["confidence"] == pytest.approx(float(confidences[i]), abs=1e-5)
        assert record["label"] == run.networks.classes[int(probabilities.argmax())]
        assert record["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_order_is_that_of_the_arguments(cli, trained, folder, capsys):
    asked = [folder / "sub", folder / "03[1].png", folder / "00[1].png"]
    assert cli("predict", trained, *asked, "--format", "csv") == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [re.sub(".*/", "", record["file"]) for record in records] == [
        "09.PNG", "10.PNG", "11.PNG", "03[1].png", "00[1].png"
    ]  # fmt: skip
    assert {record["error"] for record in records} == {""}


def test_table_and_stored_point(cli, trained, folder, capsys):
    assert cli("predict", trained, folder / "sub/09.PNG", folder / "00[1].png", "--at", "half") == 0
    shown = capsys.readouterr().out
    assert f"threshold {load_run(trained).operating_points['half'].threshold:.4f}" in shown
    assert "[1]" in shown  # brackets are no markup
    assert "ended early" in shown or "expert " in shown


def test_files_of_long_names_can_be_told_apart(cli, trained, folder, tmp_path, capsys):
    """Their folder is told once, where the table would cut every name within it."""
    deep = tmp_path / "photographs of the whole year" / "sorted by nobody" / "summer"
    for place, name in (("a", "first.png"), ("b", "second.png")):
        (deep / place).mkdir(parents=True)
        shutil.copy(folder / "01[1].png", deep / place / name)
    assert cli("predict", trained, deep) == 0
    shown = capsys.readouterr().out
    assert "a/first.png" in shown
    assert "b/second.png" in shown
    assert "summer/a" not in shown
    assert str(deep) in "".join(shown.split("┏")[0].splitlines()).replace(" \n", " ")


def test_unreadable_files_are_reported_and_the_rest_predicted(
    cli, trained, folder, tmp_path, capsys
):
    good = folder / "01[1].png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.png").write_text("nothing to see")
    files = [tmp_path / "cut.png", good, tmp_path / "text.png", folder / "notes.txt", good]
    assert cli("predict", trained, *files, "--format", "jsonl") == 1
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [record["file"] for record in records] == list(map(str, files))
    assert [record["error"] is None for record in records] == [False, True, False, False, True]
    assert "cut.png" in records[0]["error"]
    assert records[1]["label"] == records[4]["label"]
    assert "3 of 5 files could not be read" in captured.err
    assert cli("predict", trained, *files) == 1
    assert "cannot read" in capsys.readouterr().out


def test_only_unreadable_files(cli, trained, tmp_path, capsys):
    (tmp_path / "a.png").write_text("")
    assert cli("predict", trained, tmp_path, "--format", "jsonl") == 1
    assert predicted(capsys)[0]["label"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png: does not exist"),
        (["EMPTY"], "no images in .*; known endings: .*, .jpg"),
        (["FILE", "--at", "bset"], "has no operating point 'bset'; stored: best, drop, half"),
        (["FILE", "--threshold", "-0.1"], "threshold must be at least 0, got -0.1"),
        (["FILE", "--threshold", "nan"], "threshold must be at least 0, got nan"),
        (["FILE", "--batch-size", "0"], "must be at least 1, got 0"),
        (["FILE", "--threshold", "high"], "invalid float value"),
    ],
)
def test_refused(cli, trained, folder, tmp_path, capsys, arguments, message):
    places = {"EMPTY": str(tmp_path), "FILE": str(folder / "00[1].png")}
    assert cli("predict", trained, *[places.get(a, a) for a in arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_checkpoint_alone_is_enough(cli, trained, folder, tmp_path, capsys):
    checkpoint = tmp_path / "moved.ckpt"
    checkpoint.write_bytes((trained / "checkpoints/last.ckpt").read_bytes())
    assert cli("predict", checkpoint, folder, "--threshold", 0.5, "--format", "jsonl") == 0
    assert len(predicted(capsys)) == 12
    assert cli("predict", checkpoint, folder) == 2
    assert "stored: none; run `coe-vision calibrate` first" in capsys.readouterr().err


def test_predictions_do_not_change_the_networks(trained, folder):
    run = load_run(trained)
    before = {name: value.clone() for name, value in run.networks.state_dict().items()}
    predict_all(run.networks, load_run_data(run).validation)
    assert all(
        torch.equal(value, before[name]) for name, value in run.networks.state_dict().items()
    )
