"""What every export of either adapter is written and judged by: routing.json, its runner, its check."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from datetime import date
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from coe_core.support.files import json_text, write_json, write_text
from coe_core.support.routing_file import FORMAT, content_digest, file_digest

RUNNER = "runner.py"
_OURS = ("coe_core", "vision", "translation")


class Parity(NamedTuple):
    """How an export agrees with what it was made from, on the same samples.

    A tie is a sample whose confidence is the threshold up to rounding: it may take either route.

    Example:
        >>> Parity("runner.py", 660, 659, 1, 659, 2e-6, 1e-4).holds
        True
        >>> print(Parity("runner.py", 660, 659, 1, 659, 2e-6, 1e-4).line("probabilities"))
        runner.py: 659 of 660 take the same route (1 as confident as the threshold), 659 have the same
        answer, probabilities differ by at most 2.0e-06
    """

    form: str  # which form of the export
    num_samples: int
    same_route: int
    ties: int
    same_answer: int  # label or text, of those whose route is the same
    max_difference: float  # of what ``line`` is told
    tolerance: float

    @property
    def holds(self) -> bool:
        """Same route but for ties, and differences within the tolerance."""
        different = self.num_samples - self.same_route
        return different <= self.ties and self.max_difference <= self.tolerance

    def line(self, what: str) -> str:
        """The result in words; ``what`` differs by `max_difference`."""
        return (
            f"{self.form}: {self.same_route} of {self.num_samples} take the same route ({self.ties} as "
            f"confident as the threshold), {self.same_answer} have the same answer, {what} differ by "
            f"at most {self.max_difference:.1e}"
        )


def standalone(runner: ModuleType) -> str:
    """Source of a runner that imports nothing of ours: each of our modules stands in place of its import.

    Such a module imports nothing of ours itself, but where types are checked.
    """
    assert runner.__file__ is not None, "a module of ours has a file"
    source = Path(runner.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    ours = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in _OURS
    ]
    for node in reversed(ours):
        assert node.module is not None, "no import of ours is relative"
        shared = Path(str(import_module(node.module).__file__)).read_text(encoding="utf-8")
        # Without its docstring and __future__ line: the runner has its own.
        kept = shared.splitlines()[ast.parse(shared).body[2].lineno - 1 :]
        lines[node.lineno - 1 : node.end_lineno] = kept
    return "\n".join([*lines, ""])


def write_routing(folder: Path, routing: dict[str, Any], runner: ModuleType | None) -> None:
    """Finish an export: its runner, then routing.json with a digest of every other file.

    Args:
        folder: with the networks.
        routing: the table of `routing_file` but for format, files and sha256.
        runner: module to be copied as runner.py; None: the form has none.
    """
    if runner is not None:
        write_text(folder / RUNNER, standalone(runner))
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RUNNER)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in paths
    }
    content = json.loads(json_text({"format": FORMAT, **routing, "files": files}))
    write_json(folder / "routing.json", {**content, "sha256": content_digest(content)})


def provenance_of(checkpoint: str, packages: Sequence[str], **more: Any) -> dict[str, Any]:
    """What an export says of its origin."""
    return {
        "checkpoint": checkpoint,
        "date": date.today().isoformat(),
        "packages": {name: metadata.version(name) for name in packages},
        **more,
    }
