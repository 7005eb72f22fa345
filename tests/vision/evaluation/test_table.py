"""The table, from predictions made by hand."""

import csv
import dataclasses
import io
import math
import statistics

import pytest
import torch
from rich.console import Console

from vision.errors import RunError
from vision.evaluation.ensemble_table import ensemble_rows
from vision.evaluation.predictions import Predictions
from vision.evaluation.summary import (
    by_class_csv,
    csv_table,
    markdown_table,
    plain_rows,
    rich_table,
    summarise,
)
from vision.evaluation.table import PredictorRow, table_rows
from vision.recipe_networks import RunMacs

MACS = RunMacs(1_000_000, [4_000_000, 8_000_000], {"delegator": 900_000, "expert": 5_000_000})
SURE, UNSURE = 4.0, 1.0  # logits; an expert's 40 outweigh any pooled rough prediction


def logits(classes, scale=40.0):
    return scale * torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def predictions(rough, confident, selected, experts, small, large):
    """Of four samples, all of class 0. Classes predicted; ``experts``: one list per expert."""
    scale = torch.tensor([SURE if s else UNSURE for s in confident])[:, None]
    return Predictions(
        torch.zeros(4, dtype=torch.long),
        logits(rough, 1.0) * scale,
        torch.nn.functional.one_hot(torch.tensor(selected), 2).float(),
        torch.stack([logits(e) for e in experts], 1),
        {"delegator": logits(small, 1.0), "expert": logits(large)},
    )


@pytest.fixture
def validation():
    # Sure samples are right at once; unsure ones need their selected expert.
    return predictions(
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [0, 1, 0, 1],
        [[0, 0, 0, 1], [1, 0, 1, 0]],
        [0, 0, 0, 1],
        [0] * 4,
    )


@pytest.fixture
def test():
    return predictions(
        [0, 1, 0, 1],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [[0, 0, 0, 2], [0, 1, 1, 0]],
        [1, 0, 1, 1],
        [0, 0, 0, 1],
    )


@pytest.fixture
def rows(validation, test):
    return {row.name: row for row in table_rows(validation, test, MACS)}


def test_single_networks(rows):
    assert rows["delegator network alone"].accuracy == 0.25
    assert rows["delegator network alone"].macs == 900_000
    assert rows["single expert network"].accuracy == 0.75
    assert rows["CoE's delegator (all exit)"].accuracy == 0.5
    assert rows["CoE's delegator (all exit)"].macs == 1_000_000
    assert rows["CoE's delegator (all exit)"].exit_rate == 1
    # On validation expert 0 is right three times, expert 1 twice; on test each has its own figure.
    assert rows["always expert 0"].accuracy == 0.75
    assert rows["always expert 0"].macs == 4_000_000
    assert rows["oracle selection"].accuracy == 1.0
    assert rows["oracle selection"].macs == 7_000_000
    assert rows["mean of all 2 experts"].macs == 12_000_000
    assert rows["random selection"].macs == 7_000_000
    assert rows["random selection"].accuracy in (0.25, 0.5, 0.75, 1.0)


def test_accuracy_by_class(validation, test):
    """Right, right, wrong, right by experts 0, 0, 1, 1: of classes 0 (twice), 2 and 0."""
    labelled = dataclasses.replace(test, target=torch.tensor([0, 0, 2, 0]))
    rows = {row.name: row for row in table_rows(validation, labelled, MACS)}
    row = rows["CoE no exits"]
    assert row.by_class[0] == pytest.approx(1.0)
    assert math.isnan(row.by_class[1])
    assert row.by_class[2] == pytest.approx(0.0)
    assert row.balanced_accuracy == pytest.approx(0.5)
    for row in rows.values():
        counts = [3, 0, 1]
        known = [n * part for n, part in zip(counts, row.by_class, strict=True) if n]
        assert sum(known) / 4 == pytest.approx(row.accuracy)
    lines = summarise([list(rows.values())])
    text = by_class_csv(lines, ["a", "b", "c"], [3, 0, 1])
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == 2 * len(rows)  # nothing of b
    assert {line["class"] for line in read} == {"a", "c"}
    plain = {row["predictor"]: row for row in plain_rows(lines, ["a", "b", "c"])}
    assert plain["CoE no exits"]["class_percent"] == {"a": 100.0, "b": None, "c": 0.0}
    assert plain["CoE no exits"]["balanced_percent"] == 50
    assert "| balanced % |" in markdown_table(lines, balanced=True)
    assert "balanced" not in markdown_table(lines)
    assert "balanced_percent" in csv_table(lines)


