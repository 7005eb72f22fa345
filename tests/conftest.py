"""For all tests: calls into coe_core are checked against its annotations, shapes included."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

os.environ["COE_CACHE"] = "off"  # decoded images of tests are not kept in the developer's cache
assert "coe_core" not in sys.modules, "imported before its annotations could be checked"
CORE = Path(__file__).parents[1] / "coe_core"
jaxtyping.install_import_hook(
    # Not the kernels: they are compiled, so they must stay plain functions.
    [f"coe_core.{path.stem}" for path in CORE.glob("*.py") if path.stem != "_transport_kernels"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

settings.register_profile("offline", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("offline")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Calls as users make them: nothing looks at the annotations before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
