"""Parsers of data under damage: a result, or one line that names the file. `make fuzz` for longer."""

import gzip
import io
import struct
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.data.published import read_idx
from vision.data.shard_index import read_shards, shard_samples
from vision.data.shards import read_class_names

fuzz = pytest.mark.fuzz


@st.composite
def damaged(draw, whole):
    """A file cut, with bytes or runs of bytes changed, with something behind it; or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content) - 1))
        run = draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
        content[place : place + len(run)] = run
    length = draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    return bytes(content[:length]) + draw(st.binary(max_size=20))


def one_line(error, name):
    message = str(error)
    assert name in message
    assert "\n" not in message
    assert message.isprintable()


@pytest.fixture
def folder():
    """Not tmp_path: hypothesis runs many examples in one test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + bytes(24)
NAMES = "cat\nBär\n日本\n".encode()


@fuzz
@given(content=damaged(IDX), compress=st.booleans())
def test_idx(content, compress):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("a-idx3-ubyte" + ".gz" * compress)
        file.write_bytes(gzip.compress(content) if compress else content)
        try:
            values = read_idx(file, 3)
        except ValueError as error:
            one_line(error, file.name)
        else:
            assert values.numel() == len(content) - 16


@fuzz
@given(content=damaged(gzip.compress(IDX, mtime=0)))
def test_idx_gz(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a-idx3-ubyte.gz"
        file.write_bytes(content)
        try:
            read_idx(file, 3)
        except ValueError as error:
            one_line(error, file.name)


@pytest.mark.parametrize(
    "shape", [(2**31, 28, 28), (2**32 - 1,) * 3, (2**31 - 1, 1, 2), (0, 28, 28)]
)
@pytest.mark.parametrize("compress", [True, False])
def test_idx_headers_that_claim_much(folder, shape, compress):
    content = struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(10)
    file = folder / ("a" + ".gz" * compress)
    file.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(
        ValueError, match=r"above the limit of 2147483648|values, its header says"
    ) as e:
        read_idx(file, 3)
    one_line(e.value, "a")


@pytest.mark.slow
def test_idx_bombs_are_unpacked_no_further_than_their_header_says(folder):
    file = folder / "a.gz"
    file.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 10) + bytes(2 * 10**8)))
    with pytest.raises(ValueError, match="more than 10 values, its header says 10"):
        read_idx(file, 1)


def shard_of(samples):
    """A tar as TarWriter makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in samples.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()[: 512 * (2 * len(samples) + 2)]


SHARD = shard_of({"a/1.png": b"one", "a/1.cls": b"0", "a/2.png": b"two", "a/2.cls": b"1"})


@fuzz
@given(content=damaged(SHARD))
def test_shards(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train-0.tar"
        file.write_bytes(content)
        try:
            samples = list(shard_samples(str(file)))
        except ValueError as error:
            one_line(error, file.name)
        else:
            for sample in samples:
                assert 0 <= sample.offset <= len(content) - sample.size


@fuzz
@given(content=damaged(SHARD[:1024]), size=st.integers(-(2**66), 2**66))
@example(content=b"", size=2**63 - 511)
def test_shards_of_any_size_in_a_header(content, size):
    """Numbers in base 256, among them negative ones, with a right check sum."""
    header = bytearray(SHARD[:512])
    header[124:136] = tarfile.itn(min(max(size, -(256**11)), 256**11 - 1), 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train-0.tar"
        file.write_bytes(bytes(header) + content)
        try:
            list(shard_samples(str(file)))
        except ValueError as error:
            one_line(error, file.name)


@pytest.fixture(scope="module")
def indexed():
    """A shard and the index kept beside it."""
    with tempfile.TemporaryDirectory() as name:
        shard = Path(name) / "train-0.tar"
        shard.write_bytes(SHARD)
        whole = read_shards([str(shard)], "train")
        yield shard, (shard.parent / "coe-index-train.npz").read_bytes(), whole


@fuzz
@given(choice=st.data())
def test_index_npz(indexed, choice):
    """Whatever lies there: the samples are those of the shard."""
    shard, content, whole = indexed
    (shard.parent / "coe-index-train.npz").write_bytes(choice.draw(damaged(content)))
    members, labels = read_shards([str(shard)], "train")
    assert labels.tolist() == whole.labels.tolist()
    assert [member.read_bytes() for member in members] == [b"one", b"two"]


@fuzz
@given(content=st.one_of(damaged(NAMES), st.text(max_size=30).map(str.encode)))
def test_class_names(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "classes.txt"
        file.write_bytes(content)
        try:
            names = read_class_names(file)
        except ValueError as error:
            one_line(error, file.name)
        else:
            assert all(name.isprintable() and name for name in names)


def pictures():
    """One of every kind that Pillow writes here."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for kind in ("jpeg", "png", "webp", "bmp", "gif", "tiff", "ppm", "ico"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **({"sizes": [(7, 7)]} if kind == "ico" else {}))
        yield buffer.getvalue()


@fuzz
@given(content=st.sampled_from(list(pictures())).flatmap(damaged))
def test_images(content):
    preprocess = Preprocess(4, 3, (0.0,) * 3, (1.0,) * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd tags
        try:
            image = preprocess.load(io.BytesIO(content), max_pixels=10**6)
        except UnreadableImageError:
            return
    assert image.shape == (3, 4, 4)
