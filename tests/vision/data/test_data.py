"""Every data set's layout, the splits, the statistics, and every refusal before training."""

import itertools
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.vision.data.noise_folders import CLASSES, folder, quietly, write_folder
from vision.data.augmentation import AUGMENTATIONS
from vision.data.decode import decode_files, stored_form
from vision.data.facts import DATA_SETS
from vision.data.load import load_data
from vision.data.loaders import train_loader
from vision.data.section import Data
from vision.data.sources import SOURCES


def test_digits_shape_and_determinism():
    first, second = load_data(Data()), load_data(Data(split_seed=5))
    for name, count in (("train", 1137), ("validation", 300), ("test", 360)):
        images, again = getattr(first, name), getattr(second, name)
        assert len(images) == count
        sample = images[count - 1]
        assert sample.keys() == {"image", "target", "index"}
        assert sample["image"].shape == (1, 8, 8)
        assert sample["image"].dtype == torch.uint8
        assert isinstance(sample["target"], int)
        assert images.targets.dtype == torch.int64
        assert torch.equal(images._images, again._images)
        assert images.targets.bincount().min() >= 0.09 * count
    assert first.train._images.max() == 255
    assert first.classes == [str(i) for i in range(10)]
    assert not first.test_is_validation
    assert first.preprocess.mean[0] == pytest.approx(0.305, abs=0.01)
    everything = torch.cat([s._images for s in (first.train, first.validation, first.test)])
    assert len(everything) == 1797


def test_digits_need_no_path_and_say_so():
    with pytest.warns(UserWarning, match="path somewhere ignored"):
        load_data(Data(path="somewhere"))


def test_digits_in_another_size_and_in_colour():
    data = load_data(Data(size=16, channels=3))
    image = data.train[0]["image"]
    assert image.shape == (3, 16, 16)
    assert torch.equal(image[0], image[2])


def test_folder_with_all_three_splits(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, "val", count=2)
    write_folder(tmp_path, "test", count=3)
    data = load_data(folder(tmp_path))
    assert data.classes == sorted(CLASSES)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 6, 9]
    assert data.provenance["held_out"] == "the data set's own split"
    assert data.train.paths[0].endswith(f"{data.classes[0]}/000.png")
    assert data.train[29]["target"] == 2


def test_only_the_splits_asked_for_are_decoded(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, "test", count=3)
    whole, part = load_data(folder(tmp_path)), load_data(folder(tmp_path), decode=("test",))
    assert [s.cached for s in (whole.train, whole.validation, whole.test)] == [True] * 3
    assert [s.cached for s in (part.train, part.validation, part.test)] == [False, False, True]
    for loaded, again in ((whole.train, part.train), (whole.validation, part.validation)):
        assert len(loaded) == len(again)
        assert all(torch.equal(loaded[i]["image"], again[i]["image"]) for i in range(len(loaded)))
    assert part.preprocess == whole.preprocess


def test_folder_without_validation_and_test(tmp_path):
    write_folder(tmp_path)
    with pytest.warns(UserWarning, match="no test split; validation stands in"):
        data = load_data(folder(tmp_path, validation=0.2))
    assert data.test_is_validation
    assert data.test is data.validation
    assert data.train.targets.bincount().tolist() == [8, 8, 8]
    assert data.validation.targets.bincount().tolist() == [2, 2, 2]
    assert not set(data.train.paths) & set(data.validation.paths)
    assert data.provenance["held_out"] == "0.2 of train, stratified, split_seed 0"
    assert data.provenance["num_train"] == 24


def test_held_out_part_depends_on_split_seed_alone(tmp_path):
    write_folder(tmp_path)
    first = quietly(folder(tmp_path))
    assert quietly(folder(tmp_path, train_fraction=0.5)).validation.paths == first.validation.paths
    other = quietly(folder(tmp_path, split_seed=1, validation=0.3))
    assert set(other.validation.paths) != set(first.validation.paths)


def test_train_fraction_is_stratified_and_nested(tmp_path):
    write_folder(tmp_path, count=12)
    parts = [quietly(folder(tmp_path, train_fraction=f)).train for f in (0.01, 0.2, 0.5, 1.0)]
    assert [p.targets.bincount().tolist() for p in parts] == [[1] * 3, [2] * 3, [6] * 3, [11] * 3]
    for small, large in itertools.pairwise(parts):
        assert set(small.paths) < set(large.paths)


