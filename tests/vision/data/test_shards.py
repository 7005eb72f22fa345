"""WebDataset shards, as the library itself writes them: the same data as in class folders."""

import gzip
import io
import itertools
import json
import os
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import TarWriter

from vision.data.load import load_data
from vision.data.loaders import train_loader
from vision.data.section import Data
from vision.data.shard_index import read_shards
from vision.data.shards import Member, find_shards

SIDE, CLASSES = 12, 3


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_shards(root, split="train", shards=3, each=8, first=0):
    """Samples numbered on over the shards; the number tells picture and class."""
    root.mkdir(exist_ok=True)
    numbers = itertools.count(first)
    for shard in range(shards):
        with TarWriter(str(root / f"in-{split}-{shard:04}.tar")) as tar:
            for number in itertools.islice(numbers, each):
                key = f"n{number % CLASSES}/{number:05}"
                sample = {"__key__": key, "png": picture(number), "cls": number % CLASSES}
                tar.write({**sample, "json": {"number": number}})
    return root


def data(path, **options):
    settings = {"name": "webdataset", "size": 8, "channels": 3, "validation": 0.25}
    return Data(**{**settings, "path": str(path), "mean": [0.5] * 3, "std": [0.2] * 3, **options})


def quietly(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_data(settings)


@pytest.mark.parametrize("pattern", ["", "in-train-{0000..0002}.tar"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_samples_are_those_that_were_written(tmp_path, pattern, in_memory):
    loaded = quietly(data(write_shards(tmp_path / "in") / pattern, in_memory=in_memory))
    assert loaded.classes == ["0", "1", "2"]
    assert (len(loaded.train), len(loaded.validation)) == (18, 6)
    seen = set()
    for images in (loaded.train, loaded.validation):
        for position, target in enumerate(images.targets.tolist()):
            content = images.paths[position].read_bytes()
            number = next(n for n in range(24) if picture(n) == content)
            assert number % CLASSES == target
            assert images.paths[position].name == f"n{target}/{number:05}.png"
            expected = loaded.preprocess.load(io.BytesIO(content))
            assert torch.equal(images[position]["image"], expected)
            seen.add(number)
    assert seen == set(range(24))


@pytest.mark.process
def test_ranks_and_workers_share_every_batch_without_duplicates(tmp_path):
    settings = data(write_shards(tmp_path / "in"), in_memory=False, augmentation=["flip"])
    images = quietly(settings).train
    whole = list(train_loader(settings, images, 6, seed=1))
    ranks = [
        list(
            train_loader(data(settings.path, augmentation=["flip"], workers=w), images, 6, 1, r, 2)
        )
        for r, w in ((0, 0), (1, 2))
    ]
    for step, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part["index"] for part in parts]), step["index"])
        assert torch.equal(torch.cat([part["image"] for part in parts]), step["image"])
    assert torch.cat([batch["index"] for batch in whole]).unique().numel() == 18


def test_resume_inside_an_epoch(tmp_path):
    settings = data(write_shards(tmp_path / "in"), in_memory=False, workers=0)
    images = quietly(settings).train
    whole, first = (train_loader(settings, images, 4, seed=1) for _ in range(2))
    expected = list(whole)
    next(iter(first))
    again = train_loader(settings, images, 4, seed=1)
    again.load_state_dict(first.state_dict())
    rest = list(again)
    assert [b["index"].tolist() for b in rest] == [b["index"].tolist() for b in expected[1:]]


def test_splits_and_names_of_imagenet(tmp_path):
    root = write_shards(tmp_path / "in")
    write_shards(root, "validation", shards=1, first=100)
    (root / "classes.txt").write_text("tench\nBär\nc d\n", encoding="utf-8")
    pattern = root / "in-{train-{0000..0002},validation-0000}.tar"
    loaded = load_data(data(pattern, name="imagenet"))  # val is its test split
    assert loaded.classes == ["tench", "Bär", "c d"]
    assert [len(s) for s in (loaded.train, loaded.validation, loaded.test)] == [18, 6, 8]
    own = quietly(data(root))
    assert own.provenance["held_out"] == "the data set's own split"
    assert len(own.validation) == 8


