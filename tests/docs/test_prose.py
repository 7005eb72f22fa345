"""Prose has one sentence a line, so that a changed sentence is a changed line.

To write a page so: ``python tests/docs/test_prose.py PAGE ...``.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md")])
END = re.compile(r"(?<=[.!?])([)\"'”*_`]*)\s+(?=[\"'“(\[`*_A-Z0-9])")
ABBREVIATED = re.compile(r"\b(e\.g|i\.e|cf|vs|etc|al|approx|Fig|No|St|Dr)\.[)*_`]*$")
ITEM = re.compile(r"^(\s*)(?:[-*+]|\d+\.)\s+")
MAX_LENGTH = 300


def sentences(text: str) -> list[str]:
    split, start = [], 0
    for end in END.finditer(text):
        sentence = text[start : end.end(1)]
        # Not within code, and not behind an abbreviation.
        if sentence.count("`") % 2 or ABBREVIATED.search(sentence):
            continue
        split.append(sentence.strip())
        start = end.end()
    return [*split, text[start:].strip()]


def with_a_sentence_a_line(page: str) -> str:
    """The page with every paragraph and list item so; all else is left as it is."""
    written: list[str] = []
    paragraph: list[str] = []
    in_code = False

    def close() -> None:
        if not paragraph:
            return
        item = ITEM.match(paragraph[0])
        first = item.group(0) if item else re.match(r"\s*", paragraph[0]).group(0)
        text = " ".join(line.strip() for line in [paragraph[0][len(first) :], *paragraph[1:]])
        lead = first
        for sentence in sentences(text):
            written.append(lead + sentence)
            lead = " " * len(first)
        paragraph.clear()

    for line in page.splitlines():
        if line.lstrip().startswith("```"):
            in_code = not in_code
            close()
            written.append(line)
        elif in_code or not line.strip() or re.match(r"\s*(\||#|>|<|!\[|\[[^\]]+\]: )", line):
            close()
            written.append(line)
        else:
            if ITEM.match(line):
                close()
            paragraph.append(line)
    close()
    return "\n".join(written) + "\n"


def test_the_pages_are_found():
    assert {"README.md", "docs/method.md", "docs/results.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_one_sentence_a_line(page):
    text = page.read_text(encoding="utf-8")
    wanted = with_a_sentence_a_line(text)
    for number, (line, better) in enumerate(
        zip(text.splitlines(), wanted.splitlines(), strict=False), 1
    ):
        assert line == better, f"line {number}; python {Path(__file__).name} {page.name} writes it"
    assert len(text.splitlines()) == len(wanted.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_is_endless(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s*[|!<]", line)]
    long = [line for line in lines if len(re.sub(r"\]\([^)]*\)", "]", line)) > MAX_LENGTH]
    assert long == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two.", 2),
        ("At 0.5 of 3.2 million, e.g. on CIFAR-10, it is level.", 1),
        ("Run `a. B` once. It (as said.) works! Does it? *Yes.* It does.", 5),
    ],
)
def test_sentences(text, count):
    assert len(sentences(text)) == count


def cells(line: str) -> int:
    """Of a table's row; a bar in code or behind a backslash divides none."""
    return re.sub(r"`[^`]*`|\\\|", "", line.strip()).count("|") - 1


def broken_rows(page: str) -> list[str]:
    """Rows of a page's tables that have other numbers of cells than the table's first."""
    text = re.sub(r"```.*?```", lambda code: "\n" * code[0].count("\n"), page, flags=re.DOTALL)
    broken, wanted = [], 0
    for line in text.splitlines():
        is_row = line.lstrip().startswith("|")
        wanted = (wanted or cells(line)) if is_row else 0
        if is_row and cells(line) != wanted:
            broken.append(line)
    return broken


def test_a_row_with_a_cell_too_many_is_found():
    table = "| a | b |\n| - | - |\n| `x|y` | 1 |\n| 2 |\n"
    assert broken_rows(table + "\n| c |\n| - |\n| 1 | 2 |\n") == ["| 2 |", "| 1 | 2 |"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_whole(page):
    assert broken_rows(page.read_text(encoding="utf-8")) == []


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_a_sentence_a_line(path.read_text(encoding="utf-8")), encoding="utf-8")
