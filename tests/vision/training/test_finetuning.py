"""Trainings that go on from weights: through the real command, and without the weights ever after."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vision.data.load import load_data
from vision.networks.network import Network, build_network
from vision.networks.pretrained import Weights
from vision.networks.started import started
from vision.recipe import load_recipe, unused_settings
from vision.run import load_run
from vision.training.finetuning import FineTuning, recalibrate
from vision.training.module import CoETraining
from vision.training.optimizer import build_optimizer
from vision.training.schedule import learning_rate_schedule

WORDS = ["digits", "data.train_fraction=0.1", "num_experts=2", "controls={}"]
WORDS += ["train.epochs=2", "train.batch_size=32", "train.precision=32-true", "train.lr=1e-7"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "expert.pt"
    torch.manual_seed(5)
    torch.save(build_network(load_recipe("digits").experts[0], 10, 1).state_dict(), path)
    return path


@pytest.mark.slow
def test_weights_are_needed_once(cli, weights, tmp_path, capsys):
    path, folder = tmp_path / "a.pt", tmp_path / "run"
    path.write_bytes(weights.read_bytes())
    words = ["train", *WORDS, f"experts.pretrained={path}", "--out", folder]
    assert cli(*words, "--stop-after", 1) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "starts from" in x]
    assert line.startswith("small_resnet starts from a.pt: ")
    assert line.endswith("tensors loaded; its classifier, too")
    path.unlink()
    assert cli(*words, "--resume") == 0
    assert "starts from" not in capsys.readouterr().out
    (record,) = json.loads((folder / "provenance.json").read_text())["pretrained"]
    assert record["source"] == "a.pt"
    assert len(record["sha256"]) == 64
    own = torch.load(weights, weights_only=True)
    for expert in load_run(folder).networks.team.experts:  # the rate is next to nothing
        for name, parameter in expert.named_parameters():
            torch.testing.assert_close(parameter.cpu(), own[name], atol=1e-4, rtol=1e-3)
    examples = tmp_path / "none.png"
    assert cli("predict", folder, examples) == 2
    assert "none.png" in capsys.readouterr().err
    assert cli("train", *WORDS, f"experts.pretrained={path}", "--out", tmp_path / "new") == 2
    assert "there is no file" in capsys.readouterr().err


def module_of(overrides, weights):
    words = [*WORDS, f"experts.pretrained={weights}", *overrides]
    recipe = load_recipe(words[0], words[1:])
    data = load_data(recipe.data)
    return CoETraining(
        recipe.to_dict(), data.classes, data.preprocess.to_dict(), 100, start=Weights()
    )


def callback(module, epoch=0):
    trainer = SimpleNamespace(current_epoch=epoch)
    tuning = FineTuning(module.recipe.train)
    tuning.setup(trainer, module, "fit")
    module.train()
    tuning.on_train_epoch_start(trainer, module)
    tuning.on_train_batch_start(trainer, module, None, 0)


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def training_norms(network):
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return [norm.training for norm in norms]


def test_the_classifier_first_then_all(weights):
    module = module_of(["train.head_epochs=1"], weights)
    team = module.networks.team
    expert = team.experts[1]
    everything = {name for name, _ in expert.named_parameters()}
    callback(module)
    assert learning(expert) == {name for name in everything if name.startswith("head.")} != set()
    assert not any(training_norms(expert))
    assert learning(team.delegator) == {name for name, _ in team.delegator.named_parameters()}
    assert all(training_norms(team.delegator))
    callback(module, epoch=1)
    assert learning(expert) == everything
    assert all(training_norms(expert))


def test_up_to_a_module_nothing_is_trained(weights):
    module = module_of(["experts.frozen=blocks.0"], weights)
    expert = module.networks.team.experts[0]
    names = [name for name, _ in expert.named_parameters()]
    last = max(i for i, name in enumerate(names) if name.startswith("blocks.0."))
    callback(module)
    assert learning(expert) == set(names[last + 1 :])
    assert next(iter(training_norms(expert))) is False
    assert [*training_norms(expert)][-1] is True
    optimizer = build_optimizer(module.recipe.train, module, depth=module.networks.started.depth)
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    assert not trained & set(module.networks.started.parts[0].fixed)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_earlier_layers_learn_slower(weights, name):
    words = ["train.layer_decay=0.5", f"train.optimizer={name}", "train.lr=0.1"]
    module = module_of(words, weights)
    optimizer = build_optimizer(module.recipe.train, module, depth=module.networks.started.depth)
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expert = module.networks.team.experts[0]
    rates = [rate[parameter] for parameter in expert.parameters()]
    assert rates == sorted(rates)
    assert rates[-1] == 0.1
    depth = len(set(rates)) - 1
    assert rates[0] == pytest.approx(0.1 * 0.5**depth)
    assert depth > 2
    assert {rate[p] for p in module.networks.team.delegator.parameters()} == {0.1}
    learning_rate_schedule(optimizer, module.recipe.train, 100)
    start = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [start[p] for p in expert.parameters()] == pytest.approx([r / 25 for r in rates])


def test_timms_layers():
    network = Network("test_vit", pretrained="a.pt", frozen="patch_embed")
    built = build_network(network, 4)
    parts = started(built, network, 4)
    depth = {name: parts.depth[p] for name, p in built.named_parameters()}
    assert depth["head.weight"] == 0 < depth["blocks.1.norm1.weight"] < depth["cls_token"]
    assert {id(p) for p in parts.fixed} == {id(p) for p in built.patch_embed.parameters()}
    with pytest.raises(
        ValueError, match=r"frozen: test_vit has no module 'bloks'; nearest: blocks"
    ):
        started(built, replace(network, frozen="bloks"), 4)


def test_recalibrated_statistics_are_those_of_the_images(weights):
    module = module_of(["train.batch_norm=recalibrated"], weights)
    batches = [{"image": torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)} for _ in range(3)]
    expert = module.networks.team.experts[0]
    (first, *_) = module.networks.started.parts[0].norms
    seen = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    momentum = first.momentum
    assert recalibrate(module.networks, batches) == 24
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(first.running_mean, mean)
    assert first.momentum == momentum
    callback(module)
    assert not any(training_norms(expert))


def test_settings_that_have_no_effect_or_are_refused():
    words = ["train.head_epochs=1", "train.layer_decay=0.5", "train.batch_norm=frozen"]
    lines = unused_settings(load_recipe("digits", words))
    assert [line.split()[0] for line in lines] == [word.split("=")[0] for word in words]
    assert all("has no effect without a pretrained network" in line for line in lines)
    with pytest.raises(ValueError, match=r"delegator.frozen without delegator.pretrained"):
        load_recipe("digits", ["delegator.frozen=stem"])
    with pytest.raises(ValueError, match=r"train.layer_decay must be in \(0, 1\], got 0"):
        load_recipe("digits", ["train.layer_decay=0"])
