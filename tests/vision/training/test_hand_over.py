"""Teams with a hand-over through the real commands: trained, resumed bit by bit, evaluated, predicted."""

import csv
import json

import pytest

from vision.run import load_run

HANDED = ["hand_over.trunk=blocks.0", "hand_over.rough_logits=true"]


@pytest.fixture(scope="module")
def handed(cli, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed") / "run"
    assert cli("train", trained / "recipe.yaml", *HANDED, "--out", folder) == 0
    return folder


def test_the_table_has_the_team_and_a_cascade_with_the_same_hand_over(cli, handed):
    assert cli("evaluate", handed, "--no-time") == 0
    with (handed / "evaluation/table.csv").open() as file:
        rows = {row["predictor"]: row for row in csv.DictReader(file)}
    networks = load_run(handed).networks
    assert networks.cascade is not None
    assert networks.cascade.num_experts == 1
    for name in ("CoE no exits", "cascade no exits"):
        assert float(rows[name]["top1_percent"]) > 5
    # One trunk, not two: fewer multiply-adds than the two whole networks of the controls.
    alone = [rows[name] for name in ("delegator network alone", "single expert network")]
    assert float(rows["CoE no exits"]["macs"]) < sum(float(row["macs"]) for row in alone)
    assert float(rows["cascade no exits"]["macs"]) == pytest.approx(
        float(rows["CoE no exits"]["macs"]), rel=0.02
    )


def test_resumed_bit_by_bit(cli, trained, handed, tmp_path, same, final_state):
    folder = tmp_path / "run"
    words = ["train", trained / "recipe.yaml", *HANDED, "--out", folder]
    assert cli(*words, "--stop-after", 1) == 0
    assert cli(*words, "--resume") == 0
    assert same(final_state(folder), final_state(handed))


def test_predicted_as_evaluated(cli, handed, capsys):
    assert cli("evaluate", handed, "--no-time") == 0
    capsys.readouterr()
    examples = handed / "evaluation/examples"
    assert cli("predict", handed, examples, "--threshold", 2, "--format", "csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) > 3
    assert {row["exited"] for row in rows} == {"False"}
    assert {row["expert"] for row in rows} <= set("012")


@pytest.mark.usefixtures("operators_once")
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_exports_take_what_is_handed_over(cli, handed, tmp_path, capsys, kind):
    """The command compares every form with the run: routes, and probabilities to 1e-4."""
    words = [
        "export",
        handed,
        "--system",
        "coe",
        "--to",
        kind,
        "--out",
        tmp_path / "out",
        "--check",
        40,
    ]
    assert cli(*words, "--at", "half") == 0
    said = capsys.readouterr().out
    forms = ("runner.py", "team.onnx") if kind == "onnx" else ("programs",)
    assert all(f"{form}: " in said for form in forms), said
    assert "40 of 40 take the same route" in said
    routing = json.loads((tmp_path / "out/routing.json").read_text())
    run = load_run(handed)
    weight = run.stored.named("CoE")["half"].rough_weight
    assert routing["default"]["rough_weight"] == pytest.approx(1 + weight)  # residual experts


def test_int8_is_of_whole_networks(cli, handed, tmp_path, capsys):
    assert (
        cli(
            "export", handed, "--system", "coe", "--to", "onnx", "--int8", "--out", tmp_path / "out"
        )
        == 2
    )
    assert "go on from a shared trunk" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
