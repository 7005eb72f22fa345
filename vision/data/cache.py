"""Decoded images kept on the disk, so that the next command does not decode them again.

An entry holds the pictures of one split in the form that training or evaluation reads them, as bytes in a
.npy file that is mapped into memory: processes share it, and the machine's memory holds what is used of
it. It is found by a key of all that decides over its content: the files' names, sizes and times, the
preprocessing, the limit of pixels, and the versions of what decodes. (A file changed without changing
size or time is not noticed; a cache is off with ``data.cache=off``.)
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, features
from PIL import __version__ as pillow_version

from coe_core.support.aims import parse_size
from coe_core.support.files import read_json, sha256_of, whole_folder, write_json
from coe_core.support.locks import LockedError, locked
from vision.data.decode import (
    DecodedImages,
    StoredForm,
    decode_each,
    decode_files,
    tell_unreadable,
)
from vision.data.files import image_formats
from vision.data.opening import LARGE_JPEG, LEAST
from vision.data.shards import Member, Members

FOLDER_VARIABLE, BYTES_VARIABLE = "COE_CACHE", "COE_CACHE_BYTES"
MAX_BYTES = 4 * 2**30  # of all entries together, where the variable does not say otherwise
_FORMAT = 1
_HEADER = 128  # bytes before the pixels of a .npy file, enough for every shape
_BYTES_BESIDE = 48  # of each image: where it came from, its digest and shape
_LEFT_BEHIND = 24 * 3600  # seconds after which half an entry is no longer being written
_PATIENCE = 0.2  # seconds between looks at another process's lock


class SplitKept(NamedTuple):
    """A split that was found, or written."""

    split: str
    num_images: int
    num_bytes: int


class _DamagedError(ValueError):
    """An entry that does not hold what it held when it was written."""


class _Entry(NamedTuple):
    """What an entry holds: the pictures, and what is wrong with the files that have none."""

    images: DecodedImages
    errors: list[str]


@dataclass
class PixelCache:
    """Entries below a folder, bounded together: those unused for longest make room.

    Args:
        folder: made if missing.
        max_bytes: of all entries.
    """

    folder: Path
    max_bytes: int = MAX_BYTES
    written: list[SplitKept] = field(default_factory=list)
    reused: list[SplitKept] = field(default_factory=list)
    _keys: set[str] = field(default_factory=set)

    def images(
        self, paths: Sequence[str | Member], form: StoredForm, split: str, num_bytes: float
    ) -> DecodedImages:
        """The decoded files: mapped from their entry, which is written first where there is none.

        Args:
            paths: files.
            form: how they are decoded.
            split: name of the set in messages.
            num_bytes: of their pixels, roughly.

        Raises:
            ValueError: 1% of the files or more cannot be read.
        """
        key = cache_key(paths, form)
        self._keys.add(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            entry = self._reuse(key, len(paths), split)
            if entry is None:
                with self._alone(key, split):  # another process may have written it by now
                    entry = self._reuse(key, len(paths), split, remove=True)
                    if entry is None:
                        self._make_room(num_bytes + _BYTES_BESIDE * (len(paths) + 64))
                        self._write(key, paths, form, split)
                        entry = _read(self.folder / key, len(paths))
        except (OSError, _DamagedError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            warnings.warn(
                f"decoded images cannot be kept in {self.folder}: {reason}; another folder is "
                "data.cache=FOLDER, none data.cache=off",
                stacklevel=2,
            )
            return decode_files(paths, form, split)
        tell_unreadable(entry.errors, len(paths), split)
        return entry.images

    @contextlib.contextmanager
    def _alone(self, key: str, split: str) -> Iterator[None]:
        """Hold the entry's lock; while another process decodes the same files, wait for it."""
        said = False
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(self.folder / f"{key}.entry", say=lambda _: None))
                except LockedError as error:
                    if not said:
                        owner = error.owner or "another process"
                        _say(f"decoded images of {split}: waiting for {owner}")
                    said = True
                    time.sleep(_PATIENCE)
                    continue
                yield
                return

    def _reuse(self, key: str, num_files: int, split: str, remove: bool = False) -> _Entry | None:
        """The entry; None where there is none, or it is damaged (``remove``: it is removed then)."""
        folder = self.folder / key
        if not folder.is_dir():
            return None
        try:
            entry = _read(folder, num_files)
        except _DamagedError as error:
            if remove:
                _say(f"decoded images of {split} were damaged ({error}); decoding them again")
                shutil.rmtree(folder)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / "entry.json")
        self.reused.append(SplitKept(split, len(entry.images.kept), _size(folder)))
        return entry

    def _write(self, key: str, paths: Sequence[str | Member], form: StoredForm, split: str) -> None:
        """Decode all files into a new entry, one after the other: memory holds few of them."""
        errors: list[str] = []
        kept, digests, shapes = [], [], []
        with whole_folder(self.folder / key) as entry:
            with open(entry / "pixels.npy", "wb") as file:
                file.write(bytes(_HEADER))
                for position, decoded in enumerate(decode_each(paths, form, split)):
                    if decoded.image is None:
                        errors.append(decoded.error)
                        continue
                    file.write(decoded.image.contiguous().numpy().data)
                    kept.append(position)
                    digests.append(decoded.digest)
                    shapes.append(tuple(decoded.image.shape))
                tell_unreadable(errors, len(paths), split)
                size = sum(math.prod(shape) for shape in shapes)
                plain = form.kind == "plain" and bool(shapes)
                file.seek(0)
                file.write(_npy_header((len(shapes), *shapes[0]) if plain else (size,)))
            np.savez(
                entry / "index.npz",
                kept=np.array(kept, dtype=np.int64),
                digests=np.array(digests, dtype=np.uint64),
                shapes=np.array(shapes, dtype=np.int64).reshape(-1, 3),
            )
            sums = {name: sha256_of(entry / name) for name in ("pixels.npy", "index.npz")}
            content = {"format": _FORMAT, "split": split, "num_files": len(paths)}
            write_json(entry / "entry.json", {**content, "errors": errors, "sha256": sums})
        self.written.append(SplitKept(split, len(kept), _size(self.folder / key)))

    def _make_room(self, num_bytes: float) -> None:
        """Remove entries, those unused for longest first, until one more of that size fits.

        Raises:
            OSError: the disk has no room for it.
        """
        entries = []
        for entry in self.folder.iterdir():
            if entry.name.startswith(".") and entry.name.endswith(".part"):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > _LEFT_BEHIND:
                        shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in self._keys:
                with contextlib.suppress(OSError):
                    used = (entry / "entry.json").stat().st_mtime
                    entries.append((used, _size(entry), entry))
        in_use = sum(_size(self.folder / key) for key in self._keys if (self.folder / key).is_dir())
        total = in_use + sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total + num_bytes <= self.max_bytes:
                break
            gone = entry.with_name(f".{entry.name}.part")  # half an entry is never found
            with contextlib.suppress(OSError):
                entry.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
                total -= size
        free = shutil.disk_usage(self.folder).free
        if free < 1.1 * num_bytes:
            raise OSError(f"{num_bytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")

    def tell(self) -> None:
        """One line on stderr of what was written, one of what was reused."""
        for done, what in ((self.reused, "reused from"), (self.written, "kept in")):
            if done:
                splits = ", ".join(f"{entry.split} {entry.num_images:,}" for entry in done)
                size = sum(entry.num_bytes for entry in done) / 1e6
                _say(
                    f"decoded images {what} {self.folder}: {splits} ({size:.0f} MB; off: data.cache=off)"
                )


