"""Distillation: the teacher is frozen, sees what it was trained to see, and moves every network's targets."""

import huggingface_hub
import pytest
import timm
import torch

from vision.data.load import load_data
from vision.networks.network import Network, build_network
from vision.networks.pretrained import Weights
from vision.networks.teacher import Teacher
from vision.recipe import load_recipe
from vision.training.module import CoETraining

NAME = "test_resnet"


def teacher_file(folder, classes=10):
    torch.manual_seed(0)
    path = folder / "teacher.pth"
    torch.save(timm.create_model(NAME, num_classes=classes).state_dict(), path)
    return path


@pytest.fixture
def network(tmp_path):
    overlay = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3], "input_size": [3, 24, 24]}
    options = {"checkpoint_path": str(teacher_file(tmp_path)), "pretrained_cfg_overlay": overlay}
    return Network(NAME, options=options)


CLASSES = [str(i) for i in range(10)]


def test_views_pass_through_the_teachers_own_preprocessing(network):
    teacher = Teacher(network, 0.5, CLASSES)
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.4, 0.3)))
    expected = teacher.network((images / 255 - mean) / std).softmax(1)
    torch.testing.assert_close(teacher(images), expected)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)  # 48 x 48, resized to 24 x 24
    assert (teacher(larger) - expected).abs().max() < 0.05
    grey = images[:, :1]
    torch.testing.assert_close(teacher(grey), teacher(grey.expand(-1, 3, -1, -1)))
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.network.training


def test_targets_are_mixed(network):
    teacher = Teacher(network, 0.25, CLASSES)
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    labels = torch.tensor([1, 0, 9])
    mixed = teacher.mix(images, labels)
    expected = 0.75 * torch.nn.functional.one_hot(labels, 10) + 0.25 * teacher(images)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed.sum(1), torch.ones(3))
    shares = torch.full((3, 10), 0.1)
    torch.testing.assert_close(teacher.mix(images, shares), 0.075 + 0.25 * teacher(images))


@pytest.mark.slow
def test_every_network_learns_from_it_and_the_checkpoint_does_not_hold_it(cli, tmp_path):
    path = teacher_file(tmp_path)
    recipe = ["digits", "data.train_fraction=0.1", "train.batch_size=32", "num_experts=2"]
    recipe += ["train.epochs=1", "train.precision=32-true", "train.ema_decay=0.9"]
    options = f"{{name: {NAME}, options: {{checkpoint_path: {path}}}}}"
    taught = [*recipe, f"train.teacher={options}"]
    for name, words in (("alone", recipe), ("taught", taught)):
        assert cli("train", *words, "--out", tmp_path / name) == 0
    alone, ours = (
        torch.load(tmp_path / n / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for n in ("alone", "taught")
    )
    assert alone.keys() == ours.keys()
    heads = [n for n in ours if n.endswith("weight") and ours[n].ndim == 2]
    assert len(heads) == 3 + 6  # delegator, experts, the controls of digits
    assert all(not torch.equal(alone[name], ours[name]) for name in heads)
    path.unlink()
    assert cli("evaluate", tmp_path / "taught", "--no-time") == 0


def test_evidence_is_that_of_the_truth(network, monkeypatch):
    """Labels of the selection tell which expert knows the truth, not which agrees with the teacher."""
    settings = {"name": network.name, "options": network.options}
    overrides = [f"train.teacher={settings}", "train.teacher_weight=1", "num_experts=2"]
    recipe = load_recipe("digits", [*overrides, "objective.shared_start=0"])
    images = load_data(recipe.data)
    module = CoETraining(recipe.to_dict(), images.classes, images.preprocess.to_dict(), 1137)
    seen = {}
    original = module.objective.forward

    def forward(rough_loss, expert_loss, evidence, *args, **kwargs):
        seen.update(evidence=evidence, expert_loss=expert_loss)
        return original(rough_loss, expert_loss, evidence, *args, **kwargs)

    monkeypatch.setattr(module.objective, "forward", forward)
    monkeypatch.setattr(module, "_log", lambda *_: None)
    monkeypatch.setattr(type(module), "global_step", 1)
    batch = {"image": torch.stack([images.train[i]["image"] for i in range(8)])}
    batch |= {"target": images.train.targets[:8], "index": torch.arange(8)}
    module.train()
    module.training_step(batch, 0)
    assert seen["evidence"].shape == (8, 2)
    module.train()
    logits = torch.stack([e(module.networks.prepare(batch["image"])) for e in
                          module.networks.team.experts], 1)  # fmt: skip
    truth = logits.log_softmax(2)[torch.arange(8), :, batch["target"]]
    torch.testing.assert_close(seen["evidence"], truth, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen["expert_loss"], -truth, atol=1e-2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.teacher={name: resnet50}", "teacher resnet50 has random weights: set pretrained"),
        ("train.teacher=torchvision/resnet50", "'torchvision/resnet50' is not a network of timm"),
        ("train.teacher=resnt50", "'resnt50' is not a network of timm"),
        (
            "train.teacher={nam: resnet50}",
            "unknown key 'train.teacher.nam'; nearest: train.teacher.n",
        ),
        ("train.teacher_weight=2", "teacher_weight must be above 0 and at most 1, got 2.0"),
    ],
)
def test_refused(override, message):
    overrides = ["train.teacher=resnet50"] * ("weight" in override) + [override]
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", overrides)


def test_classes_that_are_not_the_teachers():
    published = Network("resnet50", pretrained=True)
    with pytest.raises(ValueError, match="resnet50 tells 1000 classes apart, the data have 10"):
        Teacher(published, 0.5, CLASSES)
    folders = [f"class {i:04}" for i in range(1000)]
    with pytest.raises(
        ValueError, match=r"class 0 is 'class 0000', not 'n01440764': name the class"
    ):
        Teacher(published, 0.5, folders)


def test_published_weights_that_cannot_be_had(monkeypatch):
    """As on a machine without a network that has not loaded them before."""

    def create_model(*_, **options):
        assert options["pretrained"]  # the ordinary call: a cache would be used
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the files in the cache")

    monkeypatch.setattr(timm, "create_model", create_model)
    message = r"weights of tinynet_e cannot be had: cannot find .*; fetch them once .*HF_HOME"
    with pytest.raises(ValueError, match=message):
        build_network(Network("tinynet_e", pretrained=True), 10, weights=Weights())
    with pytest.raises(ValueError, match="weights of resnet50 cannot be had"):
        Teacher(Network("resnet50", pretrained=True), 0.5, [str(i) for i in range(1000)])