def test_the_index_is_kept_and_made_anew_for_other_shards(tmp_path, monkeypatch):
    root = write_shards(tmp_path / "in")
    _, shards = find_shards(str(root))
    members, labels = read_shards(shards["train"], "train")
    assert (root / "coe-index-train.npz").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)  # not read again
        again, same = read_shards(shards["train"], "train")
    assert torch.equal(labels, same)
    assert [m.read_bytes() for m in again] == [m.read_bytes() for m in members]
    write_shards(root, each=4)
    assert len(read_shards(shards["train"], "train")[0]) == 12
    (root / "coe-index-train.npz").write_bytes(b"damaged")
    assert len(read_shards(shards["train"], "train")[0]) == 12


def test_missing_shards_are_named(tmp_path):
    root = write_shards(tmp_path / "in", shards=4)
    (root / "in-train-0001.tar").unlink()
    for path, missing, total in (
        (root, r"in-train-0001\.tar;", 4),
        (root / "in-train-{0000..0005}.tar", r"in-train-0001.tar, in-train-0004.tar, in", 6),
    ):
        with pytest.raises(FileNotFoundError, match=rf"of {total} shards are missing: {missing}"):
            load_data(data(path))
    with pytest.raises(FileNotFoundError, match="no train shards"):
        load_data(data(tmp_path))
    (root / "in-train-0001.tar").write_bytes(b"")
    (root / "other.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other\.tar: the name of a shard must hold its split"):
        load_data(data(root))


def ends(shard):
    """Where each file in a tar ends, in blocks of 512 bytes."""
    with tarfile.open(shard) as tar:
        return [(entry.offset_data + entry.size + 511) // 512 * 512 for entry in tar]


def test_a_shard_cut_between_two_samples_is_refused(tmp_path):
    root = write_shards(tmp_path / "in")
    shard = root / "in-train-0001.tar"
    whole, places = shard.read_bytes(), ends(shard)
    for place in (places[2], places[5], places[-1]):  # three files a sample
        shard.write_bytes(whole[:place])
        message = rf"in-train-0001\.tar: cut at byte {place}, without the mark at the end of a tar"
        with pytest.raises(ValueError, match=message):
            load_data(data(root))
    shard.write_bytes(whole[: places[-1] + 512])  # one block of the mark tells all
    assert len(quietly(data(root)).train) == 18


def test_what_stands_behind_the_end_of_a_shard_is_not_lost_silently(tmp_path):
    root = write_shards(tmp_path / "in")
    shard, other = root / "in-train-0001.tar", root / "in-train-0000.tar"
    whole, places = shard.read_bytes(), ends(shard)
    broken = bytearray(whole)
    broken[places[2] : places[2] + 512] = b"x" * 512
    for content in (whole + other.read_bytes(), bytes(broken)):
        shard.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"0001\.tar: damaged at byte .*or several archives in one"
        ):
            load_data(data(root))


def test_compressed_shards_say_what_to_do(tmp_path):
    root = write_shards(tmp_path / "in", shards=1)
    shard = root / "in-train-0000.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(
        ValueError, match=r"0000\.tar: a compressed shard; unpack it to a plain \.tar"
    ):
        load_data(data(root))
    shard.rename(root / "in-train-0000.tar.gz")
    with pytest.raises(
        ValueError, match=r"1 compressed shards \(in-train-0000\.tar\.gz, \.\.\.\); unpack"
    ):
        load_data(data(root))
    with pytest.raises(ValueError, match=r"0000\.tar\.gz is compressed; unpack"):
        load_data(data(root / "in-train-0000.tar.gz"))


