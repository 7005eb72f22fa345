"""Evaluation through the command line: the files it writes, several seeds, data that do not fit."""

import csv
import json
import shutil

import pytest
from PIL import Image

from vision.recipe import load_recipe


@pytest.fixture(scope="module")
def second(cli, trained, tmp_path_factory):
    """The same recipe with another seed."""
    folder = tmp_path_factory.mktemp("second") / "run"
    assert cli("train", trained / "recipe.yaml", "seed=1", "--out", folder) == 0
    return folder


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        return min(image.size) > 100 and len(image.convert("RGB").getcolors(10**7)) > 10


def test_one_run(cli, trained, tmp_path, capsys):
    out = tmp_path / "evaluation"
    assert cli("evaluate", trained, "--out", out, "--batch-size", 16) == 0
    shown = capsys.readouterr().out
    lines = read(out / "table.csv")
    names = [line["predictor"] for line in lines]
    assert len(set(names)) == len(names) > 12
    assert all(name in shown for name in names)
    by_name = {line["predictor"]: line for line in lines}
    for name in ("random selection", "oracle selection", "CoE no exits", "cascade no exits"):
        assert 0 <= float(by_name[name]["top1_percent"]) <= 100
    assert float(by_name["CoE no exits"]["ms_per_image"]) > 0
    assert float(by_name["CoE no exits"]["exit_rate"]) == 0
    assert sum(map(float, by_name["CoE no exits"]["load"].split())) == pytest.approx(1, abs=1e-3)
    assert {line["spread"] for line in lines} == {""}
    assert [line["predictor"] for line in read(out / "per_run.csv")] == names
    assert is_picture(out / "trade_off.png")
    assert is_picture(out / "classes_per_expert.png")
    assert (out / "table.md").read_text().count("\n") == len(lines) + 2
    stored = json.loads((out / "provenance.json").read_text())
    assert stored["runs"] == [str(trained)]
    assert stored["data"]["num_test"] == 360
    # The examples are there to be predicted; those of an earlier evaluation do not stay behind.
    examples = sorted((out / "examples").iterdir())
    assert len(examples) == 8
    (out / "examples/0_old.png").write_bytes(examples[0].read_bytes())
    assert cli("evaluate", trained, "--out", out, "--no-time") == 0
    assert sorted((out / "examples").iterdir()) == examples
    assert {line["ms_per_image"] for line in read(out / "table.csv")} == {""}
    capsys.readouterr()
    assert cli("predict", trained, out / "examples", "--format", "jsonl") == 0
    assert capsys.readouterr().out.count("\n") == 8


def test_two_seeds(cli, trained, second, tmp_path):
    assert cli("evaluate", trained, second, "--out", tmp_path, "--no-time") == 0
    lines, per_run = read(tmp_path / "table.csv"), read(tmp_path / "per_run.csv")
    assert {line["runs"] for line in lines} == {"2"}
    assert [row["seed"] for row in per_run] == ["0"] * len(lines) + ["1"] * len(lines)
    for line in lines:
        if line["predictor"] == "always the best expert":
            continue
        both = [float(r["top1_percent"]) for r in per_run if r["predictor"] == line["predictor"]]
        assert len(both) == 2
        assert float(line["top1_percent"]) == pytest.approx(sum(both) / 2, abs=1e-3)
        assert float(line["spread"]) == pytest.approx(abs(both[0] - both[1]) / 2**0.5, abs=1e-3)
    assert is_picture(tmp_path / "trade_off.png")


def test_the_same_seed_twice_loses_no_rows(cli, trained, tmp_path, capsys):
    assert cli("evaluate", trained, f"{trained}/.", "--out", tmp_path, "--no-time") == 2
    assert "is given twice, as if it were two seeds" in capsys.readouterr().err
    copy = shutil.copytree(trained, tmp_path / "copy")
    assert cli("evaluate", trained, copy, "--out", tmp_path, "--no-time") == 0
    lines = read(tmp_path / "table.csv")
    assert len(read(tmp_path / "per_run.csv")) == 2 * len(lines)
    assert {float(line["spread"]) for line in lines} == {0.0}


def class_folders(root, classes):
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (12, 12), (25 * label, 30 * index, 90)).save(
                    folder / f"{index}.png"
                )


@pytest.fixture(scope="module")
def on_folder(cli, tmp_path_factory):
    """A run on class folders, and where they lay then."""
    root = tmp_path_factory.mktemp("folder")
    class_folders(root / "data", 3)
    small = ["data.size=12", "num_experts=2", "train.epochs=1", "train.batch_size=8", "controls={}"]
    assert (
        cli("train", "clothing", f"data.path={root / 'data'}", *small, "--out", root / "run") == 0
    )
    return root


@pytest.mark.process
def test_data_that_moved(cli, on_folder, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(on_folder / "data", moved)
    run = tmp_path / "run"
    shutil.copytree(on_folder / "run", run)
    saved = load_recipe(str(run / "recipe.yaml")).to_dict()
    shutil.move(on_folder / "data", on_folder / "hidden")
    try:
        assert cli("evaluate", run, "--no-time") == 2
        said = capsys.readouterr().err
        assert f"there is no folder {saved['data']['path']}; if the data have moved, --data" in said
        assert cli("evaluate", run, "--no-time", "--data", moved) == 0
        assert is_picture(run / "evaluation/trade_off.png")
        original = (run / "evaluation/examples").glob("*_class_*.png")
        sources = {path.read_bytes() for path in (moved / "test").rglob("*.png")}
        assert {path.read_bytes() for path in original} <= sources
        again = ["train", run / "recipe.yaml", f"data.path={moved}", "--out", run, "--resume"]
        assert cli(*again) == 0
    finally:
        shutil.move(on_folder / "hidden", on_folder / "data")


def test_other_classes(cli, on_folder, trained, tmp_path, capsys):
    class_folders(tmp_path / "four", 4)
    for command in (["evaluate", on_folder / "run"], ["calibrate", on_folder / "run", "best"]):
        assert cli(*command, "--data", tmp_path / "four") == 2
        assert "the data have 4 classes" in capsys.readouterr().err
    assert cli("evaluate", trained, on_folder / "run", "--out", tmp_path) == 2
    assert "evaluate runs of one recipe together" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(cli, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli("evaluate", trained, "--out", tmp_path / "file", "--no-time") == 2
    assert capsys.readouterr().err.count("\n") == 1
