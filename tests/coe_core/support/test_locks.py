"""Locks of folders and files: one owner, named; gone with its process; none left behind."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from coe_core.support import locks
from coe_core.support.locks import LockedError, lock_path, locked

# Holds the lock, tells that it does, and ends in one of several ways.
HOLDER = """
import os, sys, time
from coe_core.support.locks import locked
with locked(sys.argv[1]):
    if sys.argv[2] == "fork":
        born, says = os.pipe()
        if os.fork() == 0:
            os.write(says, b"!")  # it has left the lock to its parent by now
            time.sleep(60)
            os._exit(0)
        os.read(born, 1)
    print("held", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "crash":
        raise RuntimeError("crash")
"""


def holder(target, how="leave"):
    command = [sys.executable, "-c", HOLDER, str(target), how]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdout.readline() == "held\n"
    return child


@pytest.fixture(params=["folder", "file", "new file", "long name"])
def target(request, tmp_path):
    if request.param == "folder":
        return tmp_path
    path = tmp_path / ("x" * 255 if request.param == "long name" else "results\n#::.csv")
    if request.param == "file":
        path.write_text("kept")
    return path


@pytest.mark.process
def test_a_second_owner_is_refused_by_name_and_nothing_is_left(target):
    child = holder(target)
    expected = (
        rf"is being written by .*process {child.pid} on {socket.gethostname()}, since .*; stop"
    )
    with pytest.raises(LockedError, match=expected) as refused, locked(target, "stop it"):
        pass
    assert refused.value.owner.pid == child.pid
    child.communicate("\n")
    assert not lock_path(target).exists()
    with locked(target):
        assert lock_path(target).exists()
    assert not lock_path(target).exists()


@pytest.mark.process
@pytest.mark.parametrize("how", ["crash", signal.SIGTERM, signal.SIGKILL, "fork"])
def test_it_ends_with_its_owner(tmp_path, how):
    """However that ends; a child that it forked and left does not keep it."""
    child = holder(tmp_path, "fork" if how == "fork" else "crash")
    if how == "crash":
        child.communicate("\n")
    else:
        child.send_signal(signal.SIGKILL if how == "fork" else how)
        child.wait()
    said = []
    with locked(tmp_path, say=said.append):
        pass
    if how == "crash":  # Python's own end tidied up
        assert said == []
    else:
        assert len(said) == 1
        assert re.search(rf"process {child.pid} on .* was left behind; taken over", said[0])
    assert list(tmp_path.iterdir()) == []


def test_not_twice_in_one_process_and_not_by_two_threads(tmp_path):
    entered, release, errors = threading.Event(), threading.Event(), []

    def hold():
        with locked(tmp_path):
            entered.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    with pytest.raises(LockedError, match=f"process {os.getpid()} on"), locked(tmp_path):
        errors.append("entered")
    release.set()
    thread.join()
    with locked(tmp_path):
        pass
    assert errors == []


@pytest.mark.process
def test_many_at_once_and_only_one_inside(tmp_path):
    """Locks come and go: whoever gets one is alone."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_contend, args=(tmp_path,)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def _contend(folder):
    entered = 0
    while entered < 25:
        try:
            with locked(folder):
                inside = os.open(
                    folder / "inside", os.O_CREAT | os.O_EXCL
                )  # fails where it is not alone
                os.close(inside)
                (folder / "inside").unlink()
                entered += 1
        except LockedError:
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"\xff" * 9, b"[" * 5000])
def test_a_damaged_record_is_no_obstacle(tmp_path, content):
    lock_path(tmp_path).write_bytes(content)
    with locked(tmp_path):
        assert json.loads(lock_path(tmp_path).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("host", "pid", "refused"),
    [(None, os.getpid(), True), (None, 2**22 + 1, False), ("elsewhere", 1, True)],
    ids=["runs", "gone", "other-host"],
)
def test_without_the_kernels_locks_the_record_decides(tmp_path, monkeypatch, host, pid, refused):
    monkeypatch.setattr(locks, "fcntl", None)
    record = {
        "pid": pid,
        "host": host or socket.gethostname(),
        "since": "today",
        "command": "train",
    }
    lock_path(tmp_path).write_text(json.dumps(record))
    said = []
    if refused:
        message = (
            r"train, process .*; wait for it or stop it, or remove .*\.lock if that process is gone"
        )
        with pytest.raises(LockedError, match=message), locked(tmp_path):
            pass
        assert lock_path(tmp_path).exists()
        return
    refusal = pytest.raises(LockedError, match="is being written by")
    with locked(tmp_path, say=said.append), refusal, locked(tmp_path):
        pass
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe"])
def test_what_is_no_file_in_the_place_of_a_lock(tmp_path, kind):
    """A run of a stranger may hold a link to a file of the user, who may not lose that."""
    path, other = lock_path(tmp_path), tmp_path / "diary"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(other)
    if kind == "link":
        other.write_text("kept")
    message = r"\.lock is a link, a folder or a pipe, .*: remove it"
    with pytest.raises(ValueError, match=message), locked(tmp_path):
        pass
    assert os.path.lexists(path)
    assert other.exists() == (kind == "link")
    assert kind != "link" or other.read_text() == "kept"


def test_what_is_no_file_needs_no_lock(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with locked(tmp_path / "pipe"), locked(tmp_path / "pipe"), locked("/dev/null"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_folder_that_cannot_be_written():
    message = r"the lock /proc/\.lock cannot be made: "
    with pytest.raises(OSError, match=message), locked("/proc"):
        pass
