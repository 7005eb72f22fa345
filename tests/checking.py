"""Annotations are checked while tests run, shapes included: by beartype, through jaxtyping's import hook."""

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any, BinaryIO

import beartype
import jaxtyping

ROOT = Path(__file__).parents[1]
UNCHECKED = {  # modules that name shapes and are not checked, and why
    "coe_core._compiled": "plain functions, for numba",
    "coe_core._transport_kernels": "plain functions, for numba",
    "vision.networks.own.small_resnet": "torch.fx follows it with proxies in the place of images",
    "vision.networks.pwlu.layer": "torch.compile cannot trace a check",
    "vision.networks.pwlu.operator": "torch.library reads the types of its operators itself",
}
check = beartype.beartype(
    conf=beartype.BeartypeConf(
        is_pep484_tower=True,
        # beartype takes what has no mode, such as BytesIO, for no file
        hint_overrides=beartype.FrozenDict({BinaryIO: io.IOBase}),
    )
)


TIMES = 4  # that one inside another function is given checks
decorate = jaxtyping.jaxtyped
made: Counter[CodeType] = Counter()


def install() -> None:
    """Check the annotations of modules that are imported from now on."""
    assert "coe_core" not in sys.modules, "imported before its annotations could be checked"
    jaxtyping.jaxtyped = jaxtyped  # what the hook puts before every function
    names = checked_modules()
    # The hook names bytecode by this text, also that of unchecked modules which a checked one imports.
    key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
    jaxtyping.install_import_hook(names, f"tests.checking.by('{key}')")


def checked_modules() -> list[str]:
    """All of the core, and every module of the adapters that names a shape."""
    found = [*(ROOT / "coe_core").glob("*.py")]
    for adapter in ("vision", "translation"):
        for path in (ROOT / adapter).rglob("*.py"):
            if "\nfrom jaxtyping import" in path.read_text(encoding="utf-8"):
                found.append(path)
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found}
    assert UNCHECKED.keys() <= names, "excepted, but not there"
    return sorted(names - UNCHECKED.keys())


def by(key: str):
    """What checks a function, whatever the key."""
    return lambda function, *_, **__: check(function)


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """jaxtyping's own, but that a function inside another, made in every call, is checked the first times.

    To give it checks takes milliseconds, and calibration makes hundreds of such functions.
    """

    def checked(function: Any) -> Any:
        code = getattr(function, "__code__", None)
        if code is not None and "<locals>" in function.__qualname__:
            made[code] += 1
            if made[code] > TIMES:
                return function
        return decorate(function, typechecker=typechecker)

    return checked
