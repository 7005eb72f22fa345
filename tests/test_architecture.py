"""Who imports whom: rooms, floors, no circles; and no file or function that is too long to take in."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import grimp
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


def heavy_modules_after(python: Path, *statements: str) -> list[set[str]]:
    """Which of the heavy packages an interpreter has loaded after each of the statements."""
    show = "; import sys; print(*sys.modules)\n"
    process = subprocess.run(
        [python, "-c", show.join([*statements, ""])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [{name.split(".")[0] for name in line.split()} for line in process.stdout.splitlines()]
    assert len(lines) == len(statements)
    return [loaded & HEAVY for loaded in lines]


def test_the_core_loads_no_trainer_and_no_images(warm):
    own, more = heavy_modules_after(
        warm("torch") / "python",
        "import coe_core; coe_core.balanced_assignment",
        "import matplotlib",
    )
    assert own == set()
    assert "matplotlib" in more  # so the line above can fail


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    imported = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; name the package"
            imported.add(node.module.split(".")[0])
    return imported


@pytest.mark.slow
@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_imports_against_the_arrows(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imports(path) & FORBIDDEN[package] for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.slow
def test_the_scan_sees_imports():
    assert {"torch", "jaxtyping", "coe_core"} <= imports(ROOT / "coe_core" / "objective.py")
    assert "scipy" in imports(ROOT / "coe_core" / "calibration.py")  # inside a function
    assert "coe_core" in set().union(*map(imports, (ROOT / "vision").rglob("*.py")))


@pytest.mark.process
def test_rooms_and_floors():
    """The contracts of pyproject.toml."""
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [script, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " 0 broken" in done.stdout
    assert "4 kept" in done.stdout


def circle(imported: dict[str, set[str]]) -> set[str]:
    """Modules that import each other around a circle, or lie between two; empty: there is none."""
    left = dict(imported)
    while True:
        ends = {name for name, others in left.items() if not others & left.keys()}
        needed = set().union(*left.values())
        ends |= {name for name in left if name not in needed}
        if not ends:
            return set(left)
        left = {name: others for name, others in left.items() if name not in ends}


def test_no_circles():
    packages = ("coe_core", "vision", "translation")
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    imported = {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}
    assert "vision.run" in imported["vision.evaluation.evaluate"]
    assert circle(imported) == set()
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines; of a function without its docstring
LONGER: dict[str, str] = {}  # with the reason: none is needed


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without those of its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    first = function.body[0]
    return lines - (first.end_lineno - first.lineno + 1)


def too_long() -> dict[str, int]:
    lines_of = {}
    for package in ("coe_core", "vision", "translation", "benchmarks", "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
            if (lines := text.count("\n")) > LONGEST_FILE:
                lines_of[name] = lines
            for node in nodes_of(path) if package != "tests" else ():
                is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                if is_function and (lines := code_lines(node)) > LONGEST_FUNCTION:
                    lines_of[f"{name}:{node.name}"] = lines
    return lines_of


@pytest.mark.slow
def test_nothing_is_too_long_to_take_in():
    lines_of = too_long()
    assert lines_of.keys() == LONGER.keys(), lines_of
    example = ast.parse('def f():\n    """One\n    two."""\n    return 1\n').body[0]
    assert code_lines(example) == 2
