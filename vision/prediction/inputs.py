"""What is predicted: image files, images inside tar shards, images or names of images in Parquet tables."""

from __future__ import annotations

import functools
import itertools
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vision.data import files as image_files
from vision.data.columns import FILE_COLUMNS, usual_column
from vision.data.files import is_image, open_regular, printable
from vision.data.parquet import PARQUET_ENDINGS, opened_parquet
from vision.data.shard_index import check_end
from vision.data.shards import COMPRESSED, Member

SHARDS = (".tar", *COMPRESSED)
_KEPT = 4  # groups of rows in memory


class Input(Protocol):
    """One image: its name in results, and what `Predictor.decode` takes."""

    @property
    def name(self) -> str: ...

    def content(self) -> Path | bytes:
        """A file, or the bytes of one."""


class ImageFile(NamedTuple):
    """A file of its own."""

    name: str

    def content(self) -> Path:
        return Path(self.name)


class InShard(NamedTuple):
    """A file inside a shard; ``name`` is SHARD/NAME."""

    name: str
    member: Member

    def content(self) -> bytes:
        return self.member.read_bytes()


class InTable(NamedTuple):
    """A cell of a Parquet table that holds the bytes of an image; ``name`` is TABLE/ROW."""

    name: str
    table: str
    column: str
    group: int  # of rows
    row: int  # in its group

    def content(self) -> bytes:
        found = _cells(self.table, self.column, self.group)[self.row]
        if found is None:
            raise ValueError("the cell is empty")
        return found


def find_inputs(places: Sequence[str]) -> list[Input]:
    """Images in the order of the places.

    Folders are searched by the rule of training (`vision.data.files.find_images`). A ``.tar`` is a shard,
    whose images are predicted whether or not it holds classes; a ``.parquet`` is a table with a column of
    images (bytes, or ``{bytes, path}`` as data hubs write it) or of file names, relative to the table. A
    folder with shards or tables right in it stands for these.

    Raises:
        ValueError: a place that does not exist, a damaged shard or table, a table without such a column, or
            nothing to predict.
    """
    inputs: list[Input] = []
    files: list[str] = []

    def search() -> None:
        inputs.extend(map(ImageFile, image_files.find_images(files).paths if files else ()))
        files.clear()

    for place in itertools.chain.from_iterable(map(_packed_in, places)):
        if not place.lower().endswith((*PARQUET_ENDINGS, *SHARDS)) or not Path(place).is_file():
            files.append(place)
            continue
        search()
        inputs.extend(
            _of_table(place) if place.lower().endswith(PARQUET_ENDINGS) else _of_shard(place)
        )
    search()
    if not inputs:
        listed = ", ".join(map(printable, places))
        endings = ", ".join(image_files.image_formats().endings)
        raise ValueError(f"no images in {listed}; known endings: {endings}")
    return inputs


def _packed_in(place: str) -> list[str]:
    """Shards and tables right in a folder; else the place itself."""
    if not Path(place).is_dir():
        return [place]
    packed = (
        str(file)
        for file in Path(place).iterdir()
        if file.name.lower().endswith((*PARQUET_ENDINGS, *SHARDS)) and not file.name.startswith(".")
    )
    return sorted(packed) or [place]


def _of_shard(path: str) -> Iterator[InShard]:
    if path.lower().endswith(COMPRESSED):
        raise ValueError(
            f"{printable(path)}: a compressed shard; unpack it to a plain .tar: images are read at random"
        )
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                tar.members = []  # type: ignore[attr-defined]  # else they are all kept
                if entry.isfile() and not entry.issparse() and is_image(entry.name):
                    member = Member(path, entry.offset_data, entry.size)
                    yield InShard(f"{path}/{entry.name}", member)
            check_end(file, tar.offset, printable(path))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{printable(path)}: damaged shard ({error}); fetch it again") from error


def _of_table(path: str) -> Iterator[Input]:
    with opened_parquet(path) as table:
        column, holds_images = _column(table, path)
        number = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            names = [] if holds_images else _texts(table, column, group, path)
            for row in range(rows):
                if holds_images:
                    yield InTable(f"{path}/{number}", path, column, group, row)
                else:
                    yield ImageFile(str(Path(path).parent / names[row]))
                number += 1


def _column(table: Any, path: str) -> tuple[str, bool]:
    """The column to predict, and whether it holds images (else their names)."""
    import pyarrow

    types = {field.name: field.type for field in table.schema_arrow}
    for name, kind in types.items():
        in_struct = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) or in_struct:
            return name, True
    found = usual_column(types, FILE_COLUMNS)
    if found is not None:
        return found, False
    listed = ", ".join(map(printable, types)) or "none"
    raise ValueError(
        f"{printable(path)}: no column of images (bytes) or of their names ({', '.join(FILE_COLUMNS[:6])}, "
        f"...); its columns are: {listed}"
    )


def _texts(table: Any, column: str, group: int, path: str) -> list[str]:
    names = table.read_row_group(group, columns=[column]).column(0).to_pylist()
    missing = sum(not isinstance(name, str) or not name for name in names)
    if missing:
        raise ValueError(f"{printable(path)}: {missing} rows of {printable(column)} name no file")
    return names


@functools.lru_cache(_KEPT)
def _cells(path: str, column: str, group: int) -> list[bytes | None]:
    """The images of a group of rows."""
    with opened_parquet(path) as table:
        cells = table.read_row_group(group, columns=[column]).column(0).to_pylist()
    return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