def test_mean_of_experts():
    rows = table_rows(
        *[
            dataclasses.replace(
                predictions([0] * 4, [1] * 4, [0] * 4, [[0] * 4, [1] * 4], [0] * 4, [0] * 4),
                expert_logits=torch.tensor([[2.0, 0, 0], [0, 1.0, 0]]).expand(4, 2, 3),
            )
        ]
        * 2,
        MACS,
    )
    # exp(2)/(exp(2)+2) > exp(1)/(exp(1)+2): the surer expert decides.
    assert next(r for r in rows if r.name.startswith("mean")).accuracy == 1.0


def test_no_exits(rows):
    row = rows["CoE no exits"]
    assert row.accuracy == 0.75  # experts 0, 0, 1, 1: right, right, wrong, right
    assert row.macs == 1_000_000 + (4 + 4 + 8 + 8) * 1_000_000 / 4
    assert row.exit_rate == 0
    assert row.load == (0.5, 0.5)


def test_budget(rows):
    """Half of the experts' mean MACs: the two sure samples exit, found on validation."""
    row = rows["CoE at 4M"]
    assert row.exit_rate == 0.5
    assert row.accuracy == 0.5  # right, wrong (rough); wrong, right (experts)
    assert row.macs == 1_000_000 + (8 + 8) * 1_000_000 / 4
    assert row.load == (0.0, 1.0)
    confidence = torch.tensor([SURE, 0, 0]).softmax(0)[0]
    assert row.threshold == pytest.approx(float(confidence))


def test_thresholds_come_from_validation_only(rows, validation, test):
    other = dataclasses.replace(
        test, target=test.target + 1, rough_logits=test.rough_logits.flip(0)
    )
    changed = {row.name: row for row in table_rows(validation, other, MACS)}
    fitted = [name for name, row in rows.items() if row.threshold is not None]
    assert len(fitted) == 8
    assert [changed[n].threshold for n in fitted] == [rows[n].threshold for n in fitted]
    assert changed["CoE at 4M"].accuracy != rows["CoE at 4M"].accuracy
    assert {"always expert 0"} <= set(changed)  # the choice of the best expert, too


def test_without_controls(validation, test):
    bare = [dataclasses.replace(p, control_logits={}) for p in (validation, test)]
    names = [row.name for row in table_rows(*bare, MACS)]
    assert not [name for name in names if name.startswith(("cascade", "single", "delegator"))]
    assert "CoE no exits" in names


def table(*accuracies, load=()):
    return [
        PredictorRow("a", accuracies[0], 2e6, 0.5, load),
        PredictorRow(f"always expert {len(load)}", accuracies[1], 1e6),
    ]


def test_mean_and_spread():
    first, second = summarise([table(0.5, 0.1, load=(0.2, 0.8)), table(0.6, 0.3, load=(0.7, 0.3))])
    assert (first.accuracy, first.runs) == (pytest.approx(55), 2)
    assert first.spread == pytest.approx(statistics.stdev([50, 60]))
    assert first.load == (pytest.approx(0.75), pytest.approx(0.25))  # most to least: no fixed names
    assert second.name == "always the best expert"
    assert second.spread == pytest.approx(200**0.5)
    assert second.load == ()
    assert summarise([table(0.5, 0.1)])[0].spread is None


def test_runs_with_other_rows():
    with pytest.raises(ValueError, match="do not have the same rows"):
        summarise([table(0.5, 0.1), table(0.5, 0.1)[:1]])


def test_csv_and_markdown():
    lines = summarise([table(0.5, 0.1, load=(0.2, 0.8)), table(0.6, 0.3, load=(0.7, 0.3))])
    first, second = csv.DictReader(io.StringIO(csv_table(lines)))
    assert float(first["top1_percent"]) == pytest.approx(55)
    assert float(first["spread"]) == pytest.approx(50**0.5, rel=1e-5)
    assert float(first["macs"]) == 2e6
    assert [float(part) for part in first["load"].split()] == [0.75, 0.25]
    assert (first["ms_per_image"], second["exit_rate"], second["runs"]) == ("", "", "2")
    markdown = markdown_table(lines).splitlines()
    assert len(markdown) == 4
    assert markdown[2] == "| a | 55.00 ± 7.07 | 2 | - | 50 | 75 25 |"
    assert all(line.count("|") == 7 for line in markdown)


