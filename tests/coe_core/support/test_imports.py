"""Imports of large libraries: garbage is not looked for meanwhile, and what is not used waits."""

import atexit
import gc
import importlib
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from coe_core.support.imports import put_off, uncollected


@pytest.fixture(autouse=True)
def set_aside(monkeypatch) -> list[str]:
    """What is called of the collector, but not done: the tests' own setting of it stays."""
    calls: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.setattr(atexit, "register", lambda call: calls.append(call.__name__))
    return calls


def test_new_modules_are_set_aside_until_the_end_and_the_collector_runs_again(
    monkeypatch, set_aside
):
    with uncollected():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "imported_here", gc)
    assert gc.isenabled()
    assert set_aside == ["freeze", "unfreeze"]


def test_nothing_is_set_aside_where_all_was_imported_before(set_aside):
    with uncollected():
        import json  # noqa: F401
    assert gc.isenabled()
    assert set_aside == []


def test_a_failed_import_and_a_collector_that_was_off(set_aside):
    gc.disable()
    try:
        with pytest.raises(ModuleNotFoundError), uncollected():
            import not_a_module  # noqa: F401
        assert not gc.isenabled()
        assert set_aside == []
    finally:
        gc.enable()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package whose modules tell when they are run; two of them and one that is broken wait."""
    ran = []
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(sys, "ran", ran, raising=False)
    package = tmp_path / "a_library"
    package.mkdir()
    tells = "import sys; sys.ran.append(__name__)\n"
    (package / "__init__.py").write_text(tells + "from a_library import slow, quick\n")
    (package / "quick.py").write_text(tells + "from a_library import slow\nuses = slow\n")
    (package / "slow.py").write_text(tells + "__all__ = ['four']\nfour = 4\nhidden = 5\n")
    (package / "circle.py").write_text(tells + "import a_library.circle as me\nme.later\nlater = 1")
    (package / "own.py").write_text(tells + "def __getattr__(name): return name * 2\n")
    put_off(*(f"a_library.{name}" for name in ("slow", "circle", "own", "missing")))
    yield ran
    for name in [name for name in sys.modules if name.partition(".")[0] == "a_library"]:
        del sys.modules[name]


def test_what_is_put_off_runs_when_it_is_used(library):
    import a_library

    assert library == ["a_library", "a_library.quick"]
    slow = sys.modules["a_library.slow"]
    assert a_library.slow is slow is a_library.quick.uses
    assert inspect.getmodule(put_off).__name__ == "coe_core.support.imports"  # looks at all modules
    assert not hasattr(slow, "__wrapped__")  # what is asked of every module
    assert slow.__file__.endswith("slow.py")
    assert library[2:] == []
    assert slow.four == 4
    assert slow.hidden == 5
    assert library[2:] == ["a_library.slow"]
    with pytest.raises(AttributeError, match=r"'a_library\.slow' has no attribute 'five'"):
        _ = slow.five


def test_all_names_are_there_for_a_star(library):
    names: dict = {}
    exec("from a_library.slow import *", names)
    assert set(names) - {"__builtins__"} == {"four"}


def test_threads_wait_until_all_is_there(library):
    slow = importlib.import_module("a_library.slow")
    together = threading.Barrier(4)

    def use(_):
        together.wait(10)
        return slow.four + slow.hidden

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(use, range(4))] == [9] * 4
    assert library.count("a_library.slow") == 1


def test_modules_that_fail_or_have_names_of_their_own(library):
    circle = importlib.import_module("a_library.circle")
    for _ in range(2):  # it fails again, not with something else
        with pytest.raises(AttributeError, match="has no attribute 'later'"):
            _ = circle.later
    assert library.count("a_library.circle") == 2
    assert importlib.import_module("a_library.own").a == "aa"
    with pytest.raises(ModuleNotFoundError, match=r"a_library\.missing"):
        importlib.import_module("a_library.missing")


def test_what_is_imported_already_stays(library):
    import json

    put_off("json")
    assert importlib.import_module("json") is json
    assert json.loads("1") == 1
