"""The built wheel in an environment of its own: what a user installs holds everything it needs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEMO = """
import coe_core, coe_recipes, vision
from vision.commands.cli import main
print("from", vision.__file__, coe_core.__file__)
for words in (
    "recipes",
    "train digits data.train_fraction=0.2 train.epochs=1 --out run",
    "evaluate run --no-time",
    "predict run run/evaluation/examples",
):
    assert main(words.split()) == 0, words
"""
PARTS = ("coe_core", "vision", "translation", "recipes", "pyproject.toml", "README.md", "LICENSE")


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    program = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    run(sys.executable, "-W", "ignore", "-c", program, folder / "dist", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.process
def test_the_wheel_holds_every_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for package in ("coe_core", "vision", "translation"):
        files = [
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        assert len(files) > 10
        assert sorted(set(files) - packed) == []
    recipes = [path for path in (ROOT / "recipes").rglob("*.yaml")]
    assert len(recipes) > 20
    for path in recipes:
        assert f"coe_recipes/{path.relative_to(ROOT / 'recipes')}" in packed
    assert not [name for name in packed if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.process
def test_the_installed_wheel_runs_the_demo(wheel, tmp_path):
    """A fresh environment that borrows the dependencies, and of this project has the wheel alone."""
    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=tmp_path)
    (packages,) = fresh.glob("lib/python*/site-packages")
    borrowed = next(path for path in sys.path if path.endswith("site-packages"))
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")  # whose own .pth files do not count
    # The commands one after another in one process; loops not compiled, which takes longer than they do.
    printed = run(fresh / "bin/python", "-c", DEMO, cwd=tmp_path, NUMBA_DISABLE_JIT="1")
    assert f"from {fresh}" in printed
    assert "next: coe-vision evaluate run" in printed
    assert "single expert network" in printed
    assert "ended early" in printed or "expert " in printed


def test_every_package_is_listed():
    """setuptools finds none by itself, because one of them (coe_recipes) lies under another name."""
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    folders = [
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in ("coe_core", "vision", "translation")
        for path in (ROOT / package).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted([*folders, "coe_recipes"])


def test_the_version_has_its_changes():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = settings["project"]["version"]
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
