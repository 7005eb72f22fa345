"""Mean and spread, tables, pictures, progress, provenance."""

import io
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coe_core.support import provenance as provenance_module
from coe_core.support import reports
from coe_core.support.progress import ProgressLine, duration, progress
from coe_core.support.provenance import commit, provenance
from coe_core.support.reports import Curve, Panel, Point, averaged, mean_and_spread

ROOT = Path(__file__).parents[3]


def test_mean_and_spread():
    assert mean_and_spread([1, 2, 3]) == (2, 1, 3)
    assert mean_and_spread([2, None, math.nan]) == (2, None, 1)
    assert mean_and_spread([]) == (None, None, 0)
    assert [mean_and_spread(v).shown(1) for v in ([2], [1, 3], [])] == ["2.0", "2.0 ± 1.4", "-"]


def test_tables():
    rows = [["a|b\nc", "1.0"], ["[red]", "2.0"]]
    assert reports.markdown_table(["name", "%"], rows).splitlines() == [
        "| name | % |",
        "| --- | ---: |",
        "| a\\|b c | 1.0 |",
        "| [red] | 2.0 |",
    ]
    assert reports.csv_text(["name", "%", "n"], [["a,b", 0.1 + 0.2, 3], ["c", None, None]]) == (
        'name,%,n\n"a,b",0.3,3\nc,,\n'
    )
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    console.print(reports.rich_table(["name", "%"], rows, "title [b]", bold=[1]))
    assert "[red]" in console.file.getvalue()
    assert "title [b]" in console.file.getvalue()


def test_curves_are_averaged_where_all_have_points():
    costs, qualities = averaged([([1, 3], [0, 2]), ([4, 2], [6, 4])])
    assert (costs[0], costs[-1]) == (2, 3)
    assert qualities[0] == [1, 4]
    assert qualities[-1] == [2, 5]
    assert averaged([([3, 1], [2, 0])]) == ([1, 3], [[0], [2]])
    assert reports.interpolated([(1, 0), (1, 4), (2, 8)], 1) == 4


@pytest.mark.slow
def test_pictures_leave_the_callers_matplotlib_alone(tmp_path, recwarn):
    import matplotlib

    before = dict(matplotlib.rcParams)
    panel = Panel(
        "MMACs",
        "top-1 %",
        [
            Curve("CoE", [([1, 2], [3, 4]), ([1, 2], [4, 5])], [(2, 4.5)]),
            Curve("new", [([1], [2])]),
        ],
        [Point("single 猫 $x$", 1.5, 4, 0.1)],
        is_log=True,
        ticks=[1, 1.01, 2],
    )
    reports.draw_trade_off(tmp_path / "one.png", "a $ title", [[panel]])
    reports.draw_trade_off(tmp_path / "four.png", "title", [[panel, panel], [panel, panel]])
    assert (tmp_path / "four.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before
    # Where no font has the letter, that is all there is to say.
    assert all("no installed font has 猫, drawn as" in str(w.message) for w in recwarn.list)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four.png", "one.png"]


@pytest.mark.process
def test_support_loads_the_standard_library_only():
    modules = "files, aims, command, provenance, progress, reports"
    heavy = ("torch", "numpy", "scipy", "matplotlib", "rich", "yaml")
    code = f"""
import sys
import coe_core
from coe_core.support import {modules}
assert not set(sys.modules) & set({heavy}), set(sys.modules) & set({heavy})
reports.draw_trade_off("/dev/null", "x", [[reports.Panel("a", "b", [], [])]])
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
assert "numpy" in sys.modules  # so that the first assertion can fail
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_provenance(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/home/someone/bin/coe-vision", "train", "a b"])
    record = provenance(["torch", "no-such-package"], data="digits")
    assert record["command"] == "coe-vision train 'a b'"
    assert set(record["packages"]) == {"collaboration-of-experts", "torch"}
    assert record["data"] == "digits"
    assert len(record["date"]) == 10


def test_commit_is_that_of_our_own_checkout(monkeypatch, tmp_path):
    """Installed into a folder inside somebody's repository, we have no commit."""
    commit.cache_clear()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    installed = tmp_path / "provenance.py"
    installed.write_text("")
    monkeypatch.setattr(provenance_module, "__file__", str(installed))
    assert commit() is None
    commit.cache_clear()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "shown"), [(io.StringIO, "\n"), (Terminal, "\r\x1b[K")])
def test_progress(monkeypatch, kind, shown):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", kind())
    assert list(progress(range(4), 4, "predicting")) == [0, 1, 2, 3]
    said = sys.stderr.getvalue()
    assert "predicting: 1/4, 0.2 images/s, 15 s left" in said
    assert said.endswith(shown)


def test_a_short_loop_says_nothing(capsys):
    assert list(progress("abc", 3, "predicting")) == ["a", "b", "c"]
    with ProgressLine(3, "decoding") as line:
        line.advance(3)
    assert capsys.readouterr().err == ""
    assert [duration(seconds) for seconds in (59.4, 61, 3661)] == ["59 s", "1:01 min", "1:01 h"]
