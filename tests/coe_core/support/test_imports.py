"""Imports of large libraries: garbage is not looked for meanwhile, and looked for again afterwards."""

import atexit
import gc
import sys

import pytest

from coe_core.support.imports import uncollected


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
