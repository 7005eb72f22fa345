"""Files of the same content in two splits are told, with their number and the first of them."""

import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from vision.data import copies
from vision.data.copies import SplitFiles, tell_copies
from vision.data.load import load_data
from vision.data.section import Data


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"in_memory": False}])
def test_copies_in_train_and_test_are_told(root, options, tmp_path):
    data = Data(name="folder", path=str(root), channels=3, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_data(data).provenance["copies"] == {}
    for i in range(3):
        shutil.copy(root / "train" / "a" / f"{i}.png", root / "test" / "b" / f"copy{i}.png")
    shutil.copy(root / "train" / "b" / "3.png", root / "validation" / "b" / "3.png")
    with pytest.warns(UserWarning, match="the same images in two splits") as warned:
        loaded = load_data(data)
    (line,) = {str(warning.message) for warning in warned}
    assert "1 of validation are in train as well" in line
    assert "3 of test are in train as well" in line
    assert line.count("test/b/copy") == 2  # the first of them
    assert "train/a/0.png" in line
    assert loaded.provenance["copies"] == {"train, validation": 1, "train, test": 3}
    with warnings.catch_warnings():  # of training alone
        warnings.simplefilter("error")
        load_data(data, decode=("validation", "test"))


def test_copies_are_told_when_the_decoded_images_are_reused(root, tmp_path):
    shutil.copy(root / "train" / "a" / "0.png", root / "test" / "b" / "copy.png")
    data = Data(name="folder", path=str(root), channels=3, cache=str(tmp_path / "kept"))
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of test are in train as well"):
            load_data(data)


@pytest.mark.filterwarnings("ignore:folder. no test split")
def test_copies_that_the_held_out_part_has(tmp_path):
    for name, colour in (("a", 0), ("b", 255)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (colour,) * 3).save(tmp_path / "train" / name / f"{i}.png")
    with pytest.warns(UserWarning, match="2 of validation are in train as well"):
        load_data(Data(name="folder", path=str(tmp_path), channels=3))


def test_only_files_of_equal_size_are_read_and_no_more_than_the_bound(tmp_path, monkeypatch):
    read = []
    digest = copies.content_key
    monkeypatch.setattr(copies, "content_key", lambda path: read.append(path) or digest(path))
    paths = {}
    for name, content in (("a", b"12"), ("b", b"12"), ("c", b"123"), ("d", b"1234")):
        paths[name] = str(tmp_path / name)
        (tmp_path / name).write_bytes(content)
    files = {
        "train": SplitFiles([paths["a"], paths["c"]], None),
        "test": SplitFiles([paths["d"], paths["b"]], None),
    }
    with pytest.warns(UserWarning, match=r"1 of test are in train as well \(.*b = .*a\)"):
        assert tell_copies(files) == {"train, test": 1}
    assert sorted(read) == [paths["a"], paths["b"]]
    monkeypatch.setattr(copies, "MAX_BYTES", 3)
    assert tell_copies(files) == {}
    monkeypatch.setattr(copies, "MAX_FILES", 3)
    read.clear()
    assert tell_copies(files) == {}
    assert read == []
