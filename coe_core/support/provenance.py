"""Where a result comes from: command, commit, versions, machine, date."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

TOOLKIT = "collaboration-of-experts"
UNKNOWN = "unknown"


def toolkit_version() -> str:
    """Version of this toolkit as it is installed; "unknown" where it runs without installation."""
    return versions([TOOLKIT]).get(TOOLKIT, UNKNOWN)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions by package; what is not installed is left out.

    Example:
        >>> list(versions(["torch", "no-such-package"]))
        ['torch']
    """
    known = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known


@functools.cache
def commit() -> str | None:
    """Commit of this toolkit's own checkout, "-dirty" with changes; None where it is none.

    An installed package may lie inside somebody's repository: its commit would say nothing.
    """
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    commands = (
        [*git, "ls-files", "--error-unmatch", here.name],
        [*git, "describe", "--always", "--dirty", "--abbrev=12"],
    )
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def processor() -> str:
    """Name of the processor, such as for tables of measured times; no name of the machine.

    Example:
        >>> len(processor()) > 0
        True
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names and names[0]:
            return names[0]
    return platform.processor() or platform.machine()


def provenance(packages: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    """Plain values to keep beside a result.

    Args:
        packages: whose versions matter, beside this toolkit's own; those not installed are left out.
        more: what else the result depends on.

    Example:
        >>> record = provenance(["torch"], data="digits")
        >>> list(record)
        ['command', 'commit', 'packages', 'python', 'processor', 'cores', 'date', 'data']
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "packages": versions([TOOLKIT, *packages]),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        **more,
    }
