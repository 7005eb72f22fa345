"""Imports of large libraries, at a lower price."""

from __future__ import annotations

import atexit
import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for garbage: what imports make stays until the end of the process.

    torch's compiler, which every training loads, makes a million objects. Python's collector would look
    through all of them again and again while they are made, and in each full collection afterwards: it
    waits, and what was imported is set aside from it (`gc.freeze`). Where nothing new was imported nothing
    is set aside.

    Example:
        >>> with uncollected():
        ...     import decimal
        >>> gc.isenabled()
        True
    """
    collects, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
            atexit.register(gc.unfreeze)  # else libraries report at the end what was not collected
        if collects:
            gc.enable()


def put_off(*names: str) -> None:
    """Import these modules when something of them is first used, not when they are first named.

    For what a library imports by itself and this program does not use. The module is there, and the rest of
    Python notices nothing, but that what the module does while it is imported (entering a class in a list,
    say) is done later, or never. A package that waits does not keep its modules waiting. The standard
    library's `importlib.util.LazyLoader` has the same aim, but loads whatever `inspect` looks at, and that is
    every module.

    Args:
        names: whole names of modules. One that is imported already stays as it is.

    Example:
        >>> put_off("this")  # whose import prints
        >>> import this
        >>> len(this.d)  # doctest: +ELLIPSIS
        The Zen of Python, by Tim Peters
        ...
        52
    """
    if _put_off not in sys.meta_path:
        sys.meta_path.insert(0, _put_off)
    _put_off.names.update(names)


class _PutOff:
    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.names else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Waiting(spec.loader)  # type: ignore[assignment]  # one without the base class, whose import takes long
        return spec


_put_off = _PutOff()


class _Waiting:
    """Leaves a module empty; its first use has the module's own loader fill it."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        lock, content, waits = threading.RLock(), vars(module), True
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader

        def first_use(name: str) -> Any:
            nonlocal waits
            missing = AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            if name.startswith("__") and name != "__all__":  # what is asked of every module
                raise missing
            with lock:  # other threads wait until all is there
                if waits:
                    waits = False
                    try:
                        self.loader.exec_module(module)
                    except BaseException:
                        waits = True
                        raise
                    if content.get("__getattr__") is first_use:
                        del content["__getattr__"]
                elif name not in content and content.get("__getattr__") is first_use:
                    raise missing  # a circle of imports: not there yet
            return getattr(module, name)

        content["__getattr__"] = first_use
