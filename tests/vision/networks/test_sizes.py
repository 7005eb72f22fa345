"""Networks that see images at a size of their own: one reduction, the same everywhere, counted as it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from coe_core import count_macs
from vision.data.preprocess import Preprocess
from vision.networks.network import Network, OwnView, build_network
from vision.prediction.predictor import decode_image
from vision.recipe import load_recipe
from vision.recipe_networks import Networks, run_macs, untrained
from vision.run import Run

DELEGATOR = {"name": "small_resnet", "options": {"width": 2, "stages": 3}}


def networks_of(size, side=32, delegator=DELEGATOR):
    recipe = load_recipe(
        "digits", ["num_experts=2", "data.channels=3", f"data.size={side}"]
    ).to_dict()
    recipe["delegator"] = {**recipe["delegator"], **delegator, "size": size}
    third = [0.5] * 3
    preprocess = Preprocess(side, 3, tuple(third), tuple(third)).to_dict()
    torch.manual_seed(0)
    return Networks(recipe, [str(i) for i in range(10)], preprocess).eval()


def test_the_reduction_is_antialiased():
    """Stripes of a pixel each become grey, as in Pillow; a plain pick of pixels would keep them."""
    stripes = torch.arange(64).remainder(2).float().expand(1, 1, 64, 64)
    seen = []
    OwnView(_Keeps(seen), 24)(stripes)
    assert seen[0].shape == (1, 1, 24, 24)
    assert (seen[0] - 0.5).abs().max() < 0.1
    picture = Image.fromarray((255 * stripes[0, 0].numpy()).astype(np.uint8))
    pillows = np.asarray(picture.resize((24, 24), Image.Resampling.BILINEAR)) / 255
    assert np.abs(seen[0][0, 0].numpy() - pillows).max() < 0.01


class _Keeps(torch.nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, images):
        self.seen.append(images)
        return images.flatten(1)[:, :2]


@pytest.mark.slow
def test_macs_are_of_that_size():
    small, large = networks_of(16), networks_of(None)
    bare = build_network(Network(**DELEGATOR), 10 + 2, 3).eval()
    assert run_macs(small).delegator == count_macs(bare, torch.zeros(1, 3, 16, 16))
    assert run_macs(large).delegator == count_macs(bare, torch.zeros(1, 3, 32, 32))
    assert run_macs(small).experts == run_macs(large).experts
    recipe = load_recipe("digits", ["data.size=8", "delegator.size=6"])
    assert (
        run_macs(untrained(recipe)).delegator < run_macs(untrained(load_recipe("digits"))).delegator
    )


def test_equal_networks_are_counted_once(monkeypatch):
    seen = []
    counting = lambda network, images: seen.append(network) or count_macs(network, images)  # noqa: E731
    monkeypatch.setattr("vision.recipe_networks.count_macs", counting)
    small = {"name": "small_resnet", "options": {"width": 1, "stages": 3}}
    words = [f"experts=[{small}, {DELEGATOR}, {small}]", "num_experts=3", "controls={}"]
    macs = run_macs(untrained(load_recipe("digits", words)))
    assert len(seen) == 3
    assert macs.experts[0] == macs.experts[2] < macs.experts[1]


@pytest.mark.slow
@pytest.mark.usefixtures("operators_once")
def test_everyone_sees_the_same(tmp_path):
    """A file through the run, runner.py and team.onnx: the delegator's own size is in its graph."""
    pytest.importorskip("onnxruntime")
    from vision.export.check import check_export
    from vision.export.export import export_run
    from vision.export.runner import Runner

    (tmp_path / "last.ckpt").touch()
    run = Run(tmp_path, tmp_path / "last.ckpt", networks_of(20))
    draw = np.random.default_rng(0)
    files = [tmp_path / f"{side}.png" for side in (20, 32, 57)]
    for path in files:
        side = int(path.stem)
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    decoded = torch.stack([decode_image(run.networks.preprocess, path) for path in files])
    folder = tmp_path / "export"
    export_run(run, folder, "onnx", threshold=0.11)
    parities = check_export(run, folder, "onnx", decoded, 0.11, 0.0, files=files)
    assert {parity.form for parity in parities} == {
        "runner.py",
        "team.onnx",
        "runner.py, from files",
    }
    assert all(parity.same_route == parity.num_samples for parity in parities)
    assert max(parity.max_difference for parity in parities) < 1e-5
    answers = Runner(folder)(files, threshold=0.0)
    with torch.inference_mode():
        rough = run.networks.team.delegate(run.networks.prepare(decoded))[0].softmax(1)
    assert [a["probability"] for a in answers] == pytest.approx(rough.amax(1).tolist(), abs=1e-5)
    assert answers[0]["macs"] == run_macs(run.networks).delegator


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["delegator.size=9"],
            r"digits.yaml: delegator.size=9 is above data.size=8, at which the images",
        ),
        (
            ["controls.expert.size=10", "data.size=9"],
            r"controls.expert.size=10 is above data.size=9",
        ),
        (["delegator.size=0"], r"size must be at least 1, got 0"),
        (["delegator.size=1.5"], r"delegator.size"),
    ],
)
def test_sizes_that_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        untrained(load_recipe("digits", overrides))


def test_a_size_that_a_network_cannot_take(cli, capsys):
    vit = "delegator={name: vit_tiny_patch16_224, size: 96}"
    assert cli("inspect", "clothing", vit, "data.size=160") == 2
    error = capsys.readouterr().err
    assert "delegator (vit_tiny_patch16_224) cannot take images of 3 x 96 x 96: " in error
    assert "change its size, or the network's options" in error
