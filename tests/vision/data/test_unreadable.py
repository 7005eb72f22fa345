"""Files that cannot be read: a few are left out, many stop, before training and while it runs."""

import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.vision.data.noise_folders import folder, quietly, write_folder
from vision.data.load import load_data
from vision.data.loaders import eval_loader, train_loader


def break_files(files):
    for file in files:
        file.write_bytes(file.read_bytes()[:40])


@pytest.mark.slow
def test_files_above_the_limit_of_pixels_are_left_out(tmp_path):
    write_folder(tmp_path, count=80)
    write_folder(tmp_path, "test", count=1)
    Image.new("RGB", (100, 100)).save(tmp_path / "train" / "ant" / "000.png")
    for options in ({}, {"augmentation": ["random_resized_crop"]}, {"in_memory": False}):
        data = folder(tmp_path, max_pixels=9_999, validation=0.02, **options)
        with pytest.warns(UserWarning, match="100 x 100 pixels, above the limit of 9999"):
            list(eval_loader(load_data(data).train, 50))
        assert load_data(replace(data, max_pixels=10_000)).provenance["left_out"]["train"] == 0


def test_a_few_unreadable_files_are_left_out(tmp_path):
    write_folder(tmp_path, count=80)
    files = sorted((tmp_path / "train" / "ant").iterdir())
    break_files(files[:1])
    write_folder(tmp_path, "test", count=1)
    with pytest.warns(UserWarning, match=r"train: left out 1 of \d+ images.*\n.*ant/000\.png"):
        data = load_data(folder(tmp_path, validation=0.02))
    assert sum(data.provenance["left_out"].values()) == 1
    assert str(files[0]) not in data.train.paths
    assert len(data.train) == len(data.train.targets) == len(data.train.paths) == 233
    assert data.train[232]["target"] == 2


@pytest.mark.parametrize("in_memory", [True, None])
def test_many_unreadable_files_stop(tmp_path, in_memory):
    write_folder(tmp_path)
    break_files(sorted((tmp_path / "train" / "ant").iterdir()))
    with pytest.raises(
        ValueError, match=r"train: 9 of 27 images \(33.3%\) cannot be read, not under 1%"
    ):
        quietly(folder(tmp_path, in_memory=in_memory))


@pytest.mark.process
def test_unreadable_files_on_the_fly(tmp_path):
    write_folder(tmp_path, count=100)
    write_folder(tmp_path, "validation", count=40)
    data = quietly(folder(tmp_path, in_memory=False, augmentation=["flip"], workers=2))
    bad = data.train.targets.tolist().index(1)
    break_files([tmp_path / "train" / data.classes[1] / "000.png"])
    with pytest.warns(UserWarning, match=r"000\.png.*next readable sample takes its place"):
        view = data.train[bad, 3]
    assert (view["index"], view["target"]) == (bad + 1, 1)
    assert torch.equal(view["image"], data.train[bad + 1, 3]["image"])
    with warnings.catch_warnings():  # told once
        warnings.simplefilter("error")
        assert data.train[bad, 4]["index"] == bad + 1
        plain = data.train[bad]
    assert (plain["index"], plain["target"]) == (bad, 1)
    assert plain["image"].unique().tolist() == [128]
    break_files([tmp_path / "train" / data.classes[2] / "050.png"])
    options = folder(tmp_path, augmentation=["flip"], workers=2)
    first = list(train_loader(options, data.train, 30, seed=0))
    assert data.train._unreadable.sum() == 2  # a worker told this process
    second = list(train_loader(replace(options, workers=0), data.train, 30, seed=0))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    assert torch.cat([batch["index"] for batch in first]).unique().numel() == 298


@pytest.mark.filterwarnings("ignore:cannot read the image")
def test_unreadable_files_on_the_fly_stop_above_the_limit(tmp_path):
    write_folder(tmp_path, count=100)
    data = quietly(folder(tmp_path, in_memory=False, augmentation=["flip"]))
    break_files(sorted((tmp_path / "train" / "ant").iterdir()))
    loader = train_loader(replace(folder(tmp_path), workers=0), data.train, 50, seed=0)
    with pytest.raises(ValueError, match=r"3 of 270 images \(1.1%\) cannot be read"):
        list(loader)


def test_last_sample_unreadable_wraps_around(tmp_path):
    write_folder(tmp_path, count=60)
    data = quietly(folder(tmp_path, in_memory=False, augmentation=["flip"]))
    break_files([type(tmp_path)(data.train.paths[-1])])
    with pytest.warns(UserWarning, match="takes its place"):
        assert data.train[len(data.train) - 1, 0]["index"] == 0
    assert len(list(eval_loader(data.train, 50))) == 4
