"""Programs by their own entry points, each in a process of its own that starts with everything imported.

fairseq and torch take seconds to import, and a run calls them a dozen times. Where the system can copy a
process (fork), one process imports them once and every program is a copy of it; elsewhere each is started
anew. What a program prints goes to its log and to whoever watches.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import translation
from coe_core.support.command import status_of
from coe_core.support.imports import put_off
from translation.plugin.loading import NOT_OF_TRANSLATION

ENTRIES = {
    "coe-translation": "translation.commands.cli:main",
    **{
        f"fairseq-{name}": f"fairseq_cli.{name}:cli_main"
        for name in ("preprocess", "train", "generate")
    },
}
_HEAVY = (
    *("fairseq_cli.preprocess", "fairseq_cli.train", "fairseq_cli.generate"),
    *("translation.evaluation.decode_all", "translation.evaluation.table", "sacrebleu"),
)
_FOR_TRAINING = ("torch._dynamo",)  # torch's optimisers import it when one is made
_CAN_FORK = (
    hasattr(os, "fork") and sys.platform == "linux"
)  # macOS's own libraries do not survive it
_STARTER = (  # its words: the entry point, then the program's own
    "import importlib, sys; sys.argv.pop(0); module, _, name = sys.argv.pop(0).partition(':'); "
    "sys.exit(getattr(importlib.import_module(module), name)())"
)


class ProgramError(ValueError):
    """A program ended with an error; the message is its last line."""


class Program:
    """One program that runs.

    Args:
        words: its command line; the first is a key of `ENTRIES`.
        log: file that all it prints is added to.
        watch: told every line.
        output: file that standard output goes to instead; standard error still goes to the log.
        threads: that it computes with; None: as many as torch chooses.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        watch: Callable[[str], object] = lambda line: None,
        output: Path | None = None,
        threads: int | None = None,
    ):
        self.words, self.log, self.watch = list(words), log, watch
        self.last = ""  # line that says something
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = log.open("ab")
        self._file.write(f"$ {shlex.join(self.words)}\n".encode())
        self._file.flush()
        self._rest = b""
        self.pipe, end = os.pipe()
        try:
            self.pid = _start(self.words, end, output, threads)
        finally:
            os.close(end)

    def read(self) -> bool:
        """Take what it has printed; False once it prints no more."""
        block = os.read(self.pipe, 1 << 16)
        *lines, self._rest = (self._rest + block).split(b"\n")
        if not block and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            text = line.decode("utf-8", "replace")
            self._file.write(line + b"\n")
            if text.strip():
                self.last = text.strip()
            self.watch(text)
        self._file.flush()
        return bool(block)

    def end(self) -> None:
        """Wait for its end.

        Raises:
            ProgramError: with its last line, where its status is not 0.
        """
        os.close(self.pipe)
        _, status, used = os.wait4(self.pid, 0)
        _running.discard(self.pid)
        code = os.waitstatus_to_exitcode(status)
        seconds = used.ru_utime + used.ru_stime
        self._file.write(f"(status {code}, {seconds:.1f} s of processor time)\n".encode())
        self._file.close()
        if code == 0:
            return
        name = " ".join(self.words[: 2 if self.words[0] == "coe-translation" else 1])
        reason = self.last.removeprefix(f"{name}: ").removeprefix("ValueError: ")
        if code < 0:
            reason = f"ended by signal {-code}"
            if code == -signal.SIGKILL:
                reason += " (the system does this where memory runs out)"
        raise ProgramError(f"{name}: {reason or f'status {code}'}; all it said is in {self.log}")


_running: set[int] = set()
_alive: list[int] = []  # both ends of a pipe that is open as long as this process lives


