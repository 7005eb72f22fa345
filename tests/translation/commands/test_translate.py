"""`translate` as users type it: files, pipes, packed texts, what is too long, what was stopped."""

import gzip
import io
import json
import lzma
import os
import stat
import sys
import threading

import pytest

from translation.prediction import stream
from translation.prediction.engine import TranslatorError
from translation.prediction.translator import Translation, Translator

LONG = "eins Meter und " * 60


@pytest.fixture(scope="module")
def translator(trained_run):
    return Translator(trained_run, device="cpu")


@pytest.fixture
def command(said, trained_run, monkeypatch, translator):
    """`coe-translation translate` of the run, which is loaded once."""
    monkeypatch.setattr("translation.commands.translate.loaded_translator", lambda _: translator)

    def call(*options, given=None):
        if given is not None:
            source = io.BufferedReader(io.BytesIO(given))
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source))
        return said("translate", trained_run, *options)

    return call


@pytest.fixture
def text(corpus, tmp_path):
    path = tmp_path / "test.de"
    path.write_bytes((corpus.text / "test.de").read_bytes())
    return path


def test_from_a_pipe_to_a_pipe(command, translator):
    lines = ["eins Meter", "", "zwei Tage und drei Euro"]
    status, out, err = command(given="\r\n".join(lines).encode())
    assert status == 0
    assert out.split("\n") == [*(t.text for t in translator(lines)), ""]
    assert "3 lines: " in err
    assert "MMACs a line" in err


def test_options_reach_the_translator(command, translator):
    status, out, _ = command("--threshold", 0, "--beam", 1, "--json", given=b"zwei Tage\n")
    (expected,) = translator(["zwei Tage"], threshold=0.0, beam=1)
    answer = json.loads(out)
    assert (status, answer["text"], answer["route"]) == (0, expected.text, "delegator")
    assert answer["confidence"] == pytest.approx(expected.confidence)
    assert answer["macs"] == pytest.approx(expected.macs)
    status, out, _ = command("--threshold", "inf", "--json", given=b"zwei Tage\n")
    assert json.loads(out)["confidence"] is None
    status, out, _ = command("--nbest", 2, given=b"zwei Tage\n")
    assert out.rstrip("\n").split("\t") == list(translator(["zwei Tage"], nbest=2)[0].hypotheses)


def test_packed_files(command, translator, text, tmp_path):
    packed, out = tmp_path / "in.gz", tmp_path / "new" / "out.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    assert command(packed, "--out", out)[0] == 0
    lines = text.read_text(encoding="utf-8").split("\n")[:-1]
    expected = "".join(f"{t.text}\n" for t in translator(lines))
    assert gzip.decompress(out.read_bytes()).decode() == expected
    assert [path.name for path in out.parent.iterdir()] == ["out.gz"]
    assert command(given=packed.read_bytes())[1] == expected  # also from standard input
    assert command(given=lzma.compress(text.read_bytes()))[1] == expected
    status, _, err = command(given=packed.read_bytes()[:-20])
    assert (status, "the text is packed, and damaged: " in err) == (2, True)


@pytest.mark.parametrize(("how", "is_empty"), [("cut", False), ("skip", True)])
def test_lines_that_are_too_long_are_told_and_do_not_end_it(command, how, is_empty):
    given = f"eins Meter\n{LONG}\n\nzwei Tage\n".encode()
    status, out, err = command("--over-long", how, given=given)
    lines = out.split("\n")
    assert (status, len(lines)) == (1, 5)
    assert (lines[1] == "") == is_empty
    assert lines[2] == ""
    assert "standard input:2: " in err
    assert "pieces, the networks take 59; " in err


def test_a_text_in_another_script_is_told(command):
    status, out, err = command(given="Это очень длинный текст\n\nещё один\n".encode())
    assert (status, out.count("\n")) == (0, 3)
    assert "100% of the letters were never seen in training: is it in another script" in err
    assert err.count("warning") == 1
    assert "warning" not in command(given=b"eins Meter\n")[2]


class StopError(Exception):
    pass


def stopped_after(monkeypatch, blocks):
    """The writing of the next block fails, as if the machine had stopped."""
    write, count = stream.ResumableFile.write, iter(range(1000))

    def failing(self, text, lines):
        if next(count) >= blocks:
            self._file.write(b"half a li")
            raise StopError
        write(self, text, lines)

    monkeypatch.setattr(stream.ResumableFile, "write", failing)


