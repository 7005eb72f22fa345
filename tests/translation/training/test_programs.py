"""Programs in processes of their own: output, status, and that none outlives the run."""

import os
import signal
import time

import pytest

from translation.training import programs
from translation.training.programs import Program, ProgramError, run_all

pytestmark = pytest.mark.process


@pytest.mark.parametrize("can_fork", [True, False])
def test_output_status_and_log(tmp_path, monkeypatch, can_fork):
    monkeypatch.setattr(programs, "_CAN_FORK", can_fork and programs._CAN_FORK)
    log, lines = tmp_path / "logs" / "a.log", []
    run_all([lambda: Program(["coe-translation", "user-dir"], log, lines.append)])
    assert lines[0].endswith("translation")
    assert log.read_text().startswith("$ coe-translation user-dir\n")
    assert "(status 0, " in log.read_text()
    out = tmp_path / "out"
    run_all([lambda: Program(["coe-translation", "user-dir"], log, output=out)])
    assert out.read_text().strip() == lines[0]
    with pytest.raises(
        ProgramError, match=r"^coe-translation check: none: no such file; all it said is in"
    ):
        run_all([lambda: Program(["coe-translation", "check", "none"], log)])


def test_where_one_fails_the_others_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setitem(programs.ENTRIES, "waits", "signal:pause")
    started = []

    def wait():
        started.append(Program(["waits"], tmp_path / "waits.log"))
        return started[0]

    fails = lambda: Program(["coe-translation", "check", "none"], tmp_path / "fails.log")  # noqa: E731
    with pytest.raises(ProgramError, match="no such file"):
        run_all([wait, fails], at_once=2)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


def test_a_killed_program_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(programs.ENTRIES, "waits", "signal:pause")

    def killed():
        program = Program(["waits"], tmp_path / "log")
        os.kill(program.pid, signal.SIGKILL)
        return program

    with pytest.raises(
        ProgramError, match=r"waits: ended by signal 9 \(the system does this where memory"
    ):
        run_all([killed])


@pytest.mark.skipif(not programs._CAN_FORK, reason="programs are started anew here")
def test_no_program_outlives_a_killed_run(tmp_path, monkeypatch):
    monkeypatch.setitem(programs.ENTRIES, "waits", "signal:pause")
    monkeypatch.setattr(programs, "_alive", [])
    reading, writing = os.pipe()
    run = os.fork()
    if run == 0:
        program = Program(["waits"], tmp_path / "log")
        os.write(writing, str(program.pid).encode())
        signal.pause()
        os._exit(0)
    pid = int(os.read(reading, 20))
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if _is_zombie(pid):
            break
    else:
        pytest.fail("the program lives on")


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and only waits for whoever adopted it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
