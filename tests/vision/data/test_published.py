"""Published data sets, read as they are published."""

import gzip
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from tests.vision.data.noise_folders import write_folder
from vision.data import published
from vision.data.load import load_data
from vision.data.section import Data


def write_idx(file, values, compress):
    values = np.asarray(values, dtype=np.uint8)
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    content = header + values.tobytes()
    file.with_name(file.name + ".gz" * compress).write_bytes(
        gzip.compress(content) if compress else content
    )


def write_fashion(path, compress=False, labels=None):
    path.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(path / f"{prefix}-images-idx3-ubyte", pixels, compress)
        targets = np.arange(40) % 10 if labels is None else labels
        write_idx(path / f"{prefix}-labels-idx1-ubyte", targets, compress)
    return pixels


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path, compress, below):
    pixels = write_fashion(tmp_path / below, compress)
    data = load_data(Data(name="fashion_mnist", path=str(tmp_path), size=28, validation=0.25))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 10, 40]
    assert data.validation.targets.bincount().tolist() == [1] * 10
    assert torch.equal(data.test._images[:, 0], torch.from_numpy(pixels))
    assert data.classes[9] == "Ankle boot"
    assert data.train.paths is None


def test_fashion_mnist_refusals(tmp_path):
    data = Data(name="fashion_mnist", path=str(tmp_path), size=28)
    with pytest.raises(FileNotFoundError, match=r"neither train-images-idx3-ubyte nor .*\.gz in"):
        load_data(data)
    labels = np.arange(40) % 10
    labels[7] = 10
    write_fashion(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=r"1 of 40 labels out of range 0 to 9; .* 7 with label 10"):
        load_data(data)
    write_fashion(tmp_path, labels=np.zeros(39))
    with pytest.raises(ValueError, match=r"train-labels.*39 labels for 40 images"):
        load_data(data)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match="38 values, its header says 39"):
        load_data(data)
    labels.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not an idx file of bytes with 1 axes"):
        load_data(data)
    labels.unlink()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 1]) + b"x" * 99)[:20]
    )
    with pytest.raises(ValueError, match="damaged gzip file"):
        load_data(data)


def write_cifar(path, monkeypatch, name, files, meta, meta_key, key, classes):
    """Files of the published layout, whose MD5 sums are those expected."""
    path.mkdir()
    sums = {}
    generator = np.random.default_rng(0)
    for file in files:
        content = pickle.dumps(
            {
                "data": generator.integers(0, 256, (20, 3072), dtype=np.uint8),
                key: (np.arange(20) % len(classes)).tolist(),
            }
        )
        (path / file).write_bytes(content)
        sums[file] = hashlib.md5(content).hexdigest()
    content = pickle.dumps({meta_key: classes})
    (path / meta).write_bytes(content)
    names = {meta: hashlib.md5(content).hexdigest()}
    *train, test = sums.items()
    own = published.CifarFiles(path.name, dict(train), dict([test]), names, meta_key, key)
    monkeypatch.setattr(published, name, own)


def test_cifar10_and_cifar100_as_published(tmp_path, monkeypatch):
    ten = [f"c{i}" for i in range(10)]
    write_cifar(
        *(tmp_path / "cifar-10-batches-py", monkeypatch, "CIFAR10", ["b1", "b2", "t"]),
        *("batches.meta", "label_names", "labels", ten),
    )
    write_cifar(
        *(tmp_path / "cifar-100-python", monkeypatch, "CIFAR100", ["train", "test"]),
        *("meta", "fine_label_names", "fine_labels", ten),
    )
    for name, count in (("cifar10", 40), ("cifar100", 20)):
        data = load_data(Data(name=name, path=str(tmp_path), size=32, channels=3))
        assert len(data.train) + len(data.validation) == count
        assert len(data.test) == 20
        assert data.classes == ten
        both = torch.cat([data.train._images, data.validation._images])
        raw = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
        assert any(np.array_equal(raw[0], i.flatten().numpy()) for i in both)
    for content, reason in ((b"", "b2 is not the published file"), (None, "b2: No such file")):
        file = tmp_path / "cifar-10-batches-py" / "b2"
        file.write_bytes(content) if content is not None else file.unlink()
        with pytest.raises(FileNotFoundError, match=rf"no complete cifar-10-b.* in it \({reason}"):
            load_data(Data(name="cifar10", path=str(tmp_path), size=32, channels=3))


def test_cifars_pickles_hold_arrays_alone(tmp_path, monkeypatch):
    """Even with the right sum nothing is called that a pickle names."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    write_cifar(
        *(tmp_path / "cifar-10-batches-py", monkeypatch, "CIFAR10", ["b1", "t"]),
        *("batches.meta", "label_names", "labels", [Evil(), "b"]),
    )
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir is not allowed"):
        load_data(Data(name="cifar10", path=str(tmp_path), size=32, channels=3))
    assert not (tmp_path / "made").exists()


def test_cifar10_as_a_folder_is_not_cropped(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, "test", count=2)
    data = load_data(Data(name="cifar10", path=str(tmp_path), size=8, channels=3))
    assert data.preprocess.resize == "exact"
    assert len(data.test) == 6


def test_imagenet_holds_validation_out_of_train_and_tests_on_val(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, "val", count=2, seed=1)
    data = load_data(Data(name="imagenet", path=str(tmp_path), size=8, channels=3))
    assert data.preprocess.resize == "crop"
    assert [len(s) for s in (data.train, data.validation, data.test)] == [27, 3, 6]
    assert "train" in data.validation.paths[0]
    assert "val" in data.test.paths[0]
