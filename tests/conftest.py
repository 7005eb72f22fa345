"""For all tests: annotations are checked, shapes included; marks say what starts processes, what is slow."""

import atexit
import fcntl
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

from tests import checking

if sys.dont_write_bytecode and sys.pycache_prefix is None:
    # As the Makefile does: without bytecode a process that imports torch takes three times as long.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
gc.disable()  # until all is imported and collected: see `pytest_collection_finish`
os.environ["COE_CACHE"] = "off"  # decoded images of tests are not kept in the developer's cache
# A model that fairseq imports sets the root's level to DEBUG where it has no handler: then every library's
# every line is written out for every test.
logging.getLogger().addHandler(logging.NullHandler())
CORE = Path(__file__).parents[1] / "coe_core"
if not any("not fuzz" in word for word in sys.argv):  # a third of the time of make quick
    checking.install()

settings.register_profile("offline", deadline=None, max_examples=60, derandomize=True)
settings.register_profile(  # make fuzz; what is marked fuzz sets no number of its own
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "10000")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("offline"), max_examples=10)  # make quick
settings.load_profile("offline")

MARKED_BY_FIXTURE = {
    "apart": "process",
    "loaded_after": "process",
    "ranks": "process",
    "warm": "process",
    **dict.fromkeys(["trained", "trained_run", "cotrained", "digits", "study", "corpus"], "slow"),
    **dict.fromkeys(["small_export", "saves", "converted_once", "operators_once"], "slow"),
}
STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
unmarked: list[
    str
] = []  # the test that runs now, in a run of those that start no processes (make quick)


def pytest_configure(config: pytest.Config) -> None:
    if "not fuzz" in config.option.markexpr:  # make quick
        settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKED_BY_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKED_BY_FIXTURE[fixture])


def pytest_collection_finish() -> None:
    """What is there now stays: it is not looked through again and again, nor copied by what forks."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries report at the end what was not collected
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if "not process" in item.config.option.markexpr:
        unmarked.append(item.nodeid)
    try:
        return (yield)
    finally:
        unmarked.clear()


def no_process(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: a test that starts a process says so by its mark."""
    if unmarked and event in STARTS:
        program = Path(os.fsdecode(arguments[0])).name if event == "subprocess.Popen" else event
        # The commit that a result is of; what older numpy and matplotlib ask the machine when imported.
        if program not in ("git", "lscpu", "fc-list"):
            pytest.fail(f"{unmarked[0]} starts a process ({program}): mark it process")


sys.addaudithook(no_process)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Calls as users make them: nothing looks at the annotations before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


WATCHED = (
    *("torch", "torchvision", "timm", "lightning", "sklearn", "matplotlib", "scipy", "fairseq"),
    *("torch._dynamo", "sympy", "pandas", "tensorboard", "fastapi"),
)
CALLER = """
import contextlib, io, json, os, signal, sys, threading
program, calls = json.loads(sys.argv[1])
if program == "vision":
    from vision.commands.cli import main
else:
    from translation.commands.cli import main
def stop_serving(shown, ended):
    while not ended.wait(0.1):
        if shown.getvalue().startswith("serving "):
            os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: None)  # where no server is, or no longer
for words in calls:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        ended = threading.Event()
        threading.Thread(target=stop_serving, args=(out, ended)).start()
        try:
            status = main(words)
        finally:
            ended.set()
    loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([words, status, loaded, out.getvalue()[-500:]]))
"""


def loaded_after(
    program: str, calls: list[list[object]], python: str | Path = sys.executable
) -> list[set[str]]:
    """Which of the watched modules one process has loaded after each of the calls.

    Args:
        program: vision or translation.
        calls: words of its commands.
        python: ``warm("torch") / "python"`` where all calls need torch.
    """
    words = [[str(word) for word in call] for call in calls]
    done = subprocess.run(
        [python, "-c", CALLER, json.dumps([program, words]), json.dumps(WATCHED)],
        cwd=CORE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(calls), done.stderr
    for called, status, _, shown in lines:
        assert status == 0, (called, shown)
    return [set(line[2]) for line in lines]


@pytest.fixture(scope="session", name="loaded_after")
def _loaded_after() -> Callable[..., list[set[str]]]:
    return loaded_after


@pytest.fixture(scope="session")
def for_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of pytest-xdist share; without it, one of this process."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "for_all_workers"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While one process is inside, others that ask for the same path wait."""
    with path.open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # not flock, which what is forked inside would hold, too
        yield


@pytest.fixture(scope="session")
def made_once(
    for_all_workers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Own copy of a folder that the first worker to ask for it has made."""

    def copy_of(name: str, make: Callable[[Path], object]) -> Path:
        made, done = for_all_workers / name, for_all_workers / f"{name}.done"
        with alone(for_all_workers / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)  # of one that failed
                make(made)
                done.touch()
        return shutil.copytree(made, tmp_path_factory.mktemp(name) / name)

    return copy_of


@pytest.fixture(scope="session")
def warm(for_all_workers: Path) -> Iterator[Callable[[str], Path]]:
    """Folder of ``python`` and an adapter's commands, served by one process that has imported all.

    It serves all workers: each holds the folder's lock, and the server ends when none holds it.
    """
    held, servers = [], {}

    def start(adapter: str) -> Path:
        folder = for_all_workers / f"bin-{adapter}"
        if adapter not in servers:
            folder.mkdir(exist_ok=True)
            held.append((folder / "in_use").open("a+b"))
            fcntl.lockf(held[-1], fcntl.LOCK_SH)
            servers[adapter] = None
            with alone(folder / "starting"):
                if not (folder / "python").exists():
                    servers[adapter] = serve(folder, adapter)
        return folder

    yield start
    for file in held:
        file.close()
    for server in servers.values():
        if server is not None:
            server.wait()


def serve(folder: Path, adapter: str) -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", CORE.parent / "tests/warm.py", folder, adapter],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=CORE.parent,
        env={**os.environ, "PYTHONPATH": str(CORE.parent), "OMP_NUM_THREADS": "1"},
    )
    assert server.stdout.readline() == b"ready\n"
    return server
