"""Decoded images kept for the next command: the same pixels, whole or not at all, bounded, shared."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coe_core.support.locks import locked
from vision.data import cache as cache_module
from vision.data.cache import cache_key, pixel_cache
from vision.data.decode import stored_form
from vision.data.load import load_data
from vision.data.loaders import train_loader
from vision.data.section import Data


@pytest.fixture
def folder(tmp_path):
    """20 training pictures of two classes, no two alike, of several shapes; 6 test pictures."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for name in ("a", "b"):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "in" / split / name / f"{i}.png")
    return tmp_path / "in"


@pytest.fixture
def data(folder, tmp_path):
    return Data(name="folder", path=str(folder), channels=3, cache=str(tmp_path / "kept"))


def pixels(images):
    return [images[i]["image"] for i in range(len(images))]


def same(first, second):
    assert first.preprocess == second.preprocess
    for name in ("train", "validation", "test"):
        own, other = getattr(first, name), getattr(second, name)
        assert own.targets.tolist() == other.targets.tolist()
        assert own.paths == other.paths
        assert all(map(torch.equal, pixels(own), pixels(other)))


def entries(data):
    return sorted(p for p in Path(data.cache).iterdir() if not p.name.startswith("."))


@pytest.mark.process
@pytest.mark.parametrize("resize", ["exact", "crop"])
@pytest.mark.parametrize("augmentation", [[], ["flip", "shift"], ["random_resized_crop", "flip"]])
def test_the_same_pixels_and_views_decoded_kept_and_reused(data, resize, augmentation, capsys):
    data = replace(data, resize=resize, augmentation=augmentation)
    off = load_data(replace(data, cache="off"))
    assert capsys.readouterr().err == ""
    written, again = load_data(data), load_data(data)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"decoded images kept in {data.cache}: train 18, validation 2, test 6 (" in lines[0]
    assert f"decoded images reused from {data.cache}: train 18, validation 2, test 6" in lines[1]
    assert "off: data.cache=off" in lines[1]
    same(off, written)
    same(off, again)
    batches = [
        [batch["image"] for batch in train_loader(data, loaded.train, 6, seed=1)]
        for loaded in (off, written, again)
    ]
    for own in batches[1:]:
        assert all(map(torch.equal, batches[0], own))
        assert [b.stride() for b in own] == [b.stride() for b in batches[0]]


def test_another_command_reads_what_it_needs_of_it(data, capsys):
    load_data(data)
    capsys.readouterr()
    load_data(replace(data, mean=[0.5] * 3, std=[0.5] * 3), decode=("validation", "test"))
    assert "reused from" in capsys.readouterr().err
    assert len(entries(data)) == 3


def test_nothing_that_is_read_is_written_back(data):
    first = load_data(data).train
    first._images.zero_()
    assert load_data(data).train[0]["image"].any()


def test_a_changed_file_and_other_settings_are_decoded_anew(data, folder, tmp_path):
    first = load_data(data)
    assert len(entries(data)) == 3
    path = Path(first.test.paths[0])
    Image.new("RGB", (9, 9), (255, 0, 0)).save(path)
    assert load_data(data).test[0]["image"][0].float().mean() == 255
    assert len(entries(data)) == 4  # the test split
    load_data(replace(data, size=10))
    assert len(entries(data)) == 7
    paths, form = first.train.paths, stored_form(data.preprocess(), None)
    keys = {
        cache_key(paths, form),
        cache_key(paths[1:], form),
        cache_key(paths, form._replace(max_pixels=10**6)),
        cache_key(paths, form._replace(kind="whole")),
        cache_key(paths, form._replace(preprocess=replace(form.preprocess, resize="exact"))),
    }
    assert len(keys) == 5
    other = replace(form.preprocess, mean=(0.5,) * 3)  # of no matter to the bytes
    assert cache_key(paths, form._replace(preprocess=other)) in keys


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "cut", "index", "json", "gone", "version"])
def test_damaged_entries_are_found_and_decoded_anew(data, damage, capsys):
    whole = load_data(replace(data, cache="off"))
    load_data(data)
    for entry in entries(data):
        name = {"index": "index.npz", "json": "entry.json", "version": "entry.json"}.get(damage)
        file = entry / (name or "pixels.npy")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "cut":
            content = content[:-1]
        if damage == "json":
            content = b'{"format": 1}'
        if damage == "version":
            content = file.read_bytes().replace(b'"format": 1', b'"format": 0')
        file.write_bytes(content)
        if damage == "gone":
            file.unlink()
    capsys.readouterr()
    same(whole, load_data(data))
    assert capsys.readouterr().err.count("were damaged") == 3
    load_data(data)
    assert "were damaged" not in capsys.readouterr().err


def test_unreadable_files_are_told_every_time(data, folder):
    for i in range(300):
        shape = (8, 8, 3)
        picture = Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8))
        picture.save(folder / "train" / "a" / f"more{i}.png")
    (folder / "train" / "a" / "more7.png").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"left out 1 of \d+ images that cannot be read"):
            loaded = load_data(data)
    assert sum(loaded.provenance["left_out"].values()) == 1
    for i in range(20):
        (folder / "train" / "a" / f"more{i}.png").write_bytes(b"damaged")
    before = entries(data)
    with pytest.raises(
        ValueError, match=r"train: \d+ of \d+ images .* cannot be read, not under 1%"
    ):
        load_data(data)
    assert entries(data) == before  # no half entry