def test_hidden_files_and_folders_are_no_samples(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "ant" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "train" / "ant" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "ant" / ".ipynb_checkpoints" / "000.png").write_bytes(b"copy")
    data = quietly(folder(tmp_path))
    assert data.classes == sorted(CLASSES)
    assert len(data.train) + len(data.validation) == 30


def test_hidden_parents_do_not_hide_samples(tmp_path):
    root = write_folder(tmp_path / ".hidden")
    assert len(quietly(folder(root)).train) == 27


def test_statistics_by_hand(tmp_path):
    for name, value in (("a", 0), ("b", 255)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (value, 51, 0)).save(tmp_path / "train" / name / f"{i}.png")
    preprocess = quietly(folder(tmp_path, resize="exact")).preprocess
    assert preprocess.mean == (0.5, 0.2, 0.0)
    assert preprocess.std == pytest.approx((0.5, 1 / 255, 1 / 255), abs=1e-4)  # never zero
    given = folder(tmp_path, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    data = quietly(given)
    assert data.preprocess.mean == (0.1, 0.2, 0.3)
    assert data.train.preprocess == data.preprocess


@pytest.mark.process
@pytest.mark.parametrize("resize", ["exact", "crop"])
@pytest.mark.parametrize("augmentation", [[], ["flip", "shift"], ["random_resized_crop", "flip"]])
@pytest.mark.parametrize("size", [(16, 16), (23, 14), (8, 8)])
def test_decoding_before_changes_nothing(tmp_path, resize, augmentation, size):
    write_folder(tmp_path, count=4, size=size)
    data = folder(tmp_path, resize=resize, augmentation=augmentation)
    cached, read = (quietly(replace(data, in_memory=decoded)) for decoded in (True, False))
    assert cached.train.cached
    assert not read.train.cached
    assert cached.preprocess == read.preprocess
    for index in range(len(cached.train)):
        plain = cached.train[index]["image"]
        assert torch.equal(plain, cached.preprocess.load(cached.train.paths[index]))
        assert torch.equal(plain, read.train[index]["image"])
        view = cached.train[index, 5]["image"]
        assert view.shape == (3, 8, 8)
        assert torch.equal(view, read.train[index, 5]["image"])
    first, second = (
        next(iter(train_loader(replace(data, workers=w), s.train, 4, seed=0)))
        for w, s in ((0, cached), (2, read))
    )
    assert torch.equal(first["image"], second["image"])


def test_what_is_held_in_memory_is_chosen_by_size(tmp_path, monkeypatch):
    write_folder(tmp_path)
    assert quietly(folder(tmp_path)).train.cached
    monkeypatch.setattr("vision.data.load.MEMORY_BYTES", 30 * 3 * 64)
    assert quietly(folder(tmp_path)).train.cached
    monkeypatch.setattr("vision.data.load.MEMORY_BYTES", 30 * 3 * 64 - 1)
    assert not quietly(folder(tmp_path)).train.cached


def test_images_smaller_than_asked_for_are_enlarged(tmp_path):
    write_folder(tmp_path, size=(5, 3))
    for resize in ("exact", "crop"):
        data = quietly(folder(tmp_path, resize=resize, augmentation=["shift"], size=16))
        assert data.train[0]["image"].shape == data.train[0, 1]["image"].shape == (3, 16, 16)


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"bell\x07"])
def test_class_folders_whose_names_cannot_be_printed(tmp_path, name):
    write_folder(tmp_path)
    os.mkdir(os.path.join(os.fsencode(tmp_path / "train"), name))
    with pytest.raises(
        ValueError, match=r"1 class folders have names that cannot be printed: '.*\\"
    ):
        load_data(folder(tmp_path))


def test_class_folders_with_odd_names(tmp_path):
    for odd in (["-x", "50%", "[red]"], ["a=b", "日本", "$x_{"], ["train", "#1, 'two'"]):
        root = write_folder(tmp_path / odd[0], classes=odd, count=2)
        assert quietly(folder(root)).classes == sorted(odd)


