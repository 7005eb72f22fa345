"""Where portions come from: clusters, known groups, several starts; resumed exactly."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from vision.data.load import load_data
from vision.errors import RunError
from vision.recipe import load_recipe
from vision.recipe_networks import Networks
from vision.run import load_checkpoint
from vision.training.module import GAIN
from vision.training.portions import TeamPortions, known_groups
from vision.training.starts import keep_best_start
from vision.training.train import train

FAST = ["data.train_fraction=0.15", "train.epochs=2", "controls={}", "num_experts=2"]
FAST += ["train.batch_size=32", "train.precision=32-true"]
ROUND = "portions.of_class={'0': round, '6': round, '8': round, '1': line, '7': line}"


@pytest.fixture(scope="module")
def digits():
    return load_data(load_recipe("digits").data)


def trained(folder, *overrides, **options):
    train(load_recipe("digits", [*FAST, *overrides]), folder, **options)
    return load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


def last_value(folder, column):
    with (folder / "metrics/metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]][-1]


@pytest.mark.slow
def test_clusters_are_resumed_exactly_across_settling(tmp_path, capsys):
    late = ["portions.follow=clusters", "objective.settling=0.6"]
    whole = trained(tmp_path / "whole", *late)
    assert "portions follow: class 0." in capsys.readouterr().out
    first = trained(tmp_path / "parts", *late, stop_after=1)
    assert first["portions.clusters.centres"].isnan().all()
    assert not first["portions.clusters.seen"].isnan().all()
    parts = trained(tmp_path / "parts", *late, resume=True)
    assert not parts["portions.clusters.centres"].isnan().any()
    assert (
        parts["portions.clusters.cluster"] >= 0
    ).float().mean() > 0.7  # an epoch leaves some out
    assert whole.keys() == parts.keys()
    assert all(whole[name].equal(parts[name]) for name in whole if "seen" not in name)
    assert parts["portions.clusters.seen"].isnan().all()


@pytest.mark.slow
def test_clusters_with_a_shared_start_and_a_trunk(tmp_path):
    state = trained(
        tmp_path / "run",
        "portions.follow=clusters",
        "objective.shared_start=0.5",
        "hand_over.trunk=blocks.0",
    )
    assert (state["portions.clusters.cluster"] >= 0).float().mean() > 0.7


@pytest.mark.slow
def test_known_groups_are_the_portions(tmp_path):
    known = ["portions.follow=known", "portions.groups=class", ROUND, "objective.focus_warmup=0"]
    state = trained(tmp_path / "run", *known)
    counts = state["portions.groups.counts"]  # [experts, groups]: line and round, in this order
    assert counts[0, 1] == counts[1, 0] == 0
    assert counts.diagonal().min() > 0
    assert last_value(tmp_path / "run", "portions/group") == pytest.approx(1)
    others = state["portions.classes.counts"][:, [2, 3, 4, 5, 9]]  # classes without a group
    assert (others.sum(1) > 0).all()


def test_evidence_takes_over_from_known_groups(digits):
    known = ["portions.follow=known", "portions.groups=class", ROUND, "portions.takeover=0.5"]
    recipe = load_recipe("digits", [*FAST, *known])
    networks = Networks(recipe.to_dict(), digits.classes, digits.preprocess.to_dict())
    count = len(digits.train)
    portions = TeamPortions(recipe, networks.team, 10, count, known_groups(recipe, digits))
    index = torch.arange(count)
    shares = [float((portions.known(index, at) >= 0).float().mean()) for at in (0, 0.25, 0.5, 1)]
    assert shares[0] == pytest.approx(0.5, abs=0.05)  # five classes of ten have a group
    assert shares[1] == pytest.approx(shares[0] / 2, abs=0.05)
    assert shares[2:] == [0, 0]


@pytest.mark.slow
def test_the_best_start_goes_on_and_is_resumed_exactly(tmp_path, capsys):
    starts = ["portions.starts=2", "portions.trial=0.5"]
    whole = trained(tmp_path / "whole", *starts)
    record = json.loads((tmp_path / "whole/starts.json").read_text())
    gains = record["specialist_gain"]
    assert len(gains) == 2
    assert gains[0] != gains[1]
    assert record["kept"] == gains.index(max(gains))
    assert f"start {record['kept'] + 1} is kept" in capsys.readouterr().out
    assert not (tmp_path / "whole/starts").exists()
    with (tmp_path / "whole/metrics/metrics.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row["val/rough_accuracy"]]
    assert epochs == [0, 1]
    # Interrupted after the trials, and between them.
    parts = trained(tmp_path / "parts", *starts, stop_after=1)
    parts = trained(tmp_path / "parts", *starts, resume=True)
    assert all(whole[name].equal(parts[name]) for name in whole)


def test_another_process_may_be_the_first_to_make_the_folders(tmp_path, capsys):
    """Of two processes that begin at once the one that does not write was here already."""
    recipe = load_recipe("digits", [*FAST, "portions.starts=2", "portions.trial=0.5"])
    run = tmp_path / "run"

    def try_start(trial, start):
        assert rank == 0 or not (trial / "metrics").exists()  # nothing is read that another writes
        if rank == 0:
            for part in ("metrics/metrics.csv", "checkpoints/last.ckpt"):
                (trial / part).parent.mkdir(parents=True, exist_ok=True)
                (trial / part).write_text(f"{GAIN}\n{start}\n")

    for rank in (1, 0):
        (run / "starts/0/checkpoints").mkdir(parents=True, exist_ok=True)
        keep_best_start(recipe, run, False, rank, try_start)
        assert capsys.readouterr().out.count("is kept") == 1 - rank
    assert json.loads((run / "starts.json").read_text())["kept"] == 1
    assert (run / "checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_a_start_that_was_interrupted_is_tried_again(tmp_path, monkeypatch):
    starts = ["portions.starts=2", "portions.trial=0.5"]
    recipe = load_recipe("digits", [*FAST, *starts])
    from vision.training import train as module

    one_start = module._train

    def stopped(*arguments):
        if arguments[-1] == 1:  # the second start
            raise KeyboardInterrupt
        return one_start(*arguments)

    monkeypatch.setattr(module, "_train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(RunError, match="already holds trials of a run"):
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True, stop_after=1)
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    train(
        recipe, tmp_path / "run", resume=True, stop_after=1
    )  # a run that is begun is left as it is


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    trained(tmp_path / "run", stop_after=1)
    path = tmp_path / "run/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    for name in [name for name in content["state_dict"] if name.startswith("portions.")]:
        del content["state_dict"][name]
    del content["hyper_parameters"]["recipe"]["portions"]
    torch.save(content, path)
    assert "portions.classes.counts" in trained(tmp_path / "run", resume=True, stop_after=2)


def groups_of(data, *overrides):
    recipe = load_recipe("digits", [*FAST, *overrides])
    return known_groups(recipe, data)


def test_groups_of_classes_and_refusals(digits):
    assert groups_of(digits) is None
    groups = groups_of(digits, "portions.groups=class", ROUND)
    assert groups.names == ["line", "round"]
    of = dict(zip(digits.train.targets.tolist(), groups.of_sample.tolist(), strict=True))
    assert (of[1], of[0], of[2]) == (0, 1, -1)
    with pytest.raises(ValueError, match="there is no class 'ten'"):
        groups_of(digits, "portions.groups=class", "portions.of_class={ten: a}")
    with pytest.raises(ValueError, match=r"several joined data sets, but data\.name is digits"):
        groups_of(digits, "portions.groups=source")
    with pytest.raises(ValueError, match=r"needs every training image in a folder.*are in none"):
        groups_of(digits, "portions.groups=folder")
    with pytest.raises(ValueError, match="2 known groups for 3 experts"):
        groups_of(digits, "portions.groups=class", ROUND, "portions.follow=known", "num_experts=3")


def test_groups_of_folders_and_of_joined_sets(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for place in ("cat/day", "cat/night", "dog/day", "dog/night"):
            folder = tmp_path / split / place
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(folder / f"{i}.png")
    settings = [
        "data.name=folder",
        f"data.path={tmp_path}",
        "data.channels=3",
        "data.validation=0.34",
    ]
    settings += ["data.cache=off", "data.train_fraction=1"]
    data = load_data(load_recipe("digits", [*FAST, *settings]).data)
    groups = groups_of(data, *settings, "portions.groups=folder", "portions.follow=known")
    assert groups.names == ["day", "night"]
    expected = ["night" in path for path in data.train.paths]
    assert groups.of_sample.tolist() == expected
    joined = [*settings, "data.name=folder+folder", f"data.path={tmp_path}{os.pathsep}{tmp_path}"]
    data = load_data(load_recipe("digits", [*FAST, *joined]).data)
    groups = groups_of(data, *joined, "portions.groups=source")
    assert groups.names == ["folder 1", "folder 2"]
    assert torch.equal(groups.of_sample, (data.train.targets >= 2).long())


def test_groups_of_a_column_of_the_table(tmp_path):
    from PIL import Image

    rows = ["file,label,split,track,camera"]
    for i in range(24):
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
        split = ("train", "train", "validation", "test")[i % 4]
        camera = ("front", "", "rear")[i % 3]
        rows.append(f"{i}.png,{'cat' if i % 5 else 'dog'},{split},{split}{i},{camera}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows))
    settings = ["data.name=folder", f"data.path={table}", "data.channels=3", "data.cache=off"]
    settings += ["data.train_fraction=1", "data.group=track"]
    data = load_data(load_recipe("digits", [*FAST, *settings]).data)
    column = [*settings, "portions.groups=column", "portions.follow=known", "num_experts=2"]
    groups = groups_of(data, *column, "portions.column=camera")
    assert groups.names == ["front", "rear"]
    expected = [{0: 0, 1: -1, 2: 1}[int(Path(path).stem) % 3] for path in data.train.paths]
    assert groups.of_sample.tolist() == expected
    with pytest.raises(ValueError, match=r"portions\.column: .*has no column 'camra'.*camera"):
        groups_of(data, *column, "portions.column=camra")
    with pytest.raises(ValueError, match=r"is of a table of labels, but data\.path is None"):
        groups_of(data, "portions.groups=column", "portions.column=camera")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["portions.follow=known"], "portions.follow is known, but no groups are"),
        (["portions.groups=class"], "portions.of_class, the group of each class, go together"),
        (["portions.of_class={a: b}"], "portions.of_class, the group of each class, go together"),
        (
            ["portions.groups=column"],
            "portions.column, its name in the table of labels, go together",
        ),
        (
            ["portions.column=camera"],
            "portions.column, its name in the table of labels, go together",
        ),
        (["portions.takeover=0.5"], "portions.takeover is of clusters or known groups"),
        (["portions.follow=clusters", "portions.takeover=0"], r"takeover must be in \(0, 1\]"),
        (["portions.starts=0"], r"portions.starts must be in \[1, 100\], got 0"),
        (["portions.trial=1"], r"portions.trial must be in \(0, 1\), got 1"),
        (["portions.follow=random"], "expected one of .*selection.*clusters.*known"),
        (["portions.follow=clusters", "objective.labels=families"], "both say what the selection"),
        (["portions.starts=2", "portions.trial=0.9"], "2 of 2 epochs are the whole training"),
        (
            ["portions.starts=2", "portions.trial=0.5", "objective.shared_start=0.5"],
            "after 1 of 2 epochs the experts are still one network",
        ),
    ],
)
def test_refusals_of_the_recipe(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", [*FAST, *overrides])


def test_portions_without_a_team():
    with pytest.raises(ValueError, match="portions without a delegator and experts"):
        load_recipe(
            "digits",
            [
                "delegator=null",
                "experts=[]",
                "portions.starts=2",
                "ensembles={a: {network: small_resnet, s: 2}}",
            ],
        )
