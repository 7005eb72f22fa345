"""A study through its real command: controls once a seed, resumption, the line through single networks."""

import csv
import math

import pytest
import torch
import yaml

from vision.evaluation.single_line import below_their_neighbours, beside_line
from vision.evaluation.study import load_study
from vision.shipped import shipped_studies


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    content = {
        "recipe": "digits",
        "overrides": ["data.train_fraction=0.2", "train.epochs=2", "train.batch_size=32"],
        "seeds": [0, 1],
        "baseline": "default",
        "variants": {"focus 0": ["objective.focus=0"], "default": []},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.slow
def test_study(study, cli, capsys):
    def run():
        assert cli("study", study / "tiny.yaml", "--out", study / "out") == 0
        return capsys.readouterr().out

    printed = run()
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
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["default", "focus 0"]
    with (out / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    for point in points:  # within the single networks' costs there is a difference, and its error
        singles = [
            float(row["macs"])
            for row in points
            if row["system"].startswith("single") and row["seed"] == point["seed"]
        ]
        if not point["system"].startswith("single"):
            inside = min(singles) <= float(point["macs"]) <= max(singles)
            assert bool(point["above_line"]) == bool(point["standard_error"]) == inside
    assert any(point["above_line"] for point in points)
    assert (out / "trade_off.png").stat().st_size > 10_000
    assert (out / "study.png").stat().st_size > 10_000

    (out / "focus_0-s1" / "result.json").unlink()
    checkpoint = out / "focus_0-s1" / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    again = run()  # only what is missing is done again, from what is kept
    assert "4/4 focus 0, seed 1" in again
    assert "1/4" not in again
    assert checkpoint.stat().st_mtime_ns == before
    assert (out / "table.md").read_text().splitlines() == table


@pytest.mark.usefixtures("unchecked")
def test_the_line_by_hand():
    right = torch.tensor([1.0, 1.0, 1.0, 0.0])
    singles = {"a": torch.tensor([0.0, 0.0, 1.0, 0.0]), "b": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    macs = {"a": 100.0, "b": 200.0}
    # At 125: three quarters of a, one of b: 0.25, 0, 1, 0.25; differences 0.75, 1, 0, -0.25.
    mean, error, between = beside_line(right, 125.0, singles, macs)
    assert (mean, between) == (0.375, ("a", "b"))
    deviations = [0.75 - 0.375, 1 - 0.375, -0.375, -0.625]
    assert error == pytest.approx(math.sqrt(sum(d * d for d in deviations) / 3 / 4))
    # At a single network's own cost: McNemar's differences to it alone.
    mean, error, between = beside_line(right, 200.0, singles, macs)
    assert (mean, between) == (0.0, ("b", "b"))
    assert beside_line(right, 99.0, singles, macs) is None
    assert beside_line(right, 201.0, singles, macs) is None
    assert beside_line(right, 100.0, {"a": singles["a"]}, {"a": 100.0}) is None
    with pytest.raises(ValueError, match="a has 4 samples, the predictor beside it 3"):
        beside_line(right[:3], 125.0, singles, macs)


def test_the_next_single_networks_count():
    singles = {
        name: torch.full((4,), value) for name, value in (("a", 0.0), ("b", 1.0), ("c", 0.0))
    }
    macs = {"c": 3.0, "a": 1.0, "b": 2.0}
    assert beside_line(torch.ones(4), 2.5, singles, macs)[0] == 0.5
    assert beside_line(torch.ones(4), 1.5, singles, macs)[0] == 0.5
    assert below_their_neighbours({"a": 0.1, "b": 0.2, "c": 0.9}, macs) == ["b"]
    assert below_their_neighbours({"a": 0.1, "b": 0.8, "c": 0.9}, macs) == []


GOOD = {"recipe": "digits", "seeds": [0], "baseline": "a", "variants": {"a": [], "b": ["seed=3"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": {}}, "unknown key 'variant'; nearest: variants"),
        ({"seeds": []}, "seeds must be a list of whole numbers"),
        ({"seeds": [0, 0]}, "a seed is named twice"),
        ({"seeds": [True]}, "seeds must be a list of whole numbers"),
        ({"variants": ["a"]}, "variants must be overrides by name"),
        ({"variants": {"a": "seed=1"}}, "a must be a list of key=value, got 'seed=1'"),
        ({"variants": {"a": [], "x/y": [], "x y": []}}, "differ in spaces or slashes only"),
        ({"baseline": "c"}, "the baseline 'c' is no variant"),
        ({"variants": {"a": [], "b": ["train.epocs=3"]}}, "variant 'b': .*nearest: train.epochs"),
        ({"recipe": "digts"}, "variant 'a': .*'digts'; nearest: digits"),
        ({"recipe": "divide/digits_terms"}, "has no delegator; a study compares"),
        ({"seeds": [0, 2**32]}, "a seed must be in .* got 4294967296"),
        ({"variants": {"a": [], "b" * 101: []}}, "1 to 100 bytes of printable letters, got 'bbb"),
        ({"variants": {"a": [], "b\x1b[31m": []}}, "of printable letters, got 'b.x1b"),
        (None, "is not a study"),
    ],
)
def test_studies_that_are_refused_before_training(tmp_path, change, message):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(change and GOOD | change))
    with pytest.raises(ValueError, match=message) as caught:
        load_study(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            b"a: [" + b"[" * 5000, "is nested deeper than|is not YAML", marks=pytest.mark.slow
        ),
        (b"a: &a [*a]", "an alias contains itself"),
        (b"seeds: !!int x", "is not YAML"),
        (b"? [a]\n: 1", "a key must be a plain name"),
        (b"recipe: a\nrecipe: b", "the key 'recipe' is given twice"),
        (b"#" * 300_000, "is longer than"),
        (b"\xff\xfea", "is a text in UTF-16"),
    ],
)
def test_a_study_of_anyone_is_read_as_a_recipe_is(tmp_path, content, message):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_study(str(path))
    assert "\n" not in str(caught.value)


def test_shipped_studies_are_found_by_name(cli, capsys):
    assert len(shipped_studies()) >= 9
    for name in shipped_studies():
        study = load_study(name)
        assert study.baseline == study.names[0]
    assert load_study("digits").name == "digits"
    assert load_study("digits", "there").overrides[-1] == "data.path=there"
    assert cli("study", "digts") == 2
    assert "nearest: study/digits" in capsys.readouterr().err
