"""Arrows between the packages: coe_core <- vision, translation, and never between those two."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("fairseq", "jsonargparse", "lightning", "matplotlib", "pytorch_lightning", "sklearn"),
    *("tensorboard", "timm", "torchvision", "translation", "vision"),
}
FORBIDDEN = {
    "coe_core": HEAVY - {"matplotlib"},  # coe_core.support draws, and loads it then
    "vision": {"translation", "fairseq"},
    "translation": {"vision", "lightning", "timm", "torchvision"},
}


def heavy_modules_after(statement: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after the statement."""
    process = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert "sys" in loaded
    return loaded & HEAVY


def test_the_core_loads_no_trainer_and_no_images():
    assert heavy_modules_after("import coe_core; coe_core.balanced_assignment") == set()


def test_the_test_above_can_fail():
    assert "matplotlib" in heavy_modules_after("import coe_core, matplotlib")


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; name the package"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_against_the_arrows(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imports(path) & FORBIDDEN[package] for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_scan_sees_imports():
    assert {"torch", "jaxtyping", "coe_core"} <= imports(ROOT / "coe_core" / "objective.py")
    assert "scipy" in imports(ROOT / "coe_core" / "calibration.py")  # inside a function
    assert "coe_core" in set().union(*map(imports, (ROOT / "vision").rglob("*.py")))
