"""Trainings that go on from weights: through the real command, and without the weights ever after."""

import json

import pytest
import torch

from vision.networks.network import build_network
from vision.recipe import load_recipe
from vision.run import load_run

WORDS = ["digits", "data.train_fraction=0.1", "num_experts=2", "controls={}"]
WORDS += ["train.epochs=2", "train.batch_size=32", "train.precision=32-true", "train.lr=1e-7"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "expert.pt"
    torch.manual_seed(5)
    torch.save(build_network(load_recipe("digits").experts[0], 10, 1).state_dict(), path)
    return path


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