def run_all(programs: Iterable[Callable[[], Program]], at_once: int = 1) -> None:
    """Run programs, so many at once; where one fails the others are stopped.

    Args:
        programs: each starts one when it is its turn.
        at_once: how many.

    Raises:
        ProgramError: see `Program.end`.
    """
    waiting = iter(programs)
    selector = selectors.DefaultSelector()
    try:
        for start in _first(waiting, at_once):
            selector.register((program := start()).pipe, selectors.EVENT_READ, program)
        while selector.get_map():
            for key, _ in selector.select():
                if key.data.read():
                    continue
                selector.unregister(key.fd)
                key.data.end()
                for start in _first(waiting, 1):
                    selector.register((program := start()).pipe, selectors.EVENT_READ, program)
    except BaseException:
        stop_all()
        raise
    finally:
        selector.close()


def _first(waiting: Iterator[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        with contextlib.suppress(StopIteration):
            yield next(waiting)


def stop_all() -> None:
    """End all programs that run."""
    for pid in list(_running):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        _running.discard(pid)


def warm(trains: bool) -> None:
    """Import what the programs need, once for all of them.

    Args:
        trains: whether they also train.
    """
    if not _CAN_FORK:
        return
    with warnings.catch_warnings(action="ignore"):
        logging.disable(logging.INFO)
        put_off(*NOT_OF_TRANSLATION)
        for module in (*_HEAVY, *(_FOR_TRAINING if trains else ())):
            importlib.import_module(module)
        if trains:  # the portions' compiled loops are loaded when they are first used
            torch = importlib.import_module("torch")
            importlib.import_module("coe_core.transport").balanced_assignment(torch.zeros(2, 2))
        translation.register()  # the package may have been imported before fairseq
        logging.disable(logging.NOTSET)
    root = logging.getLogger()  # fairseq has set it up for a program of its own
    root.handlers.clear()
    root.setLevel(logging.WARNING)


def _start(words: list[str], end: int, output: Path | None, threads: int | None) -> int:
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    if not _CAN_FORK:
        with contextlib.ExitStack() as stack:
            out = end if output is None else stack.enter_context(output.open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-c", _STARTER, ENTRIES[words[0]], *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=end,
                env=environment,
            )
        _running.add(process.pid)
        return process.pid
    if not _alive:
        _alive.extend(os.pipe())
    for stream in (sys.stdout, sys.stderr):  # or the copy would print it, too
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid:
        _running.add(pid)
        return pid
    status = 70
    try:
        status = _become(words, end, output, environment, threads)
    finally:
        os._exit(status)


def _become(
    words: list[str],
    end: int,
    output: Path | None,
    environment: dict[str, str],
    threads: int | None,
) -> int:
    """Be that program, in the copy; returns its exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.close(_alive[1])
    threading.Thread(target=_die_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = end if output is None else os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for place, file in enumerate((nothing, out, end)):
        os.dup2(file, place)
    sys.stdin, sys.stdout, sys.stderr = (
        open(place, mode, closefd=False, buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115
        for place, mode in enumerate("rww")
    )
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        level=logging.INFO,
        stream=sys.stdout if output is None else sys.stderr,
        force=True,
    )
    forget()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(words)
    if words[0].startswith("fairseq"):
        warnings.simplefilter("ignore")  # of its own and of its libraries, which nobody can act on
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    module, _, function = ENTRIES[words[0]].partition(":")
    return status_of(lambda: getattr(importlib.import_module(module), function)())


def forget() -> None:
    """What fairseq keeps for good in the process that this is a copy of: log levels, the best loss."""
    for name in ("fairseq", "fairseq_cli", "translation"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    if "fairseq_cli.train" in sys.modules:
        saving = sys.modules["fairseq.checkpoint_utils"].save_checkpoint
        stopping = sys.modules["fairseq_cli.train"].should_stop_early
        for function in (saving, stopping):
            vars(function).clear()


def _die_with_parent() -> None:
    os.read(_alive[0], 1)  # returns when the parent has ended, however that ended
    os.kill(os.getpid(), signal.SIGKILL)
