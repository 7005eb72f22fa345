"""Divide and Co-training through the real command: views, losses, resume, evaluation, bad input."""

import csv
import json
import math
import re
import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy

from coe_core import ensemble_report, js_divergence
from tests.vision.training.smallest_ensembles import RECIPE, SMALL, recipe_file
from vision.data.load import load_data
from vision.data.loaders import train_loader
from vision.data.preprocess import Preprocess
from vision.evaluation.predictions import predict_all
from vision.evaluation.table import table_rows
from vision.recipe import load_recipe, recipe_from_dict
from vision.recipe_networks import run_macs
from vision.run import load_run
from vision.training.module import CoETraining


@pytest.fixture(scope="module")
def cotrained(cli, tmp_path_factory):
    """Folder of a run without a delegator. To be read only."""
    folder = tmp_path_factory.mktemp("cotrained")
    assert cli("train", recipe_file(folder), "--out", folder / "run") == 0
    return folder / "run"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def module_of(changes=None, num_samples=227):
    torch.manual_seed(0)
    recipe = recipe_from_dict({**RECIPE, **(changes or {})})
    preprocess = Preprocess(8, 1, (0.5,), (0.5,), "exact")
    classes = [str(c) for c in range(10)]
    module = CoETraining(recipe.to_dict(), classes, preprocess.to_dict(), num_samples)
    module.log_dict = lambda *_, **__: None
    return module


def test_metrics_and_checkpoints(cotrained):
    logged = rows(cotrained / "metrics/metrics.csv")
    for name in ("val/ensemble of 3_accuracy", "val/ensemble of 3_member_accuracy",
                 "train/ensemble of 3_agreement", "val/control_undivided_accuracy"):  # fmt: skip
        assert [row["epoch"] for row in logged if row[name]] == ["0", "1"]
    assert (cotrained / "checkpoints/best.ckpt").is_file()
    assert not (cotrained / "operating_points.json").exists()


def test_every_network_has_its_own_view_and_the_first_is_everybodys():
    recipe = load_recipe("digits", ["data.train_fraction=0.2"])
    plain, several = (load_data(recipe.data).train for _ in range(2))
    several.num_views = 3
    single = next(iter(train_loader(recipe.data, plain, 32, seed=0)))
    many = next(iter(train_loader(recipe.data, several, 32, seed=0)))
    assert many["views"].shape == (32, 3, 1, 8, 8)
    assert torch.equal(many["image"], single["image"])  # a team beside ensembles sees what it saw
    assert torch.equal(many["views"][:, 0], many["image"])
    assert torch.equal(many["index"], single["index"])
    for a, b in ((0, 1), (1, 2)):
        same = (many["views"][:, a] == many["views"][:, b]).flatten(1).all(1)
        assert same.float().mean() < 0.5
    again = several[3, 77]["views"]
    assert torch.equal(again, several[3, 77]["views"])
    assert not torch.equal(again, several[3, 78]["views"])


def test_without_augmentation_all_views_are_the_picture():
    data = load_data(load_recipe("digits", ["data.augmentation=[]"]).data).train
    data.num_views = 2
    item = data[5, 1]
    assert torch.equal(item["views"], data[5]["image"].expand(2, 1, 8, 8))


def test_mixup_is_the_same_for_all_views():
    recipe = load_recipe("digits", ["data.train_fraction=0.2", "data.mixup=1.0"])
    data = load_data(recipe.data).train
    plain = next(iter(train_loader(recipe.data, data, 32, seed=0)))
    data.num_views = 2
    mixed = next(iter(train_loader(recipe.data, data, 32, seed=0)))
    assert torch.equal(mixed["image"], plain["image"])
    assert torch.equal(mixed["target"], plain["target"])
    # By hand: the share from the targets, the partner is the next sample, in every view.
    draws = train_loader(load_recipe("digits", ["data.train_fraction=0.2"]).data, data, 32, seed=0)
    clean = next(iter(draws))
    [share] = {round(float(x), 5) for x in mixed["target"].amax(1) if x < 1}
    own, other = clean["views"].float(), clean["views"].float().roll(1, 0)
    either = [(s * own + (1 - s) * other).round() for s in (share, 1 - share)]
    wrong = [(mixed["views"].float() - e).abs().max() for e in either]
    assert min(wrong) <= 1  # rounding


