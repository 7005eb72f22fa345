"""`predict --out`: formats, an interrupted file continued, and files that are left alone."""

import csv
import json

import pytest
from PIL import Image

from vision.run import load_run, load_run_data


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    images = load_run_data(load_run(trained)).test
    for index in range(9):
        Image.fromarray(images[index]["image"][0].numpy()).save(root / f'{index}, "a".png')
    (root / "broken.png").write_text("nothing")
    return root


def read(path):
    if path.suffix == ".csv":
        with path.open() as file:
            records = list(csv.DictReader(file))
    else:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:  # batches of other sizes differ in the last digits
        for name in ("probability", "confidence"):
            record[name] = round(float(record[name]), 4) if record[name] else None
    return records


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_an_interrupted_file_is_continued_to_the_same_content(
    cli, trained, folder, tmp_path, capsys, ending
):
    whole, part = tmp_path / f"whole.{ending}", tmp_path / f"part.{ending}"
    predict = ["predict", trained, folder, "--batch-size", 4]
    assert cli(*predict, "--out", whole) == 1  # one file is broken
    assert f"10 predictions written to {whole}" in capsys.readouterr().out
    records = read(whole)
    assert len(records) == 10
    assert [bool(record["error"]) for record in records] == [False] * 9 + [True]
    content = whole.read_bytes()
    heading = content.index(b"\n") + 1 if ending == "csv" else 0
    for cut in (heading, heading + 30, len(content) // 2, len(content) - 1, len(content)):
        part.write_bytes(content[:cut])
        assert cli(*predict, "--out", part, "--resume") in (0, 1)
        assert read(part) == records, cut
    assert "0 predictions written" in capsys.readouterr().out.splitlines()[-1]
    part.unlink()
    assert cli(*predict, "--out", part, "--resume") == 1  # nothing to continue: begun
    assert read(part) == records


def test_format_goes_before_the_ending(cli, trained, folder, tmp_path):
    path = tmp_path / "a.txt"
    assert cli("predict", trained, folder, "--out", path, "--format", "csv") == 1
    assert path.read_text().startswith("file,threshold,label,")


def test_infinite_threshold(cli, trained, folder, tmp_path):
    path = tmp_path / "a.jsonl"
    for arguments in ([], ["--resume"]):
        assert cli("predict", trained, folder, "--out", path, "--threshold", "inf", *arguments) < 2
    assert {json.loads(line)["threshold"] for line in path.read_text().splitlines()} == {"inf"}


def test_refused(cli, trained, folder, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    cli("predict", trained, folder, "--out", path, "--threshold", 0.5)
    before = path.read_bytes()
    assert before
    capsys.readouterr()
    for arguments, message in [
        (["--out", path], "a.jsonl exists and is left as it is; --resume continues it"),
        (["--resume"], "--resume continues a file: give it as --out FILE"),
        (
            ["--out", path, "--resume", "--threshold", 0.6],
            "was written at threshold 0.5, now it is 0.6; choose another file",
        ),
        (
            ["--out", path, "--resume", "--format", "csv"],
            "does not begin as csv of `coe-vision predict`",
        ),
        (["--at", "best", "--threshold", 0.6], "give a budget or a threshold, not both"),
    ]:
        assert cli("predict", trained, folder, *arguments) == 2
        assert message in capsys.readouterr().err
        assert path.read_bytes() == before
    for content in ("{}\n", "[]\n", "x\n"):
        path.write_text(content)
        assert cli("predict", trained, folder, "--out", path, "--resume") == 2
        assert "is not jsonl of `coe-vision predict`" in capsys.readouterr().err
        assert path.read_text() == content


def test_at_an_amount_of_macs(cli, trained, folder, capsys):
    assert cli("predict", trained, folder, "--at", "1G") == 1
    shown = capsys.readouterr().out
    best = load_run(trained).operating_points["best"].threshold
    assert f"threshold {best:.4f}" in shown
    assert cli("predict", trained, folder, "--at", "1k") == 2
    assert "below that of every system; the cheapest that exists is" in capsys.readouterr().err
