"""Files whole or not at all; JSON with infinite numbers."""

import contextlib
import json
import math
import os
import resource
import signal

import pytest

from coe_core.support.files import (
    as_number,
    json_text,
    read_json,
    ready_to_write,
    sha256_of,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "old ±\r\n")
    assert path.read_bytes() == "old ±\r\n".encode()
    with contextlib.suppress(RuntimeError), whole_file(path) as temporary:
        assert temporary.suffix == ".csv"  # libraries go by it
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == "old ±\r\n".encode()
    assert os.listdir(tmp_path) == ["table.csv"]
    write_bytes(path, memoryview(b"new"))
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new", ["table.csv"])


@pytest.mark.parametrize("call", [write_bytes, whole_file])
def test_a_full_disk_and_a_folder_that_takes_no_file_are_told_with_the_files_name(tmp_path, call):
    """Not with the name of the temporary file beside it, nor with none."""

    def write(path):
        if call is write_bytes:
            write_bytes(path, b"x")
        else:
            with whole_file(path) as temporary:
                temporary.write_bytes(b"x")

    with pytest.raises(OSError, match=r"No such file or directory: '/proc/x'"):
        write("/proc/x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path / 'x'}'"):
            write(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def test_names_links_devices_and_modes(tmp_path):
    longest = tmp_path / ("x" * 251 + ".csv")
    write_text(longest, "long")
    assert longest.read_text() == "long"
    link = tmp_path / "link"
    link.symlink_to(longest)
    longest.chmod(0o640)
    write_text(link, "through it")
    assert link.is_symlink()
    assert (longest.read_text(), longest.stat().st_mode & 0o777) == ("through it", 0o640)
    write_text("/dev/null", "nowhere")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("none/x.json", FileNotFoundError, "x.json cannot be written: there is no folder .*none$"),
        (".", IsADirectoryError, "cannot be written: it is a folder"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        write_text(tmp_path / name, "x")


def test_whole_folder(tmp_path):
    empty, full, new = tmp_path / "empty", tmp_path / "full", tmp_path / "a" / "new"
    empty.mkdir()
    full.mkdir()
    (full / "mine").write_text("kept")
    for target in (empty, new):
        with contextlib.suppress(RuntimeError), whole_folder(target) as temporary:
            (temporary / "half").write_text("x")
            raise RuntimeError
        assert list(target.glob("*")) == []
        with whole_folder(target) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "file").write_text("x")
        assert [path.name for path in target.rglob("*")] == ["deep", "file"]
    for target, message in ((full, "full is not empty"), (full / "mine", "mine is a file")):
        with pytest.raises(ValueError, match=message), whole_folder(target):
            pass
    assert (full / "mine").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "full"]


def test_json_round_trip(tmp_path):
    path = tmp_path / "points.json"
    value = {
        "best": {"threshold": math.inf, "of": (1, 2.5, -math.inf, None, True)},
        "名": "ä\udcff",
    }
    write_json(path, value)
    stored = read_json(path)
    assert stored == {
        "best": {"threshold": "inf", "of": [1, 2.5, "-inf", None, True]},
        "名": "ä\udcff",  # the byte of a file name that is not UTF-8
    }
    assert json.loads(path.read_text()) == stored
    assert json_text({"名": 1}, indent=None) == '{"名": 1}\n'
    for wrong in (math.nan, {1, 2}, [math.nan]):
        with pytest.raises(ValueError, match="JSON"):
            json_text(wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "points.json cannot be read: No such file"),
        (b"", "points.json is not JSON: Expecting value"),
        (b'{"a": 1', "points.json is not JSON: Expecting"),
        (b"\xff\xfe{", "points.json is not JSON: it is not UTF-8 text"),
        (b"[" * 100_000, "points.json is not JSON of ours: it is nested too deeply"),
        (b"[1]", r"points.json holds \[1\] where keys and values should stand"),
        (b"null", "points.json holds None where keys and values should stand"),
        (b'"' + b"x" * 200 + b'"', r"holds 'x{56}\.\.\. where"),
    ],
)
def test_json_that_is_not_ours(tmp_path, content, message):
    path = tmp_path / "points.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_json_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to("round")
    for path, message in (
        (tmp_path / "pipe", "pipe cannot be read: it is no regular file"),
        (tmp_path, "cannot be read: it is no regular file"),
        (tmp_path / "round", "round cannot be read: Too many levels of symbolic links"),
        (tmp_path / "two\nlines", "two lines cannot be read: No such file or directory"),
    ):
        with pytest.raises(ValueError, match=message):
            read_json(path)


@pytest.mark.parametrize(
    "value", ["3", "nan", None, True, [1.0], {}, math.nan, 10**400, "Infinity"]
)
def test_what_is_no_number(value):
    with pytest.raises(ValueError, match="threshold must be a number, got"):
        as_number(value, "threshold")


def test_numbers():
    assert (as_number("-inf", "x"), as_number(2, "x"), as_number(0.5, "x")) == (-math.inf, 2.0, 0.5)


def test_digest(tmp_path):
    write_bytes(tmp_path / "a", b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_what_is_read_is_not_replaced(tmp_path):
    (tmp_path / "a").write_text("mine")
    (tmp_path / "link").symlink_to("a")
    for out, read in (("a", "a"), ("link", "a"), ("a", "link"), ("x/../a", "a")):
        with pytest.raises(
            ValueError, match="is read here, and would be overwritten; give another"
        ):
            ready_to_write(tmp_path / out, ["other", tmp_path / read])
    ready_to_write(tmp_path / "b", [tmp_path / "a"])