def test_entries_unused_for_longest_make_room(data, monkeypatch):
    load_data(data)
    size = sum(cache_module._size(entry) for entry in entries(data))
    oldest = entries(data)
    for number, entry in enumerate(oldest):
        os.utime(entry / "entry.json", (1000 + number, 1000 + number))
    monkeypatch.setenv("COE_CACHE_BYTES", str(int(2.8 * size)))
    load_data(replace(data, size=9))
    assert set(oldest) < set(entries(data))
    load_data(data)  # used again: now the others are the oldest
    load_data(replace(data, size=10))
    assert set(oldest) <= set(entries(data))
    assert sum(cache_module._size(entry) for entry in entries(data)) <= 2.8 * size


def test_what_is_larger_than_the_bound_is_not_kept(data, monkeypatch):
    monkeypatch.setenv("COE_CACHE_BYTES", "1000")
    assert load_data(data).train.cached  # in memory
    assert not Path(data.cache).exists()
    monkeypatch.setattr("vision.data.load.MEMORY_BYTES", 1000)
    assert not load_data(data).train.cached
    monkeypatch.delenv("COE_CACHE_BYTES")
    assert load_data(data).train.cached  # too much for the memory, not for the disk


def test_half_entries_left_behind_are_removed(data, monkeypatch):
    load_data(data)
    half, new = (Path(data.cache) / name for name in (".old.part", ".new.part"))
    for part in (half, new):
        part.mkdir()
    os.utime(half, (1000, 1000))
    load_data(replace(data, size=9))
    assert not half.exists()
    assert new.exists()  # somebody may be writing it


def test_a_disk_that_cannot_be_written_is_told_and_does_not_matter(data, monkeypatch, tmp_path):
    with pytest.warns(UserWarning, match=r"decoded images cannot be kept in .*: .*data\.cache=off"):
        loaded = load_data(replace(data, cache="/dev/null/kept"))
    assert len(loaded.train) == 18
    usage = cache_module.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with pytest.warns(UserWarning, match="0 MB are needed, 0 MB are free"):
        load_data(data)
    assert entries(data) == []


def test_a_disk_that_fills_up_leaves_no_half_entry(data, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.np, "savez", full)
    with pytest.warns(UserWarning, match="cannot be kept in .*: No space left on device"):
        loaded = load_data(data)
    same(load_data(replace(data, cache="off")), loaded)
    assert [p for p in Path(data.cache).iterdir() if not p.name.endswith(".lock")] == []


def test_one_of_several_processes_speaks(data, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    load_data(data)
    assert capsys.readouterr().err == ""


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("COE_CACHE", "off")
    assert pixel_cache("auto") is None
    assert pixel_cache(str(tmp_path)).folder == tmp_path  # what the recipe says goes first
    monkeypatch.setenv("COE_CACHE", str(tmp_path / "here"))
    assert pixel_cache("auto").folder == tmp_path / "here"
    monkeypatch.delenv("COE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert pixel_cache("auto").folder == tmp_path / "xdg" / "coe-vision" / "decoded"
    assert pixel_cache("auto").max_bytes == 4 * 2**30
    monkeypatch.setenv("COE_CACHE_BYTES", "10 apples")
    with pytest.raises(ValueError, match="no size"):
        pixel_cache("auto")


@pytest.mark.parametrize(
    ("said", "cache", "in_memory"),
    [
        (None, "auto", None),
        ("auto", "auto", None),
        ("off", "off", None),
        (False, "off", None),  # what YAML makes of off
        (True, "auto", True),  # of earlier recipes
        ("~/kept", "~/kept", None),
    ],
)
def test_what_recipes_say(said, cache, in_memory):
    data = Data(cache=said)
    assert (data.cache, data.in_memory) == (cache, in_memory)
    assert replace(data, size=9).cache == cache


def test_two_threads_decode_once(data, monkeypatch, capsys):
    """While one holds the lock of an entry the other waits, and then reuses it."""
    decoded = []
    each = cache_module.decode_each
    monkeypatch.setattr(
        cache_module,
        "decode_each",
        lambda *a: decoded.append(a[2]) or (time.sleep(0.3), each(*a))[1],
    )
    results = []
    with warnings.catch_warnings():
        threads = [threading.Thread(target=lambda: results.append(load_data(data))) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    same(*results)
    assert sorted(decoded) == ["test", "train", "validation"]
    assert "decoded images of train: waiting for" in capsys.readouterr().err


@pytest.mark.process
def test_a_killed_process_leaves_no_half_entry_and_no_lock(data, warm, capsys):
    script = (
        "import sys, time, os\n"
        "from vision.data import cache, load, section\n"
        "each = cache.decode_each\n"
        "def slow(*a):\n"
        "    for i, d in enumerate(each(*a)):\n"
        "        if i == 5: print(os.getpid(), flush=True); time.sleep(60)\n"
        "        yield d\n"
        "cache.decode_each = slow\n"
        "name, path, folder = sys.argv[1:]\n"
        "load.load_data(section.Data(name=name, path=path, channels=3, cache=folder))\n"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [warm("vision") / "python", "-c", script, "folder", data.path, data.cache],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    ) as process:
        number = int(process.stdout.readline())
        with pytest.raises(ValueError, match="is being written by"), locked_entry(data):
            pass
        os.kill(number, signal.SIGKILL)
    assert entries(data) == []
    same(load_data(replace(data, cache="off")), load_data(data))
    assert "kept in" in capsys.readouterr().err


def locked_entry(data):
    (lock,) = Path(data.cache).glob(".*.lock")
    return locked(Path(data.cache) / lock.name[1 : -len(".lock")])