def cache_folder(setting: str = "auto", named: str = "", usual: str = "decoded") -> Path | None:
    """Where something is kept: in the user's cache folder, or in one that was named; None: nowhere.

    Args:
        setting: "off", "auto" or a folder. For auto the environment decides: COE_CACHE is off or a
            folder; else it is the user's cache folder.
        named: folder inside one that was named.
        usual: folder inside the user's cache folder.
    """
    if setting == "auto":
        setting = os.environ.get(FOLDER_VARIABLE) or "auto"
    if setting == "off":
        return None
    if setting != "auto":
        return Path(setting).expanduser() / named
    import platformdirs

    return platformdirs.user_cache_path("coe-vision") / usual


def pixel_cache(setting: str) -> PixelCache | None:
    """The cache that a recipe asks for.

    Args:
        setting: see `cache_folder`. COE_CACHE_BYTES bounds what is kept, as in 10G.

    Raises:
        ValueError: COE_CACHE_BYTES is no size.
    """
    folder = cache_folder(setting)
    if folder is None:
        return None
    size = os.environ.get(BYTES_VARIABLE)
    return PixelCache(folder, MAX_BYTES if size is None else parse_size(size))


def cache_key(paths: Sequence[str | Member], form: StoredForm) -> str:
    """Digest of all that decides over decoded pixels.

    Raises:
        OSError: a shard is gone. (A missing file counts as such.)
    """
    settings = {
        "format": _FORMAT,
        "form": (form.kind, form.preprocess.size, form.preprocess.channels, form.preprocess.resize),
        **({} if form.preprocess.range is None else {"range": form.preprocess.range}),
        "max_pixels": form.max_pixels or Image.MAX_IMAGE_PIXELS,
        "formats": image_formats().formats,
        "reduced": (LARGE_JPEG, LEAST, "original sides"),
        "pillow": (pillow_version, *map(features.version, ("jpg", "zlib", "webp", "libtiff"))),
    }
    digest = hashlib.sha256(json.dumps(settings).encode())
    if isinstance(paths, Members):
        for shard in paths.shards:
            digest.update(_state(shard))
        for values in (paths.shard, paths.offset, paths.size):
            digest.update(np.ascontiguousarray(values).astype(np.int64).data)
    else:
        for path in paths:
            digest.update(_state(path) if isinstance(path, str) else repr(path).encode())
    return digest.hexdigest()[:40]