def test_terminal_table():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rich_table(summarise([table(0.5, 0.1)]), "title"))
    shown = console.export_text()
    assert "top-1 %" in shown
    assert "50.00" in shown


# Networks that have diverged


def broken(predictions, name, value=math.nan):
    """With one value of a control, or of an ensemble's network, that is no number."""
    logits = {**predictions.control_logits, "small": logits_of_nothing()}
    ensemble = {"pair": torch.stack([logits_of_nothing(), logits_of_nothing()], 1)}
    {"small": logits["small"], "pair": ensemble["pair"][:, 1]}[name][2, 0] = value
    return dataclasses.replace(predictions, control_logits=logits, ensemble_logits=ensemble)


def logits_of_nothing():
    return torch.zeros(4, 3)


WITH_PAIR = dataclasses.replace(
    MACS, controls={**MACS.controls, "small": 1000}, ensembles={"pair": 2000}
)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_has_diverged_is_told(validation, test, value):
    wrong = broken(test, "small", value)
    assert wrong.diverged() == {"control small": 1}
    rows = table_rows(broken(validation, "small"), wrong, WITH_PAIR)
    lines = {line.name: line for line in summarise([rows])}
    assert "| diverged |" in markdown_table([lines["single network small"]])
    first = next(csv.DictReader(io.StringIO(csv_table([lines["single network small"]]))))
    assert first["top1_percent"] == ""
    assert lines["single expert network"].accuracy == 75  # the others are as they were
    healthy = [
        dataclasses.replace(row, accuracy=0.5) if row.name == "single network small" else row
        for row in rows
    ]
    (both,) = (s for s in summarise([rows, healthy]) if s.name == "single network small")
    assert (both.accuracy, both.diverged) == (50, 1)
    assert "50.00, diverged (1 of 2)" in markdown_table([both])


def test_an_ensemble_that_has_diverged_is_told(test):
    wrong = broken(test, "pair")
    assert wrong.diverged() == {"network 1 of ensemble pair": 1}
    rows = {row.name: row.accuracy for row in table_rows(wrong, wrong, WITH_PAIR)}
    assert math.isnan(rows["ensemble pair"])
    assert math.isnan(rows["ensemble pair: one network"])
    names = [row.networks for row in ensemble_rows([wrong], WITH_PAIR)]
    assert "ensemble pair" not in names
    assert "small" in names
    healthy = dataclasses.replace(wrong, ensemble_logits={"pair": torch.zeros(4, 2, 3)})
    both = [row for row in ensemble_rows([wrong, healthy], WITH_PAIR) if row.s == 2]
    assert {row.runs for row in both} == {1}


@pytest.mark.parametrize(
    ("part", "name"),
    [("rough_logits", "the delegator"), ("expert_logits", "expert 1")],
)
def test_a_team_that_has_diverged_has_no_table(test, part, name):
    logits = getattr(test, part).clone()
    logits[3, -1] = math.nan
    wrong = dataclasses.replace(test, **{part: logits})
    with pytest.raises(
        RunError, match=f"runs/a: {name} gives no finite logits for 1 of 4 .* a lower train.lr"
    ):
        wrong.check_team("runs/a")
    test.check_team("runs/a")


def test_a_cascade_that_has_diverged(validation, test):
    controls = {**test.control_logits, "expert": torch.full((4, 3), math.nan)}
    wrong = [dataclasses.replace(p, control_logits=controls) for p in (validation, test)]
    rows = table_rows(*wrong, MACS)
    assert [row.name for row in rows] == [row.name for row in table_rows(validation, test, MACS)]
    cascades = [row for row in rows if row.name.startswith("cascade")]
    assert len(cascades) == 4
    assert all(math.isnan(row.accuracy) for row in cascades)
    assert "diverged" in markdown_table(summarise([rows]))