@pytest.mark.parametrize("own_views", [True, False])
def test_loss_is_the_sum_of_the_networks_and_the_weighted_agreement(own_views):
    entry = {"network": SMALL, "s": 3, "rule": "none", "own_views": own_views}
    module = module_of({"ensembles": {"of 3": entry}, "controls": {}})
    ensemble = module.networks.ensembles["of 3"].eval()  # so that the loss can be computed twice
    views = torch.randint(0, 256, (6, 3, 1, 8, 8), dtype=torch.uint8)
    target = torch.arange(6)
    batch = {"image": views[:, 0], "views": views, "target": target, "index": target}
    loss = module.training_step(batch, 0)
    seen = [module.networks.prepare(views[:, i if own_views else 0]) for i in range(3)]
    logits = torch.stack([m(x) for m, x in zip(ensemble.members, seen, strict=True)], 1)
    by_hand = sum(cross_entropy(logits[:, i], target) for i in range(3))
    by_hand = by_hand + 0.005 * js_divergence(logits).mean()  # lambda at the first step
    torch.testing.assert_close(loss, by_hand)
    assert module.recipe.num_views == (3 if own_views else 1)


def test_gradients_of_an_ensemble_do_not_reach_others():
    module = module_of()
    views = torch.randint(0, 256, (6, 3, 1, 8, 8), dtype=torch.uint8)
    target = torch.arange(6)
    prepared = [module.networks.prepare(view) for view in views.unbind(1)]
    module._ensemble_step("of 3", prepared, target).backward()
    networks = module.networks
    assert all(p.grad is None for p in networks.controls.parameters())
    assert all(p.grad is None for p in networks.ensembles["of 1"].parameters())
    assert all(p.grad is not None for p in networks.ensembles["of 3"].parameters())


def test_weight_decay_is_divided_for_the_ensemble_only():
    module = module_of()
    groups = module.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(module.parameters()))
    expected = {"controls": 5e-4, "ensembles.of 1": 5e-4}
    expected["ensembles.of 3"] = 5e-4 * math.exp(1 / 3 - 1)
    for name, parameter in module.networks.named_parameters():
        part = next(part for part in expected if name.startswith(part))
        right = 0.0 if parameter.ndim == 1 else expected[part]
        assert decay[id(parameter)] == pytest.approx(right), name
    entry = {"network": SMALL, "s": 3, "rule": "none", "regularisers": {"weight_decay": "none"}}
    whole = module_of({"ensembles": {"a": entry}, "controls": {}})
    kept = whole.configure_optimizers()["optimizer"].param_groups
    assert {group["weight_decay"] for group in kept} == {0.0, 5e-4}


def test_one_of_one_is_the_control(cotrained):
    """The same network under the same recipe: only its initial weights differ."""
    run = load_run(cotrained, team=False)
    control, single = run.networks.controls["undivided"], run.networks.ensembles["of 1"].members
    assert len(single) == 1
    shapes = [[p.shape for p in net.parameters()] for net in (control, single[0])]
    assert shapes[0] == shapes[1]
    assert run.networks.ensembles["of 1"].division.weight_decay == 5e-4


def test_resume_equals_the_uninterrupted_run(cli, same, final_state, tmp_path, cotrained):
    recipe, parts = recipe_file(tmp_path), tmp_path / "parts"
    assert cli("train", recipe, "--out", parts, "--stop-after", 1) == 0
    assert not same(final_state(parts)["state_dict"], final_state(cotrained)["state_dict"])
    assert cli("train", recipe, "--out", parts, "--resume") == 0
    assert same(final_state(parts), final_state(cotrained))
    assert cli("train", recipe, "ensembles.of 3.s=2", "--out", parts, "--resume") == 2


@pytest.mark.slow
def test_a_team_beside_ensembles_trains_as_without(cli, final_state, tmp_path):
    team = {"delegator": SMALL, "experts": [SMALL], "num_experts": 2, "controls": {}}
    alone = {**team, "ensembles": {}}
    short = ["train.epochs=1", "data.train_fraction=0.1"]
    for name, changes in (("both", team), ("alone", alone)):
        folder = tmp_path / name
        folder.mkdir()
        path = recipe_file(folder, changes)
        assert cli("train", path, *short, "--out", folder / "run") == 0
    states = [final_state(tmp_path / name / "run")["state_dict"] for name in ("both", "alone")]
    of_team = [name for name in states[1] if name.startswith("networks.team.")]
    assert of_team
    for name in of_team:
        torch.testing.assert_close(states[0][name], states[1][name])
    assert set(load_run(tmp_path / "both/run").operating_points) == {"best", "drop", "half"}


