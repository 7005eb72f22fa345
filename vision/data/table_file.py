"""CSV, TSV and Parquet files as columns of texts; what is wrong with a file is told."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from os import PathLike
from typing import NamedTuple

from vision.data.files import is_image, open_regular, printable
from vision.data.parquet import PARQUET_ENDINGS, opened_parquet

TABLE_ENDINGS = (".csv", ".tsv", *PARQUET_ENDINGS)
MAX_TABLE_BYTES = 2**32  # of a table, and of a Parquet file's unpacked columns
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class TextTable(NamedTuple):
    """Cells by column, without the spaces around them; what stands nowhere is an empty text."""

    name: str  # of the file, for messages
    columns: dict[str, list[str]]
    note: str  # how it was read, where that is not what its ending says; else nothing


def is_table(path: str | PathLike) -> bool:
    """Whether a file of this name is taken for a table: by its ending, in any case of letters.

    Example:
        >>> is_table("labels.CSV"), is_table("photos/train")
        (True, False)
    """
    return os.path.splitext(os.fspath(path))[1].lower() in TABLE_ENDINGS


def read_columns(path: str | PathLike) -> TextTable:
    """Read a table, whose first line (CSV, TSV) names its columns.

    Texts are UTF-8, or UTF-16 with its mark; a mark in front is no part of the first name. Cells are
    separated by what the first line uses: commas, tabs, semicolons or vertical bars.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no table, a damaged one, one without names or rows, rows of another number of cells, or
            a Parquet file where pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = file.write_text("file;label\\na.png;cat\\n")
        >>> table = read_columns(file)
        >>> table.columns, table.note
        ({'file': ['a.png'], 'label': ['cat']}, 'cells are separated by semicolons')
    """
    name = printable(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"data.path: there is no table {name}")
    if os.path.isdir(path):
        raise ValueError(
            f"{name} is a folder, not a table; give the file ({', '.join(TABLE_ENDINGS)}), or read class "
            "folders with data.name=folder"
        )
    if not is_table(path):
        raise ValueError(
            f"{name}: a table ends in {', '.join(TABLE_ENDINGS)}; save it as one of these"
        )
    size = os.stat(path).st_size
    if size > MAX_TABLE_BYTES:
        raise ValueError(f"{name}: {size} bytes, above the {MAX_TABLE_BYTES} of a table; split it")
    if size == 0:
        raise ValueError(f"{name} is empty: no names of columns, no rows")
    if os.path.splitext(path)[1].lower() in PARQUET_ENDINGS:
        table = _read_parquet(path, name)
    else:
        table = _read_texts(path, name)
    if not next(iter(table.columns.values()), []):
        raise ValueError(f"{name} names its columns ({_listed(table.columns)}) but has no rows")
    return table


def _listed(columns: dict[str, list[str]]) -> str:
    return ", ".join(printable(column) or "''" for column in columns)


# CSV and TSV


def _read_texts(path: str | PathLike, name: str) -> TextTable:
    with open_regular(path) as file:
        text = _decoded(file.read(), name)
    if "\0" in text:
        raise ValueError(f"{name} holds bytes of 0, so it is no text; save the table as CSV")
    rows = text.lstrip("\r\n")
    if not rows.strip():
        raise ValueError(f"{name} is empty: no names of columns, no rows")
    first = rows.splitlines()[0]
    usual = "\t" if os.path.splitext(path)[1].lower() == ".tsv" else ","
    delimiter = _delimiter(first, usual, name)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells: list[list[str]] = []
    odd: list[tuple[int, int]] = []  # line and number of cells
    try:
        names = next(row for row in lines if row)
        for row in lines:
            if len(row) == len(names):
                cells.append(row)
            elif row:
                odd.append((lines.line_num, len(row)))
    except csv.Error as error:
        raise ValueError(f"{name}, line {lines.line_num}: {error}; mend or quote it") from error
    names = _names(names, name)
    if odd:
        line, count = odd[0]
        raise ValueError(
            f"{name}: {len(odd)} rows have another number of cells than there are columns "
            f"({len(names)}), the first at line {line} with {count}; put cells with "
            f"{_DELIMITERS[delimiter]} in quotes"
        )
    columns = zip(*cells, strict=True) if cells else ([] for _ in names)
    stripped = {
        column: [cell.strip() for cell in values]
        for column, values in zip(names, columns, strict=True)
    }
    note = "" if delimiter == usual else f"cells are separated by {_DELIMITERS[delimiter]}"
    return TextTable(name, stripped, note)


def _decoded(content: bytes, name: str) -> str:
    encoding = next(
        (e for mark, e in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8"
    )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not {error.encoding.upper()} at byte {error.start}; save it as UTF-8"
        ) from error


def _delimiter(first: str, usual: str, name: str) -> str:
    """What separates the names: the usual one of the ending where it does, else the one that does most."""
    counts = {}
    for delimiter in (usual, *_DELIMITERS):
        try:
            counts[delimiter] = len(next(csv.reader([first], delimiter=delimiter)))
        except csv.Error:
            counts[delimiter] = 1
    best = usual if counts[usual] > 1 else max(counts, key=lambda delimiter: counts[delimiter])
    if counts[best] < 2:
        raise ValueError(
            f"{name}: its first line, {first[:60]!r}, names one column only; a table has one for the file "
            f"and one for the label at least, separated by {', '.join(_DELIMITERS.values())}"
        )
    return best


def _names(first: list[str], name: str) -> list[str]:
    names = [cell.strip() for cell in first]
    values = [cell for cell in names if is_image(cell)]
    if values:
        raise ValueError(
            f"{name}: its first line names no columns but holds a file ({values[0]!r}); put a line such as "
            "file,label in front"
        )
    twice = [cell for cell, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"{name}: {len(twice)} names stand for two columns: {twice[0]!r}; rename one"
        )
    return names


# Parquet


def _read_parquet(path: str | PathLike, name: str) -> TextTable:
    with opened_parquet(path) as stored:
        import pyarrow

        metadata, schema = stored.metadata, stored.schema_arrow
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        if size > MAX_TABLE_BYTES:
            raise ValueError(
                f"{name}: {size} bytes unpacked, above the {MAX_TABLE_BYTES} of a table; leave out "
                "columns that hold pictures"
            )
        wanted = [field.name for field in schema if _holds_texts(field.type, pyarrow.types)]
        content = stored.read(columns=wanted, use_threads=False)
        columns = {
            column: [
                "" if cell is None else cell.strip()
                for cell in content.column(column).cast(pyarrow.string()).to_pylist()
            ]
            for column in wanted
        }
    left_out = [field.name for field in schema if field.name not in columns]
    note = f"columns that hold no texts or numbers are left out: {', '.join(left_out)}"
    return TextTable(name, columns, note if left_out else "")


def _holds_texts(kind, types) -> bool:
    """Whether cells of a type of pyarrow are texts, numbers or truth values."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return any(test(kind) for test in (*tests, types.is_boolean))
