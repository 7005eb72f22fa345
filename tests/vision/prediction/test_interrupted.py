"""A file of predictions that was cut anywhere is continued to the content of one that was not."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coe_core.support.locks import LockedError, locked
from vision.errors import RunError
from vision.prediction.files import FilePrediction
from vision.prediction.results import heading, open_results, record

# Any name that a file can have: bytes without NUL, among them line ends, quotes and what is not UTF-8.
names = st.one_of(
    st.binary(min_size=1, max_size=12).map(lambda name: os.fsdecode(name.replace(b"\0", b"0"))),
    st.text('a"\r\n,;\\\u0085\u2028é \t=', min_size=1, max_size=8),
)
THRESHOLDS = st.sampled_from([0.0, 0.1, 1 / 3, 0.8812345678901234, math.inf])


def outcomes_of(files, threshold):
    return [
        FilePrediction(file, threshold, error=f"{file} cannot be read")
        if number % 3 == 2
        else FilePrediction(file, threshold, 'a "label",\r\n', 0.1, False, 2, 0.7, 10_000)
        for number, file in enumerate(files)
    ]


def predict(path, kind, files, threshold, resume=True):
    """What the command does, without a network."""
    with open_results(path, kind, threshold, resume) as results:
        rest = [file for file in files if file not in results.done]
        for outcome in outcomes_of(files, threshold):
            if outcome.file in rest:
                results.write(outcome)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@given(
    files=st.lists(names, max_size=6, unique=True), threshold=THRESHOLDS, cut=st.integers(0, 999)
)
@example(files=["a\rb", 'q"\n"', os.fsdecode(b"\xff\n")], threshold=math.inf, cut=70)
def test_any_name_cut_anywhere(tmp_path_factory, kind, files, threshold, cut):
    folder = tmp_path_factory.mktemp("x")
    predict(folder / "whole", kind, files, threshold)
    whole = (folder / "whole").read_bytes()
    (folder / "part").write_bytes(whole[: cut % (len(whole) + 1)])
    predict(folder / "part", kind, files, threshold)
    assert (folder / "part").read_bytes() == whole
    assert sorted(path.name for path in folder.iterdir()) == ["part", "whole"]  # no lock is left


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_cut(tmp_path, kind):
    files = ["a.png", 'two\n"lines"\r.png', os.fsdecode(b"caf\xe9,.png")]
    whole = heading(kind) + b"".join(record(outcome, kind) for outcome in outcomes_of(files, 0.5))
    assert len(whole) > 100
    for cut in range(0, len(whole) + 1, 3):
        (tmp_path / "part").write_bytes(whole[:cut])
        predict(tmp_path / "part", kind, files, 0.5)
        assert (tmp_path / "part").read_bytes() == whole, cut


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@given(content=st.binary(min_size=1, max_size=60))
def test_anything_else_is_refused_or_continued_in_one_line(tmp_path_factory, kind, content):
    """What is not ours is left as it is."""
    path = tmp_path_factory.mktemp("x") / "part"
    for text in (content + b"\n", heading(kind) + content + b"\n"):
        path.write_bytes(text)
        try:
            with open_results(path, kind, 0.5, resume=True):
                pass
        except RunError as error:
            refused = str(error).removeprefix(str(path))
        else:
            continue
        assert "\n" not in refused
        assert path.read_bytes() == text


def test_half_a_row_inside(tmp_path):
    rows = [record(outcome, "csv") for outcome in outcomes_of(["a", "b"], 0.5)]
    (tmp_path / "x").write_bytes(heading("csv") + rows[0][:10] + b"\n" + rows[1])
    with (
        pytest.raises(RunError, match="x is not csv of `coe-vision predict`"),
        open_results(tmp_path / "x", "csv", 0.5, resume=True),
    ):
        pass


def test_one_writer(tmp_path):
    with (
        locked(tmp_path / "x.csv"),
        pytest.raises(
            LockedError, match=rf"x\.csv is being written by .* {os.getpid()} on .*; choose another"
        ),
        open_results(tmp_path / "x.csv", "csv", 0.5),
    ):
        pass
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.process
def test_the_lock_of_a_process_that_is_gone(tmp_path, capsys):
    target = str(tmp_path / "x")
    left = "from coe_core.support.locks import locked; import os\n"
    left += f"with locked({target!r}): os._exit(0)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", left], cwd=root, check=False).returncode == 0
    with open_results(tmp_path / "x", "csv", 0.5) as results:
        assert results.done == frozenset()
    assert "was left behind; taken over" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_file_is_not_waited_for(tmp_path, resume):
    """Continuing reads what is there, and a pipe that nobody writes to would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "pipe or a device"), ("folder", "folder")):
        with pytest.raises(RunError, match=rf"{name} is a {kind}; without --out predictions go to"):
            predict(tmp_path / name, "csv", ["a"], 0.5, resume)


def test_no_folder(tmp_path):
    with (
        pytest.raises(RunError, match=r"x cannot be written: there is no folder .*nowhere"),
        open_results(tmp_path / "nowhere" / "x", "csv", 0.5),
    ):
        pass
