"""The study harness through its real entry point: controls once a seed, resumption, equal budgets."""

import csv
import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    content = {
        "recipe": "digits",
        "overrides": ["data.train_fraction=0.3", "train.epochs=8"],
        "seeds": [0, 1],
        "baseline": "default",
        "variants": {"focus 0": ["objective.focus=0"], "default": []},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder


def run(study, capsys):
    arguments = [str(study / "tiny.yaml"), "--out", str(study / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["study.py", *arguments])
        runpy.run_path(str(ROOT / "benchmarks" / "study.py"), run_name="__main__")
    return capsys.readouterr().out


def test_study(study, capsys):
    printed = run(study, capsys)
    assert "4/4 focus 0, seed 1" in printed
    out = study / "out"
    with (out / "runs.csv").open() as file:
        rows = {(row["variant"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4
    for seed in "01":  # the controls are trained once, beside the baseline
        beside, own = rows["focus 0", seed], rows["default", seed]
        for metric in ("cascade", "single, mean", "single, expert"):
            assert beside[metric] == own[metric]
        recipe = yaml.safe_load((out / f"focus_0-s{seed}" / "recipe.yaml").read_text())
        assert recipe["controls"] == {}
    assert rows["default", "0"]["single, expert"] != rows["default", "1"]["single, expert"]
    table = (out / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["default", "focus 0"]
    assert (out / "study.png").stat().st_size > 10_000

    (out / "focus_0-s1" / "result.json").unlink()
    checkpoint = out / "focus_0-s1" / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    again = run(study, capsys)  # only what is missing is done again, from what is kept
    assert "4/4 focus 0, seed 1" in again
    assert "1/4" not in again
    assert checkpoint.stat().st_mtime_ns == before
    assert (out / "table.md").read_text().splitlines() == table
