"""Texts of any length, line by line in order: from a file or a pipe, to a file that can be continued."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import math
import os
import queue
import stat
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from coe_core.support.files import read_json, write_json
from coe_core.support.locks import locked
from translation.corpora.lines import decode_line
from translation.prediction.engine import OVER_LONG, TranslatorError
from translation.prediction.translator import Translation

BLOCK = 512  # lines that are sorted by length and translated together


class Output(Protocol):
    """Where translations go, a block at a time."""

    def write(self, text: str, lines: list[bytes]) -> None:
        """The translations of some lines of the input."""


@dataclass
class Summary:
    """What a stream came to.

    Attributes:
        routes: lines by the network that translated them.
        macs: multiply-adds of all.
        cut: lines of which only the beginning was translated.
    """

    routes: Counter[str] = field(default_factory=Counter)
    macs: float = 0.0
    cut: int = 0

    def add(self, translation: Translation) -> None:
        """One more line."""
        self.routes[translation.route] += 1
        self.macs += 0.0 if math.isnan(translation.macs) else translation.macs
        self.cut += translation.cut > 0

    @property
    def incomplete(self) -> int:
        """Lines that were not translated whole."""
        return self.cut + self.routes[OVER_LONG]

    def __str__(self) -> str:
        """In one line.

        Example:
            >>> str(Summary(Counter({"delegator": 3, "expert-0": 1}), 8e6))
            '4 lines: delegator 3, expert-0 1; 2 MMACs a line'
        """
        count = self.routes.total()
        routes = ", ".join(f"{name} {self.routes[name]:,}" for name in sorted(self.routes))
        line = f"{count:,} lines" + (f": {routes}" if routes else "")
        line += f"; {self.macs / count / 1e6:.3g} MMACs a line" if self.macs else ""
        return line + (f"; {self.cut:,} cut" if self.cut else "")


def blocks(file: BinaryIO, size: int = BLOCK) -> Iterator[list[bytes]]:
    """Lines of a text in blocks: full ones of a file; of a pipe those that have arrived, at least one."""
    if _is_file(file):
        with _readable():
            while block := list(islice(file, size)):
                yield block
        return
    arrived: queue.Queue[bytes | BaseException | None] = queue.Queue(4 * size)
    threading.Thread(target=partial(_fill, file, arrived), daemon=True).start()
    block, ended = [], False
    while not ended:
        entry = arrived.get()
        while True:
            if isinstance(entry, BaseException):
                raise entry
            ended = entry is None
            if entry is not None:
                block.append(entry)
            if ended or len(block) >= size or arrived.empty():
                break
            entry = arrived.get()
        if block:
            yield block
        block = []


def _fill(file: BinaryIO, arrived: queue.Queue[bytes | BaseException | None]) -> None:
    try:
        with _readable():
            for line in file:
                arrived.put(line)
        arrived.put(None)
    except BaseException as error:
        arrived.put(error)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise TranslatorError(f"the text is packed, and damaged: {error}") from error


def _is_file(file: BinaryIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, AttributeError, ValueError):  # in memory, as in a test
        return file.seekable()


def count_lines(file: BinaryIO) -> int | None:
    """Lines from here on, for the time left; None of a pipe. The file is where it was afterwards."""
    if not _is_file(file) or not file.seekable():
        return None
    start, count, last = file.tell(), 0, b"\n"
    with _readable():
        while part := file.read(2**20):
            count += part.count(b"\n")
            last = part[-1:]
    file.seek(start)
    return count + (last != b"\n")


def decoded(block: list[bytes], name: str, first: int) -> list[str]:
    """Text of lines, of which the first has the number ``first`` + 1.

    Raises:
        ValueError: a line that is not UTF-8.
    """
    if first == 0:
        block = [block[0].removeprefix(b"\xef\xbb\xbf"), *block[1:]]
    return [decode_line(line, name, number) for number, line in enumerate(block, first + 1)]


def as_line(translation: Translation, as_json: bool) -> str:
    """A translation as it is written: hypotheses with tabs between them, or a JSON object.

    Example:
        >>> as_line(Translation("a b", "delegator", 0.5, 7.0, ("a b", "b")), as_json=False)
        'a b\\tb\\n'
    """
    if not as_json:
        return "\t".join(" ".join(text.split()) for text in translation.hypotheses) + "\n"
    known = {name: None if _is_nan(value) else value for name, value in vars(translation).items()}
    return json.dumps(known, ensure_ascii=False) + "\n"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class StandardOutput:
    """Standard output: every block at once, for whoever reads along."""

    def write(self, text: str, lines: list[bytes]) -> None:
        """See `Output`."""
        sys.stdout.write(text)
        sys.stdout.flush()


class ResumableFile:
    """A file that is there once all of it is; until then ``FILE.part``, which can be continued.

    Beside it ``FILE.part.json`` says with what it was begun and how far it came: whole blocks, on the disk.

    Args:
        path: of the file; ``.gz`` is packed.
        settings: that a continued one must have been begun with.
        resume: continue; else an unfinished one is refused.

    Raises:
        TranslatorError: a pipe, a device or a folder is there.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool):
        path = Path(os.path.realpath(path))  # a link stays, and its target is written
        if path.exists() and not path.is_file():
            raise TranslatorError(
                f"{path} is no regular file, and none may take its place; without --out translations go to "
                "standard output"
            )
        self.path, self.settings, self.resume = path, settings, resume
        self.part = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")
        self.lines = self.bytes = 0
        self._digest = hashlib.sha256()
        self._file: Any = None

    @contextlib.contextmanager
    def opened(self, source: BinaryIO) -> Iterator[ResumableFile]:
        """Ready to write; lines that are translated already are taken from the input.

        Raises:
            TranslatorError: an unfinished file of other settings or another text, or one that is not to be
                continued.
            LockedError: another process writes to it.
            OSError: it cannot be written.
        """
        with locked(self.path, "wait for it, or choose another --out"):
            self._begin(source)
            with open(self.part, "r+b" if self.lines else "wb") as self._file:
                self._file.truncate(self.bytes)
                self._file.seek(self.bytes)
                yield self
            self.part.replace(self.path)
            self.state.unlink(missing_ok=True)

    def _begin(self, source: BinaryIO) -> None:
        if not self.part.exists() or not self.state.exists():
            return
        state = read_json(self.state)
        done, size, before = (state.get(name) for name in ("lines", "bytes", "settings"))
        if not (_is_count(done) and _is_count(size) and isinstance(before, dict)):
            raise TranslatorError(f"{self.state} is damaged; remove it and {self.part}")
        if not self.resume:
            raise TranslatorError(
                f"{self.part} holds {done:,} lines of a translation that was stopped; continue it with "
                "--resume, or remove it"
            )
        for name, value in self.settings.items():
            if before.get(name) != value:
                raise TranslatorError(
                    f"{self.part} was begun with {name} {before.get(name)}, not {value}; resume with the "
                    "same settings, or remove it"
                )
        for line in islice(source, done):
            self._digest.update(line)
        if self._digest.hexdigest() != state.get("sha256"):
            raise TranslatorError(
                f"the first {done:,} lines of the input are not those that {self.part} holds the "
                "translations of; resume with the same text, or remove it"
            )
        self.lines, self.bytes = done, size
        if self.part.stat().st_size < self.bytes:
            raise TranslatorError(f"{self.part} is shorter than it was; remove it")

    def write(self, text: str, lines: list[bytes]) -> None:
        """See `Output`; on the disk when this returns."""
        content = text.encode()
        if self.path.suffix == ".gz":
            content = gzip.compress(content, mtime=0)  # of several parts, which is one file to gzip
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in lines:
            self._digest.update(line)
        self.lines, self.bytes = self.lines + len(lines), self.bytes + len(content)
        write_json(
            self.state,
            {
                "settings": self.settings,
                "lines": self.lines,
                "bytes": self.bytes,
                "sha256": self._digest.hexdigest(),
            },
        )