def test_class_folders_with_long_names(tmp_path):
    """255 bytes are the most that file systems take."""
    names = ["x" * 250, "é" * 125, "日" * 83]
    root = write_folder(tmp_path, classes=names, count=2)
    assert quietly(folder(root)).classes == sorted(names)


def test_a_folder_named_by_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "2024")
    assert len(quietly(folder(2024)).train) == 27


def test_progress_is_shown_when_it_takes_long(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path, classes=["a"], count=3)
    monkeypatch.setattr("coe_core.support.progress.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("coe_core.support.progress.LINE_SECONDS", 0.0)
    form = stored_form(Data(channels=3).preprocess(), None)
    decoded = decode_files(sorted(map(str, (tmp_path / "train" / "a").iterdir())), form, "train")
    assert decoded.kept == [0, 1, 2]
    assert decoded.images.shape == (3, 3, 8, 8)
    assert len(set(decoded.digests.tolist())) == 3
    shown = capsys.readouterr().err
    assert "reading train: 3/3" in shown
    assert "images/s" in shown


def test_path_is_needed_and_must_exist(tmp_path):
    for name in ("folder", "cifar10", "cifar100", "fashion_mnist", "imagenet"):
        with pytest.raises(ValueError, match=f"data.path: {name} needs the folder"):
            load_data(Data(name=name))
        with pytest.raises(FileNotFoundError, match=r"data.path: there is no folder .*gone"):
            load_data(Data(name=name, path=str(tmp_path / "gone")))
    (tmp_path / "labels.csv.gz").touch()
    with pytest.raises(
        ValueError, match=r"csv\.gz is no folder; what is read is a folder, or a table"
    ):
        load_data(Data(name="folder", path=str(tmp_path / "labels.csv.gz")))


def test_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder train for the train split; expected"):
        load_data(folder(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="no class folders in it"):
        load_data(folder(tmp_path))
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images \(\.jfif.*\) in its 2 class folders"):
        load_data(folder(tmp_path))
    Image.new("L", (4, 4)).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(
        ValueError, match="of 1 of 2 classes: b; nothing can be learned of them: add"
    ):
        load_data(folder(tmp_path))


def test_one_class_and_one_image_each(tmp_path):
    write_folder(tmp_path / "one", classes=["only"])
    with pytest.raises(ValueError, match=r"only one class \(only\); at least two"):
        load_data(folder(tmp_path / "one"))
    write_folder(tmp_path / "each", count=1)
    with pytest.raises(ValueError, match="3 training images, one of each class: none can be held"):
        load_data(folder(tmp_path / "each"))


@pytest.mark.parametrize("split", ["validation", "val", "valid", "test"])
def test_class_folders_that_differ(tmp_path, split):
    write_folder(tmp_path)
    write_folder(tmp_path, split, classes=["ant", "c d", "dog"], count=1)
    with pytest.raises(
        ValueError, match=rf"{split}: 1 class folders that train does not have: dog"
    ):
        load_data(folder(tmp_path))


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_without_images_in_a_split_is_told(tmp_path, split, empty):
    """The folder is empty or not there: the same message."""
    write_folder(tmp_path)
    write_folder(tmp_path, split, classes=["ant", "c d"], count=1)
    if empty:
        (tmp_path / split / "Bär").mkdir()
    message = f"no images of 1 of 3 classes in {split}: Bär; figures on it say nothing about them"
    with pytest.warns(UserWarning, match=message):
        data = load_data(folder(tmp_path))
    assert data.classes == sorted(CLASSES)
    assert getattr(data, split).targets.tolist() == [1, 2]


def test_two_validation_folders(tmp_path):
    for split in ("train", "val", "validation"):
        write_folder(tmp_path, split)
    with pytest.raises(ValueError, match="has both validation/ and val/; keep one"):
        load_data(folder(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar"}, "unknown data set 'cifar'; nearest: cifar10"),
        ({"augmentation": ["flip", "shfit"]}, "'shfit'; nearest: shift; known: shift, flip"),
        ({"validation": 0.0}, "above 0 and below 1; got 0.0"),
        ({"validation": 1.0}, "above 0 and below 1; got 1.0"),
        ({"train_fraction": 0.0}, "at most 1; got 0.0"),
        ({"balance": 1.5}, "balance is in .0, 1.; got 1.5"),
        ({"mixup": -0.1}, "mixup is an alpha, at least 0; got -0.1"),
        ({"cutmix": -1.0}, "cutmix is an alpha"),
        ({"max_pixels": 0}, "max_pixels is at least 1, or null; got 0"),
        ({"mixup": float("nan")}, "mixup is an alpha, at least 0; got nan"),
        ({"workers": -1}, "workers is at least 0, or null; got -1"),
        ({"mean": [0.5]}, "both mean and std, or neither"),
        ({"mean": [0.5], "std": [0.0]}, "std must be above 0"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "3 values of mean for 1 channels"),
        ({"size": 0}, "size is the side"),
        ({"channels": 0}, "channels is 1 .*, 3 .* or what files have, at most 64; got 0"),
        ({"channels": 65}, "at most 64; got 65"),
        ({"channels": 4, "augmentation": ["flip", "color_jitter"]}, "of grey or colour, .* 4 chan"),
        ({"range": [1.0]}, "range is a low and a high value, or null; got .1.0"),
        ({"range": [5.0, 5.0]}, "range is a low and a higher value; got .5.0, 5.0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Data(**options)


def test_every_data_set_has_its_facts_and_its_reader():
    assert DATA_SETS.keys() == SOURCES.keys()


def test_help_names_every_augmentation():
    for name in AUGMENTATIONS:
        assert name in Data.__doc__


def joined(*roots, **options):
    names = "+".join(["folder"] * len(roots))
    path = os.pathsep.join(map(str, roots))
    return Data(**{"name": names, "path": path, "size": 8, "channels": 3, **options})


def test_joined_sets_keep_every_sample_and_every_class(tmp_path):
    first = write_folder(tmp_path / "a", classes=["ant", "bee"], count=10)
    second = write_folder(tmp_path / "b", classes=["bee", "cat", "dog"], count=20, seed=1)
    for root, classes in ((first, ["ant", "bee"]), (second, ["bee", "cat", "dog"])):
        write_folder(root, "test", classes, count=4)
    data = load_data(joined(first, second))
    assert data.classes == ["ant", "folder 1 bee", "folder 2 bee", "cat", "dog"]
    assert data.train.targets.bincount().tolist() == [9, 9, 18, 18, 18]
    assert data.validation.targets.bincount().tolist() == [1, 1, 2, 2, 2]
    assert data.test.targets.bincount().tolist() == [4] * 5
    alone = load_data(folder(second))
    own = [data.test[i]["image"] for i in range(8, 20)]
    assert torch.equal(torch.stack(own), torch.stack([alone.test[i]["image"] for i in range(12)]))


def test_joined_sets_of_different_shape(tmp_path):
    """Grey 8 x 8 digits without a folder beside colour pictures: both become size x size RGB."""
    pictures = write_folder(tmp_path / "a", size=(20, 12), count=10)
    for split in ("validation", "test"):
        write_folder(pictures, split, count=2)
    data = load_data(joined(pictures, "", name="folder+digits", size=12))
    assert data.classes == [*sorted(CLASSES), *map(str, range(10))]
    assert (
        data.train[0]["image"].shape
        == data.train[len(data.train) - 1]["image"].shape
        == (3, 12, 12)
    )
    assert len(data.train) == 30 + 1137


def test_joined_sets_need_a_folder_each(tmp_path):
    root = write_folder(tmp_path / "a")
    with pytest.raises(ValueError, match="joins 2 data sets, but there are 1 folders"):
        load_data(joined(root, name="folder+cifar10"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        load_data(joined(root, tmp_path / "none"))


def test_joined_sets_must_have_the_same_splits(tmp_path):
    first, second = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    write_folder(first, "test", count=2)
    with pytest.raises(ValueError, match=r"folder without a test split, the others with one"):
        load_data(joined(first, second))


def test_an_unknown_joined_set_is_named():
    with pytest.raises(ValueError, match="unknown data set 'cifar1'; nearest: cifar10"):
        Data(name="fashion_mnist+cifar1")