@pytest.mark.parametrize("name", ["out.en", "out.en.gz"])
def test_a_stopped_one_is_continued(command, text, tmp_path, monkeypatch, name):
    monkeypatch.setattr(stream.blocks, "__defaults__", (5,))
    whole, out = tmp_path / f"whole-{name}", tmp_path / name
    assert command(text, "--out", whole, "--json")[0] == 0
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(StopError):
            command(text, "--out", out, "--json")
    assert not out.exists()
    status, _, err = command(text, "--out", out, "--json")
    assert (status, "holds 10 lines of a translation that was stopped" in err) == (2, True)
    status, _, err = command(text, "--out", out, "--resume")
    assert (status, "was begun with json True, not False" in err) == (2, True)
    other = tmp_path / "other.de"
    other.write_bytes(b"x\n" + text.read_bytes())
    status, _, err = command(other, "--out", out, "--json", "--resume")
    assert (status, "the first 10 lines of the input are not those" in err) == (2, True)
    status, _, err = command(text, "--out", out, "--json", "--resume")
    assert (status, "14 lines: " in err) == (0, True)
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(f"{name}.part*"))


def test_a_pipe_or_a_device_is_not_replaced_and_a_link_stays(command, text, tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    status, _, err = command(text, "--out", pipe)
    assert (status, "is no regular file, and none may take its place" in err) == (2, True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    link.symlink_to(tmp_path / "real")
    assert command(text, "--out", link)[0] == 0
    assert link.is_symlink()
    assert (tmp_path / "real").read_text(encoding="utf-8").count("\n") == len(
        text.read_bytes().splitlines()
    )
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    "state",
    [
        *({}, {"lines": "x"}, {"lines": -1, "bytes": 0, "settings": {}}),
        *({"lines": 1, "bytes": 2**70, "settings": {}}, {"lines": 1, "bytes": 2, "settings": []}),
    ],
)
def test_a_damaged_record_of_a_stopped_one(tmp_path, state):
    out = tmp_path / "out"
    (tmp_path / "out.part").touch()
    (tmp_path / "out.part.json").write_text(json.dumps(state))
    with (
        pytest.raises(TranslatorError, match=r"out\.part\.json is damaged; remove it and"),
        stream.ResumableFile(out, {}, True).opened(io.BytesIO(b"a\nb\n")),
    ):
        pass


def test_refused(command, text, tmp_path):
    for options, given, message in (
        (["--resume"], b"", "--resume continues a file: give it with --out"),
        ([text, "--out", text], None, "is read here, and would be overwritten"),
        ([tmp_path / "none.de"], None, "none.de: no such file"),
        ([tmp_path], None, "a folder, not a text"),
        ([], b"eins\n\xff\n", "standard input:2: not UTF-8 (byte 0xff at position 1 of the line)"),
        (["--nbest", 3], b"eins\n", "nbest must be in [1, 2], the beam, got 3"),
        (["--beam", 1], b"eins\n", "threshold 'best' of CoE was fitted with beam 2, not 1"),
        (["--threshold", "nan"], b"", "must be in [-1e+09, inf], got nan"),
        (["--over-long", "stop"], b"", "invalid choice: 'stop'"),
    ):
        status, out, err = command(*options, given=given)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_no_run(said, tmp_path):
    status, _, err = said("translate", tmp_path / "runs" / "no")
    assert (status, "no such run, export or checkpoint" in err) == (2, True)


def test_a_line_of_a_pipe_does_not_wait_for_others():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as pipe:
        blocks = stream.blocks(source, 10)
        pipe.write(b"one\n")
        assert next(blocks) == [b"one\n"]
        pipe.write(b"two\nthree")
        threading.Timer(0, pipe.close).start()
        assert b"".join(line for block in blocks for line in block) == b"two\nthree"


def test_a_file_comes_in_full_blocks_and_is_counted(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"a\nb\nc")
    with path.open("rb") as file:
        assert stream.count_lines(file) == 3
        assert list(stream.blocks(file, 2)) == [[b"a\n", b"b\n"], [b"c"]]
        assert stream.count_lines(file) == 0


def test_what_cannot_stand_on_a_line():
    translation = Translation("a\tb", "delegator", 0.5, 1.0, ("a\tb\n", "c"))
    assert stream.as_line(translation, as_json=False) == "a b\tc\n"
