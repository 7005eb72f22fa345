"""What is predicted: files, folders, shards and Parquet tables, each image under a name of its own."""

import io
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vision.prediction.inputs import find_inputs


def image(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), grey).save(file, "png")
    return file.getvalue()


@pytest.fixture
def places(tmp_path):
    """A folder of two images, a shard of two (one with a class beside it), two tables."""
    (tmp_path / "img").mkdir()
    for number in range(2):
        (tmp_path / "img" / f"{number}.png").write_bytes(image(number))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name, content in [("a/2.png", image(2)), ("a/2.cls", b"7"), ("b/3.png", image(3))]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            shard.addfile(entry, io.BytesIO(content))
    cells = [{"bytes": image(number), "path": None} for number in (4, 5, 6)]
    table = pyarrow.table({"label": [0, 1, 2], "image": cells})
    pyarrow.parquet.write_table(table, tmp_path / "images.parquet", row_group_size=2)
    names = pyarrow.table({"file": ["img/1.png", "img/0.png"]})
    pyarrow.parquet.write_table(names, tmp_path / "names.parquet")
    return tmp_path


def greys(inputs) -> list[int]:
    values = []
    for entry in inputs:
        content = entry.content()
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
            values.append(opened.getpixel((0, 0)))
    return values


def test_every_kind_in_the_order_given(places):
    inputs = find_inputs(
        [str(places / name) for name in ("img", "shard.tar", "images.parquet", "names.parquet")]
    )
    assert greys(inputs) == [0, 1, 2, 3, 4, 5, 6, 1, 0]
    assert [entry.name.removeprefix(f"{places}/") for entry in inputs] == [
        "img/0.png", "img/1.png", "shard.tar/a/2.png", "shard.tar/b/3.png",
        "images.parquet/0", "images.parquet/1", "images.parquet/2", "img/1.png", "img/0.png",
    ]  # fmt: skip


def test_a_folder_of_tables_stands_for_these(places):
    (places / "img").rename(places / "elsewhere")
    (places / "names.parquet").rename(places / "elsewhere" / "names.parquet")
    inputs = find_inputs([str(places)])
    assert greys(inputs) == [4, 5, 6, 2, 3]  # images.parquet, then shard.tar


def test_columns_of_bytes_alone_and_of_other_names_of_files(places):
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [image(9)]}), places / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"Image Path": ["img/1.png"]}), places / "b.parquet")
    assert greys(find_inputs([str(places / "a.parquet"), str(places / "b.parquet")])) == [9, 1]


def test_what_is_wrong_is_said(places):
    def refused(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (places / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            find_inputs([str(places / name)])
        return str(error.value).replace(f"{places}/", "")

    shard, table = (places / "shard.tar").read_bytes(), (places / "images.parquet").read_bytes()
    assert refused("gone.tar") == "gone.tar: does not exist"
    assert refused("cut.tar", shard[:3000]).startswith("cut.tar: damaged shard (")
    assert refused("open.tar", shard[: 512 * 6]).startswith("open.tar: cut at byte 3072, without")
    assert refused("x.tar.gz", b"\x1f\x8b").startswith("x.tar.gz: a compressed shard; unpack it")
    assert refused("cut.parquet", table[:-9]).startswith("cut.parquet: damaged Parquet file (")
    other = pyarrow.table({"label": [1], "text": ["a"]})
    pyarrow.parquet.write_table(other, places / "other.parquet")
    assert refused("other.parquet") == (
        "other.parquet: no column of images (bytes) or of their names (file, path, filename, file_name, "
        "filepath, file_path, ...); its columns are: label, text"
    )
    empty = pyarrow.table({"file": ["a.png", None, ""]})
    pyarrow.parquet.write_table(empty, places / "empty.parquet")
    assert refused("empty.parquet") == "empty.parquet: 2 rows of file name no file"
    none = pyarrow.table({"file": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(none, places / "none.parquet")
    assert refused("none.parquet").startswith("no images in none.parquet; known endings: .j")


def test_an_empty_cell_is_an_image_that_cannot_be_read(places):
    table = pyarrow.table({"image": pyarrow.array([image(1), None], pyarrow.binary())})
    pyarrow.parquet.write_table(table, places / "hole.parquet")
    full, hole = find_inputs([str(places / "hole.parquet")])
    assert full.content() == image(1)
    with pytest.raises(ValueError, match="the cell is empty"):
        hole.content()