def _state(path: str) -> bytes:
    name = os.fsencode(os.path.abspath(path))
    try:
        state = os.stat(path)
    except OSError:
        return name + b"\0missing\0"
    return name + f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file of uint8, padded to a length that is known before the shape is."""
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    text = header.getvalue()
    if len(text) > _HEADER:
        raise AssertionError(f"a header of {len(text)} bytes")
    length = (_HEADER - 10).to_bytes(2, "little")  # behind the magic string and the length itself
    return text[:8] + length + text[10:].rstrip(b"\n ").ljust(_HEADER - 11) + b"\n"


def _read(folder: Path, num_files: int) -> _Entry:
    """Map an entry whose digests are right."""
    try:
        content = read_json(folder / "entry.json")
        if content["format"] != _FORMAT or content["num_files"] != num_files:
            raise _DamagedError("it is of another version")
        for name, sha256 in content["sha256"].items():
            if sha256_of(folder / name) != sha256:
                raise _DamagedError(f"{name} has changed")
        return _Entry(_mapped(folder), [str(error) for error in content["errors"]])
    except _DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise _DamagedError(str(error)) from error


def _mapped(folder: Path) -> DecodedImages:
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        kept, digests, shapes = (index[name] for name in ("kept", "digests", "shapes"))
    # Copy on write: nothing that a process does to them reaches the file.
    pixels = torch.from_numpy(np.load(folder / "pixels.npy", mmap_mode="c", allow_pickle=False))
    if pixels.ndim == 4:
        return DecodedImages(pixels, kept.tolist(), digests)
    parts = pixels.split([math.prod(shape) for shape in shapes.tolist()])
    images = [part.view(shape) for part, shape in zip(parts, shapes.tolist(), strict=True)]
    return DecodedImages(images, kept.tolist(), digests)


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of processes that train together the first one speaks
        print(line, file=sys.stderr)