def test_a_shard_that_is_no_file_is_not_waited_for(tmp_path):
    root = write_shards(tmp_path / "in", shards=1)
    os.mkfifo(root / "in-train-0001.tar")
    with pytest.raises(ValueError, match=r"in-train-0001\.tar is a FIFO, not a regular file"):
        load_data(data(root))


def test_a_pattern_of_too_many_shards_is_refused(tmp_path):
    for numbers in ("{0..99999999}", "{0..999}-{0..999}"):
        with pytest.raises(ValueError, match="stands for more than 100000 shards"):
            load_data(data(tmp_path / f"in-train-{numbers}.tar"))


def changed(index, **values):
    with np.load(index) as content:
        np.savez(index, **{**content, **values})


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["cut", "flip", "field", "far", "shard", "label", "text", "bomb"]
)
def test_a_damaged_index_is_made_anew(tmp_path, damage):
    root = write_shards(tmp_path / "in")
    _, shards = find_shards(str(root))
    whole = read_shards(shards["train"], "train")
    index = root / "coe-index-train.npz"
    content = bytearray(index.read_bytes())
    content[len(content) // 3] ^= 255
    with np.load(index) as fields:
        count = len(fields["label"])
    {
        "cut": lambda: index.write_bytes(content[:1000]),
        "flip": lambda: index.write_bytes(content),
        "field": lambda: changed(index, offset=np.zeros(3, np.int64)),
        "far": lambda: changed(index, offset=np.full(count, 2**62)),
        "shard": lambda: changed(index, shard=np.full(count, 7)),
        "label": lambda: changed(index, label=np.full(count, -1)),
        "text": lambda: changed(index, label=np.array(["nan"] * count)),
        "bomb": lambda: np.savez_compressed(index, names=np.zeros(10**7)),
    }[damage]()
    members, labels = read_shards(shards["train"], "train")
    assert torch.equal(labels, whole.labels)
    assert [m.read_bytes() for m in members] == [m.read_bytes() for m in whole.members]
    with np.load(index) as fields:
        assert fields["label"].tolist() == labels.tolist()


def test_an_index_of_pickled_objects_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    root = write_shards(tmp_path / "in")
    _, shards = find_shards(str(root))
    read_shards(shards["train"], "train")
    changed(root / "coe-index-train.npz", label=np.array([Evil()], dtype=object))
    assert len(read_shards(shards["train"], "train").labels) == 24
    assert not (tmp_path / "made").exists()


def test_labels_as_people_write_them(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    with TarWriter(str(root / "train-0.tar"), encoder=False) as tar:
        for number, (ending, text) in enumerate(
            [("cls", b"0"), ("CLS", b"1\n"), ("Cls", b" 0 \r\n"), ("cls", "\ufeff1".encode())] * 2
        ):
            tar.write({"__key__": f"s{number}", "png": picture(number), ending: text})
    (root / "classes.txt").write_bytes("\ufeffcat\r\n\r\ndog\r\n".encode())
    loaded = quietly(data(root))
    assert loaded.classes == ["cat", "dog"]
    assert len(loaded.train) + len(loaded.validation) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1e10", r"its \.cls holds '1e10', not the number of a class"),
        (b"10000000000", r"its \.cls holds 10000000000; classes are counted from 0, to 999999"),
        (b"9" * 60, r"its \.cls holds 9+; classes are counted from 0"),
        (b"-1", r"holds '-1', not the number"),
        (b"nan", r"holds 'nan', not the number"),
        ("²".encode(), r"holds '²', not the number"),
        (b"", r"holds '', not the number"),
        (b"0" * 65, r"cls has 65 bytes; a \.cls file holds the number of a class"),
    ],
)
def test_labels_that_are_none(tmp_path, text, message):
    root = write_shards(tmp_path / "in")
    with TarWriter(str(root / "in-train-0003.tar"), encoder=False) as tar:
        tar.write({"__key__": "a/b", "png": picture(0), "cls": text})
    with pytest.raises(ValueError, match=message):
        load_data(data(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\ndog\ncow".encode("utf-16"), r"classes\.txt: not UTF-8 at byte 0"),
        (b"cat\ndog", "2 names for 3 classes"),
        (b"cat\nd\rg\ncow", r"1 names that cannot be printed: 'd\\rg'"),
        (b"caf\xe9\nb\nc", "not UTF-8 at byte 3"),
    ],
)
def test_lists_of_classes_that_are_none(tmp_path, content, message):
    root = write_shards(tmp_path / "in")
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_data(data(root))


