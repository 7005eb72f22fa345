"""Train a recipe into a run folder, on Lightning."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def _load_torchmetrics() -> None:
    """Import torchmetrics, which Lightning brings along, without what its own imports would load.

    Where torchvision, scipy and matplotlib are installed, it loads them for metrics that are not used
    here: more time than torch itself takes. To it they count as not installed, in this process.
    """
    if "torchmetrics" in sys.modules:
        return
    try:
        checks: Any = importlib.import_module("lightning_utilities.core.imports")
        cache: Any = checks.RequirementCache
        available = checks.package_available
    except (ImportError, AttributeError):  # another version: it imports as it likes
        return
    left_out = ("torchvision", "scipy", "matplotlib")

    def package_available(name: str, *arguments: Any) -> bool:
        return name not in left_out and available(name, *arguments)

    class LeftOut(cache):
        def _check_available(self) -> None:
            if (self.requirement or "").startswith(left_out):
                self.available, self.message = False, "left out of the start"
            else:
                super()._check_available()

    checks.RequirementCache, checks.package_available = LeftOut, package_available
    try:
        importlib.import_module("torchmetrics")
    except ImportError:  # Lightning's own import says why
        return
    finally:
        checks.RequirementCache, checks.package_available = cache, available


_load_torchmetrics()
