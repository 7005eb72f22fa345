"""Imports of large libraries: garbage is not looked for meanwhile, and looked for again afterwards."""

import atexit
import gc
import sys
from collections.abc import Iterator

import pytest

from coe_core.support.imports import uncollected


@pytest.fixture(autouse=True)
def collected_as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    atexit.unregister(gc.unfreeze)


def test_new_modules_are_set_aside_and_the_collector_runs_again(monkeypatch):
    frozen = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "imported_here", gc)
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_nothing_is_set_aside_where_all_was_imported_before():
    gc.unfreeze()
    with uncollected():
        import json  # noqa: F401
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_failed_import_and_a_collector_that_was_off():
    gc.disable()
    try:
        with pytest.raises(ModuleNotFoundError), uncollected():
            import not_a_module  # noqa: F401
        assert not gc.isenabled()
    finally:
        gc.enable()
