"""Which files are images: one rule for training and for prediction; and files that open without surprises."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import stat
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import BinaryIO, NamedTuple

from PIL import Image

# Pillow knows many more. Some of them run other programs (EPS reaches Ghostscript), hold formats
# inside formats (ICNS), or are no photographs; what nobody means is refused.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO", "AVIF", "HEIF")
_PLUGINS = ("Jpeg", "Png", "WebP", "Bmp", "Gif", "Tiff", "Ppm", "Ico", "Avif")
_KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


class ImageFormats(NamedTuple):
    """What is opened: Pillow's names of the formats, and the endings their files have."""

    formats: tuple[str, ...]
    endings: tuple[str, ...]


@functools.cache
def image_formats() -> ImageFormats:
    """The formats that this installation decodes, of those that are meant; HEIF with pillow-heif.

    Example:
        >>> {"JPEG", "PNG", "ICO"} <= set(image_formats().formats)
        True
        >>> {".jpg", ".jfif", ".png"} <= set(image_formats().endings)
        True
    """
    for plugin in _PLUGINS:
        if importlib.util.find_spec(f"PIL.{plugin}ImagePlugin"):  # AVIF: since Pillow 11.3
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    # A plug-in without its library registers no ending.
    endings = {ending: name for ending, name in Image.EXTENSION.items() if name in _FORMATS}
    endings[".mpo"] = "JPEG"  # so Pillow opens them
    endings.pop(".pfm", None)  # floating-point pixels have no agreed range
    formats = tuple(name for name in _FORMATS if name in endings.values())
    common = sorted(endings, key=lambda ending: (formats.index(endings[ending]), ending))
    return ImageFormats(formats, tuple(common))


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its ending, in any case of letters.

    Example:
        >>> is_image("a/photo.JPG"), is_image("photo.txt"), is_image("photo")
        (True, False, False)
    """
    return os.path.splitext(name)[1].lower() in image_formats().endings


def printable(path: str | bytes | PathLike) -> str:
    """A file's name for messages: what no terminal prints (bytes beyond UTF-8, line ends) is escaped.

    Example:
        >>> print(printable(b"caf\\xe9.png"), printable("two\\rlines"))
        caf\\xe9.png two\\rlines
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def open_regular(path: str | PathLike) -> BinaryIO:
    """Open a regular file for reading; never waits, as opening a FIFO would.

    Raises:
        OSError: it does not exist or may not be read.
        ValueError: it is a FIFO, a socket, a device or a folder.
    """
    _check_regular(os.stat(path).st_mode, path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(os.fstat(file.fileno()).st_mode, path)  # may have been put there since
    except ValueError:
        file.close()
        raise
    return file


def icon_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of the pictures in an ICO file as they say themselves: Pillow decodes on opening."""
    (count,) = struct.unpack_from("<H", content, 4)
    for number in range(count):
        (offset,) = struct.unpack_from("<I", content, 6 + 16 * number + 12)
        if content[offset : offset + 8] == b"\x89PNG\r\n\x1a\n":
            yield struct.unpack_from(">II", content, offset + 16)
        else:  # a bitmap: its mask counts as a second half of the height
            width, height = struct.unpack_from("<ii", content, offset + 4)
            yield abs(width), abs(height) // 2


def _check_regular(mode: int, path: str | PathLike) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "special file")
        raise ValueError(f"{printable(path)} is a {kind}, not a regular file")


class FoundImages(NamedTuple):
    """Image files, and for each the position of the place it was found in."""

    paths: list[str]
    places: list[int]


def find_images(places: Sequence[str | PathLike], what: str = "") -> FoundImages:
    """Search folders for images: the one rule of training (`data.path`) and of `predict FOLDER`.

    Taken are regular files whose ending (in any case of letters) is one of `image_formats`, in all
    folders below, in the order of the folders' names, then of the files'. Hidden files and folders
    (".name") are passed over. Links are followed; a file or folder that is reached twice, as by links
    that go round, is taken once: under its own name where that was found, else in order. Files with
    other endings, links to what was taken already, links to nothing, FIFOs, sockets and devices are
    left out, and counted in one warning. A place that is a file is taken as it is.

    Args:
        places: folders, or files.
        what: they are, for the warning.

    Raises:
        ValueError: a place does not exist, or a folder cannot be listed.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.JPG", ".hidden.png"):
        ...     (folder / name).touch()
        >>> [os.path.basename(path) for path in find_images([folder]).paths]
        ['a.JPG', 'b.png']
    """
    search = _Search()
    for position, place in enumerate([os.fspath(place) for place in places]):
        try:
            mode = os.stat(place).st_mode
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
            raise ValueError(f"{printable(place)}: {reason}") from error
        if stat.S_ISDIR(mode):
            search.walk(position, place, os.path.realpath(place))
        else:
            search.given.append((position, place))
    search.follow_links()
    left_out = search.left_out()
    if left_out:
        warnings.warn(f"{what}{': ' * bool(what)}{left_out}", stacklevel=2)
    given = [(position, *os.path.split(path)) for position, path in search.given]
    images = sorted([*search.files.values(), *given])
    paths = [os.path.join(folder, name) for _, folder, name in images]
    return FoundImages(paths, [position for position, _, _ in images])


@dataclass
class _Search:
    """What `find_images` has seen: files and folders by where they really lie."""

    files: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    given: list[tuple[int, str]] = field(default_factory=list)
    links: list[tuple[int, str, str]] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    others: dict[str, list[str]] = field(default_factory=dict)

    def walk(self, position: int, folder: str, real: str) -> None:
        """Take the images below a folder; links wait until all that lies there itself is known."""
        waiting = [(folder, real)]
        while waiting:
            folder, real = waiting.pop()
            if real in self.folders:
                continue
            self.folders.add(real)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                raise ValueError(
                    f"cannot list the folder {printable(folder)}: {error.strerror}"
                ) from error
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    self.links.append((position, folder, entry.name))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, os.path.join(real, entry.name)))
                elif entry.is_file(follow_symlinks=False):
                    self._take(position, folder, entry.name, os.path.join(real, entry.name))
                else:
                    self._leave("FIFOs, sockets or devices", entry.path)

    def follow_links(self) -> None:
        """Take what only links lead to."""
        while self.links:
            position, folder, name = self.links.pop(0)
            path = os.path.join(folder, name)
            try:
                mode = os.stat(path).st_mode
            except OSError:  # its target is gone, or it goes round
                self._leave("links to nothing", path)
                continue
            real = os.path.realpath(path)
            if real in self.folders or real in self.files:
                self._leave("links to what was found already", path)
            elif stat.S_ISDIR(mode):
                self.walk(position, path, real)
            elif stat.S_ISREG(mode):
                self._take(position, folder, name, real)
            else:
                self._leave("FIFOs, sockets or devices", path)

    def _take(self, position: int, folder: str, name: str, real: str) -> None:
        if is_image(name):
            self.files[real] = (position, folder, name)
        else:
            self.endings[os.path.splitext(name)[1].lower() or "no ending"] += 1

    def _leave(self, reason: str, path: str) -> None:
        self.others.setdefault(reason, []).append(path)

    def left_out(self) -> str:
        """One line, or nothing."""
        parts = []
        if self.endings:
            listed = [f"{printable(ending)} {n}" for ending, n in self.endings.most_common(8)]
            more = ", ..." * (len(self.endings) > 8)
            advice = ""
            if {".heic", ".heif"} & set(self.endings):
                advice = "; for .heic install pillow-heif"
            parts.append(
                f"{self.endings.total()} with endings that are not read as images "
                f"({', '.join(listed)}{more}{advice})"
            )
        for reason, paths in self.others.items():
            parts.append(
                f"{len(paths)} {reason} ({printable(paths[0])}{', ...' * (len(paths) > 1)})"
            )
        count = self.endings.total() + sum(map(len, self.others.values()))
        return f"left out {count} files: {'; '.join(parts)}" if parts else ""
