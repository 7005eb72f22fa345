"""Every test that docs/reliability.md and the table of what is safe to load name is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
TESTS = {
    path: {n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)}
    for path, text in FILES.items()
}
PAGES = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("reliability.md",)}
_deployment = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
PAGES["deployment.md"] = re.search(r"\n## What is safe to load.*?(?=\n## )", _deployment, re.S)[0]


def named(page: str) -> list[tuple[str, str]]:
    """(file, test) of every test that a page names; the file is that named last in its line, or none."""
    pairs = []
    for line in page.splitlines():
        file = ""
        for name in re.findall(r"`([\w/]*test_\w+(?:\.py)?)`", line):
            if name.endswith(".py"):
                file = name
                pairs.append((file, ""))
            else:
                pairs.append((file, name))
    return pairs


def is_there(file: str, test: str) -> bool:
    places = [path for path in TESTS if not file or f"/{path.as_posix()}".endswith(f"/{file}")]
    return any(not test or test in TESTS[path] for path in places)


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page):
    pairs = named(PAGES[page])
    assert len({test for _, test in pairs if test}) > 25
    assert [pair for pair in pairs if not is_there(*pair)] == []


def test_what_is_safe_has_a_test_in_every_row():
    rows = re.findall(r"^\| (?!safe|file|\*\*)(.*) \|$", PAGES["deployment.md"], flags=re.M)
    rows = [row for row in rows if not row.startswith("--")]
    own = ("`runner.py` is a program", "`--model-overrides`")  # nothing is promised of them
    assert len(rows) > 15
    assert [row for row in rows if "`test_" not in row and not row.startswith(own)] == []


def test_the_test_can_fail():
    assert not is_there("test_reliability.py", "test_of_nothing")
    assert not is_there("test_nothing.py", "")
    assert named("`x/test_a.py`: `test_b`, `test_c`; `test_d.py`: `test_e`") == [
        *(("x/test_a.py", ""), ("x/test_a.py", "test_b"), ("x/test_a.py", "test_c")),
        *(("test_d.py", ""), ("test_d.py", "test_e")),
    ]