def test_evaluate(cli, cotrained, tmp_path, capsys):
    assert cli("evaluate", cotrained, "--out", tmp_path, "--batch-size", 16) == 0
    shown = capsys.readouterr().out
    assert "ensembles.md" in shown
    assert "classes_per_expert" not in shown  # nobody selects
    table = {line["predictor"]: line for line in rows(tmp_path / "table.csv")}
    names = ["single network undivided", "ensemble of 1", "ensemble of 3: one network"]
    assert list(table) == [*names, "ensemble of 3"]
    assert float(table["ensemble of 3"]["macs"]) == 3 * float(table[names[2]]["macs"])
    assert all(float(line["ms_per_image"]) > 0 for line in table.values())
    run = load_run(cotrained, team=False)
    test = predict_all(run.networks, load_data(run.recipe.data).test)
    report = ensemble_report(test.ensemble_logits["of 3"], test.target)
    detail = {(r["networks"], r["joined"]): r for r in rows(tmp_path / "ensembles.csv")}
    mean = detail["ensemble of 3", "mean logits (= geometric mean)"]
    assert float(mean["top1_percent"]) == pytest.approx(100 * report.accuracy, rel=1e-4)
    assert float(mean["nll"]) == pytest.approx(report.nll, rel=1e-3)
    assert float(mean["calibration_error_percent"]) == pytest.approx(
        100 * report.calibration_error, abs=0.01
    )
    assert float(mean["disagreement_percent"]) == pytest.approx(100 * report.disagreement, rel=1e-3)
    assert float(mean["any_right_percent"]) == pytest.approx(100 * report.any_right, rel=1e-4)
    member = detail["ensemble of 3", "one network (mean)"]
    assert float(member["top1_percent"]) == pytest.approx(
        100 * sum(report.member_accuracy) / 3, rel=1e-4
    )
    assert float(member["nll"]) == pytest.approx(sum(report.member_nll) / 3, rel=1e-3)
    assert {("undivided", "-"), ("ensemble of 1", "-"), ("ensemble of 3", "mean probability"),
            ("ensemble of 3", "maximum probability")} <= set(detail)  # fmt: skip
    assert float(table["ensemble of 3"]["top1_percent"]) == float(mean["top1_percent"])


def test_two_seeds_have_mean_and_spread(cli, cotrained, tmp_path):
    assert cli("train", cotrained / "recipe.yaml", "seed=1", "--out", tmp_path / "run") == 0
    out = tmp_path / "both"
    assert cli("evaluate", cotrained, tmp_path / "run", "--out", out, "--no-time") == 0
    per_run = rows(out / "per_run.csv")
    both = [float(r["top1_percent"]) for r in per_run if r["predictor"] == "ensemble of 3"]
    detail = {(r["networks"], r["joined"]): r for r in rows(out / "ensembles.csv")}
    mean = detail["ensemble of 3", "mean logits (= geometric mean)"]
    assert float(mean["top1_percent"]) == pytest.approx(sum(both) / 2, rel=1e-4)
    assert float(mean["spread"]) == pytest.approx(abs(both[0] - both[1]) / 2**0.5, abs=1e-3)
    assert mean["runs"] == "2"


@pytest.mark.slow
def test_wide_network_ensemble_and_collaboration_in_one_table(cli, tmp_path):
    """Issue 4, item 4: the same small networks averaged and routed, beside the undivided one."""
    assert cli("train", "divide/digits", "train.epochs=1", "data.train_fraction=0.1",
               "train.batch_size=32", "--out", tmp_path / "run") == 0  # fmt: skip
    run = load_run(tmp_path / "run")
    macs = run_macs(run.networks)
    assert macs.ensembles["of 4"] == macs.experts[0]  # routed and averaged: the same networks
    predictions = predict_all(run.networks, load_data(run.recipe.data).validation)
    names = [row.name for row in table_rows(predictions, predictions, macs)]
    assert {"single network undivided", "ensemble of 4", "CoE no exits"} <= set(names)