def test_damaged_shards_are_named(tmp_path):
    root = write_shards(tmp_path / "in")
    shard = root / "in-train-0002.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"in-train-0002\.tar: damaged shard .*fetch it again"):
        load_data(data(root))
    shard.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"in-train-0002\.tar: damaged shard"):
        load_data(data(root))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"png": picture(0)}, r"sample a/b has no \.cls file"),
        ({"cls": 0}, r"sample a/b has no image \(\.jfif"),
        ({"png": picture(0), "cls": "cat"}, r"sample a/b: its \.cls holds 'cat', not the number"),
        (
            {"png": picture(0), "cls": 9},
            r"no training samples of 6 of 10 classes: 3, 4, 5, 6, 7, 8;",
        ),
    ],
)
def test_samples_that_are_none(tmp_path, sample, message):
    root = write_shards(tmp_path / "in")
    with TarWriter(str(root / "in-train-0003.tar"), encoder=False) as tar:
        encoded = {k: v if isinstance(v, bytes) else str(v).encode() for k, v in sample.items()}
        tar.write({"__key__": "a/b", **encoded})
    with pytest.raises(ValueError, match=message):
        load_data(data(root))


def test_an_unreadable_picture_is_named_by_shard_and_sample(tmp_path):
    root = write_shards(tmp_path / "in", each=60)
    with TarWriter(str(root / "in-train-0003.tar"), encoder=False) as tar:
        tar.write({"__key__": "bad", "png": picture(0)[:60], "cls": b"0"})
    with pytest.warns(UserWarning, match=r"in-train-0003\.tar/bad\.png"):
        loaded = load_data(data(root))
    assert sum(loaded.provenance["left_out"].values()) == 1


def test_a_shard_that_went_away_is_an_unreadable_image(tmp_path):
    gone = Member(str(tmp_path / "gone.tar"), 512, 10)
    with pytest.raises(
        Exception, match=r"cannot read the image .*gone\.tar, byte 512: no such file"
    ):
        data(tmp_path).preprocess().load(gone)


@pytest.mark.process
def test_the_run_reads_shards_through_the_command(cli, tmp_path, capsys):
    root = write_shards(tmp_path / "in", each=24)
    write_shards(root, "val", shards=1, first=200)
    write_shards(root, "test", shards=1, first=300)
    odd = ["[red]", "$a_{", "-x, 'é' 50%"]  # nothing on the way takes them for its own
    (root / "classes.txt").write_text("\n".join(odd), encoding="utf-8")
    pattern = root / "in-{train-{0000..0002},val-0000,test-0000}.tar"
    recipe = ["clothing", "data.name=webdataset", f"data.path={pattern}", "data.size=16"]
    recipe += ["train.epochs=1", "train.batch_size=24", "num_experts=2", "controls={}"]
    assert cli("train", *recipe, "--out", tmp_path / "run") == 0
    assert cli("evaluate", tmp_path / "run", "--no-time") == 0
    examples = sorted((tmp_path / "run/evaluation/examples").iterdir())
    assert len(examples) == 8
    assert examples[0].suffix == ".png"
    out = tmp_path / "out.jsonl"
    assert cli("predict", tmp_path / "run", examples[0].parent, "--out", out) == 0
    assert {json.loads(line)["label"] for line in out.read_text().splitlines()} <= set(odd)
    assert cli("predict", tmp_path / "run", examples[0]) == 0
    printed = capsys.readouterr().out
    assert any(name in printed for name in odd)
