"""For all tests: annotations are checked, shapes included; marks say what starts processes, what is slow."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

os.environ["COE_CACHE"] = "off"  # decoded images of tests are not kept in the developer's cache
# A model that fairseq imports sets the root's level to DEBUG where it has no handler: then every library's
# every line is written out for every test.
logging.getLogger().addHandler(logging.NullHandler())
assert "coe_core" not in sys.modules, "imported before its annotations could be checked"
CORE = Path(__file__).parents[1] / "coe_core"
ADAPTERS = (  # their modules whose annotations are checked, too; not what is traced, or read by fairseq
    *("translation.evaluation.metrics", "translation.evaluation.systems"),
    *("translation.generation.generator", "translation.generation.routers"),
    *("vision.evaluation.predictions", "vision.evaluation.stages", "vision.networks.team"),
)


def checked_modules() -> list[str]:
    """All of the core but the kernels, which are compiled and must stay plain functions."""
    core = [f"coe_core.{path.stem}" for path in CORE.glob("*.py")]
    kernels = {"coe_core._compiled", "coe_core._transport_kernels"}
    return [name for name in (*core, *ADAPTERS) if name not in kernels]


jaxtyping.install_import_hook(
    checked_modules(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

settings.register_profile("offline", deadline=None, max_examples=60, derandomize=True)
settings.register_profile(  # make fuzz; what is marked fuzz sets no number of its own
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "10000")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("offline")

MARKED_BY_FIXTURE = {
    "apart": "process",
    "loaded_after": "process",
    "ranks": "process",
    "warm": "process",
    **dict.fromkeys(["trained", "trained_run", "cotrained", "digits", "study", "corpus"], "slow"),
    **dict.fromkeys(["small_export", "saves", "converted_once"], "slow"),
}
STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
unmarked: list[
    str
] = []  # the test that runs now, in a run of those that start no processes (make quick)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in MARKED_BY_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKED_BY_FIXTURE[fixture])


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
        if program != "git":  # tells which commit a result is of; takes milliseconds
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


def loaded_after(program: str, calls: list[list[object]]) -> list[set[str]]:
    """Which of the watched modules one process has loaded after each of the calls."""
    words = [[str(word) for word in call] for call in calls]
    done = subprocess.run(
        [sys.executable, "-c", CALLER, json.dumps([program, words]), json.dumps(WATCHED)],
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
def _loaded_after() -> Callable[[str, list[list[object]]], list[set[str]]]:
    return loaded_after


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Folder of ``python`` and an adapter's commands, served by one process that has imported all."""
    servers: dict[str, tuple[Path, subprocess.Popen]] = {}

    def start(adapter: str) -> Path:
        if adapter not in servers:
            folder = tmp_path_factory.mktemp("bin")
            server = subprocess.Popen(
                [sys.executable, "-W", "ignore", CORE.parent / "tests/warm.py", folder, adapter],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=CORE.parent,
                env={**os.environ, "PYTHONPATH": str(CORE.parent), "OMP_NUM_THREADS": "1"},
            )
            servers[adapter] = folder, server
            assert server.stdout.readline() == b"ready\n"
        return servers[adapter][0]

    yield start
    for _, server in servers.values():
        # Not by the end of its input alone: workers that a test has forked may hold that open.
        server.stdin.close()
        server.kill()
        server.wait()