def test_inspect_shows_the_division(cli, cotrained, capsys):
    assert cli("inspect", cotrained / "recipe.yaml") == 0
    of_recipe = capsys.readouterr().out
    assert "ensemble of 3, each of 3" in of_recipe
    assert "small_resnet divided into 3 by rule none" in of_recipe
    assert "mean MMACs of the collaboration" not in of_recipe
    assert cli("inspect", cotrained) == 0
    assert capsys.readouterr().out == of_recipe


def test_predict_with_an_ensemble(cli, cotrained, tmp_path, capsys):
    assert cli("evaluate", cotrained, "--out", tmp_path, "--no-time") == 0
    capsys.readouterr()
    examples = tmp_path / "examples"
    command = ("predict", cotrained, examples, "--system", "ensemble:of 3")
    assert cli(*command, "--format", "jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 8
    run = load_run(cotrained, team=False)
    networks = run.networks
    for each in records:
        pixels = networks.preprocess.load(each["file"])
        prepared = networks.prepare(pixels[None])
        with torch.inference_mode():
            members = torch.stack([m(prepared) for m in networks.ensembles["of 3"].members], 1)
        chances = members.mean(1).softmax(1)[0]
        assert each["label"] == networks.classes[int(chances.argmax())]
        assert each["probability"] == pytest.approx(float(chances.max()), rel=1e-4)
        assert (each["exited"], each["expert"]) == (None, None)
        assert each["macs"] == 3 * run_macs(networks).ensembles["of 3"]
    assert cli(*command) == 0
    shown = capsys.readouterr().out
    assert len(re.findall("│ ensemble:of 3 +│", shown)) == 8
    assert "threshold" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "single:undivided, ensemble:of 1, ensemble:of 3: name one .--system., or let"),
        (["--system", "ensemble:of 2"], "no system 'ensemble:of 2'; nearest: ensemble:of"),
        (
            ["--system", "ensemble:of 3", "--at", "fast"],
            "no operating point 'fast' of ensemble:of 3",
        ),
        (
            ["--system", "ensemble:of 3", "--threshold", "0.5"],
            "always runs whole: it takes no thres",
        ),
    ],
)
def test_predict_refuses(cli, cotrained, trained, tmp_path, capsys, options, message):
    assert cli("predict", cotrained, trained / "recipe.yaml", *options) == 2
    assert re.search(message, capsys.readouterr().err)


def test_predict_with_a_run_without_ensembles(cli, trained, capsys):
    assert cli("predict", trained, trained / "recipe.yaml", "--system", "ensemble:of 3") == 2
    assert "the run has no system 'ensemble:of 3'" in capsys.readouterr().err


def test_a_run_without_a_team_is_calibrated_too(cli, cotrained, tmp_path, capsys):
    """The best of its networks and ensembles within a budget; a part is of the dearest."""
    folder = tmp_path / "run"
    shutil.copytree(cotrained, folder)
    macs = run_macs(load_run(folder, team=False).networks)
    macs_of_ensemble = macs.ensembles["of 3"]
    assert cli("calibrate", folder, "best", "macs=100%", f"macs={macs_of_ensemble}") == 2
    assert "the cheapest that exists is" in capsys.readouterr().err
    assert cli("calibrate", folder, "best", "macs=100%") == 0
    run = load_run(folder, team=False)
    assert set(run.stored.choices["best"].rivals) == {
        "single:undivided", "ensemble:of 1", "ensemble:of 3"
    }  # fmt: skip
    dearest = max(3 * macs_of_ensemble, *macs.controls.values(), macs.ensembles["of 1"])
    assert run.operating_points["macs=100%"].value == dearest
    assert cli("predict", folder, folder / "recipe.yaml", "--at", "60%") in (1, 2)


def test_saved_run_holds_its_recipe(cotrained):
    saved = load_recipe(str(cotrained / "recipe.yaml"))
    assert saved == load_run(cotrained, team=False).recipe
    assert not saved.has_team
    stored = json.loads((cotrained / "provenance.json").read_text())
    assert stored["data"]["num_train"] == 227
