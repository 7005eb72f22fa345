"""Gradients accumulated over parts of a batch: as many steps, the same images, the mean gradient."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback

from vision.errors import Interrupted
from vision.recipe import recipe_from_dict
from vision.run import load_run
from vision.training.train import train

NETWORK = {"name": "small_resnet", "options": {"width": 2, "blocks": 1}}


def recipe(accumulate, **changes):
    values = {
        "delegator": NETWORK,
        "experts": NETWORK,
        "num_experts": 2,
        "data": {"train_fraction": 0.15},
        "objective": {"shared_start": 0.5},
        "train": {"epochs": 2, "batch_size": 32, "accumulate": accumulate, "lr": 0.01},
    }
    return recipe_from_dict({**values, **changes})


class Watch(Callback):
    """Which images each optimiser step saw, and how often the portions were settled."""

    def __init__(self, stop_behind=None):
        self.steps, self.batches, self.stop_behind = {}, 0, stop_behind

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.steps.setdefault(trainer.global_step, []).append(batch["index"])

    def on_train_batch_end(self, trainer, *_):
        self.batches += 1
        if self.batches == self.stop_behind:
            os.kill(os.getpid(), signal.SIGTERM)

    def seen(self):
        return {step: torch.cat(parts).tolist() for step, parts in self.steps.items()}


@pytest.mark.slow
def test_steps_see_the_same_images_and_a_stop_waits_for_the_whole_step(tmp_path):
    seen = {}
    for parts in (1, 4):
        watch = Watch()
        train(recipe(parts), tmp_path / f"{parts}", watch=[watch])
        seen[parts] = watch.seen()
        assert watch.batches == parts * len(seen[parts])
    assert seen[1] == seen[4]
    assert len(seen[4]) == 2 * (170 // 32)
    # Told to stop in the middle of a step, it ends that step; then it goes on where it was.
    stopped, resumed = Watch(stop_behind=6), Watch()
    with pytest.raises(Interrupted, match="state kept in"):
        train(recipe(4), tmp_path / "stopped", watch=[stopped])
    assert stopped.batches == 8
    train(recipe(4), tmp_path / "stopped", resume=True, watch=[resumed])
    assert resumed.seen() == {step: images for step, images in seen[4].items() if step >= 2}
    ours, theirs = (load_run(tmp_path / name).networks.state_dict() for name in ("4", "stopped"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_batch_that_does_not_divide():
    with pytest.raises(
        ValueError, match=r"train.batch_size=32 does not divide into train.accumulate=5"
    ):
        recipe(5)
    with pytest.raises(ValueError, match=r"train.accumulate"):
        recipe(0)
