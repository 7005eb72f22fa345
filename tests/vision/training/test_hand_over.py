"""Teams with a hand-over through the real commands: trained, resumed bit by bit, evaluated, predicted."""

import asyncio
import csv
import json

import pytest

from vision.prediction.predictor import Predictor
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


class Handle:
    """A deployment's handle that asks a replica here, without batches."""

    def __init__(self, replica):
        self.replica = replica

    async def remote(self, row):
        return self.replica.answers([row])[0]


def test_the_ray_replicas_hand_over_as_the_predictor_does(handed):
    """Each holds one network; features of the trunk go from one to the other, no cluster is needed."""
    pytest.importorskip("ray", reason="the optional extra `scale` is not installed")
    from vision.serve.ray_app import Delegator, Expert, Ingress

    def replica(kind, expert):
        return Handle(kind.func_or_class(str(handed), "CoE", expert, max_batch=4, window=0.0))

    networks = load_run(handed).networks
    experts = [replica(Expert, j) for j in range(networks.team.num_experts)]
    limits = {"max_pixels": 10_000, "max_bytes": 100_000, "max_memory": 10**7}
    ingress = Ingress.func_or_class(str(handed), "CoE", replica(Delegator, None), experts, **limits)
    images = [path.read_bytes() for path in sorted((handed / "evaluation/examples").rglob("*.png"))]
    for threshold in (0.0, 0.3, 2.0):
        wanted = Predictor(handed, system="CoE")(images, threshold=threshold)
        for image, expected in zip(images, wanted, strict=True):
            answer = asyncio.run(ingress.predict(image, threshold=threshold))
            assert (answer.label, answer.exited, answer.expert, answer.macs) == (
                expected.label,
                expected.exited,
                expected.expert,
                expected.macs,
            )
            assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
