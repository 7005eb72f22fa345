"""Parquet files, opened one way for training and for prediction; what is wrong with one is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from vision.data.files import open_regular, printable

PARQUET_ENDINGS = (".parquet", ".pq")


@contextmanager
def opened_parquet(path: str | PathLike) -> Iterator[Any]:
    """A file as pyarrow's ``ParquetFile``; what cannot be read inside the ``with`` is told, too.

    Raises:
        ValueError: pyarrow is not installed, or the file is no whole table.
    """
    name = printable(path)
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f"{name}: Parquet needs the package pyarrow: pip install 'collaboration-of-experts[tables]'"
        ) from error
    try:
        with open_regular(path) as file, ParquetFile(file) as table:
            yield table
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{name}: damaged Parquet file ({reason}); write it again") from error
