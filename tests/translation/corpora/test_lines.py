"""One reader of texts: which lines there are, and what is said of texts that do not serve."""

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile

import pytest

from translation.commands.cli import main
from translation.corpora import lines
from translation.corpora.lines import read_lines, read_plain_lines
from translation.corpora.published import tatoeba_pairs, write_splits
from translation.corpora.text import check_parallel, hypotheses_in
from translation.corpora.vocabulary import Segmentation, encode_file, train_vocabulary

ODD = "one\u0085two\u2028three\u2029four\x0bfive\x0csix\x1cseven"


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(f"\ufeff{ODD}\r\nlast".encode())
    assert read_lines(path) == [ODD, "last"]
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_lines(packed) == [ODD, "last"]


def test_standard_input(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO("ä\nb\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert read_lines("-") == ["ä", "b"]


def test_a_line_of_a_zip_may_hold_such_characters(tmp_path):
    path = tmp_path / "deu-eng.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deu.txt", f"Hi {ODD}\tHallo\nRun\tLauf\n")
    assert tatoeba_pairs(path) == [("Hallo", f"Hi {ODD}"), ("Lauf", "Run")]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Lauf", b"Lauv"))
    with pytest.raises(
        ValueError, match=r"deu-eng\.zip is damaged: 'deu\.txt' in it does not match"
    ):
        tatoeba_pairs(path)


def test_written_splits_have_as_many_lines_for_fairseq(tmp_path):
    write_splits({"train": [(ODD, "a\rb")] * 3}, tmp_path, ("de", "en"))
    for language in ("de", "en"):
        with open(tmp_path / f"train.{language}", encoding="utf-8") as file:  # as fairseq opens it
            assert len(file.readlines()) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"one\rtwo\n",
            "x:1: a carriage return within the line, which fairseq would take for its end",
        ),
        ("\ufeffone\n".encode(), "x:1: begins with a byte order mark"),
        (gzip.compress(b"one\n", mtime=0), "x: packed by gzip, which fairseq does not read"),
        ("one\n".encode("utf-16"), "x: UTF-16, not UTF-8"),
        ("one\n".encode("utf-16-be"), "x: UTF-16, not UTF-8"),
        (b"one\nH\xe4user\n", "x:2: not UTF-8 (byte 0xe4 at position 2 of the line)"),
        (b"", "x: the file is empty"),
        ("one\n".encode("utf-32"), "x: UTF-32, not UTF-8; convert it, as with iconv -f utf-32"),
        (b"PK\x03\x04", "x: a zip archive, not a text"),
        (bz2.compress(b"one\n"), "x: packed by bzip2, not a text; unpack it (bunzip2)"),
        (lzma.compress(b"one\n"), "x: packed by xz, which fairseq does not read; unpack it (unxz)"),
        (b"\x28\xb5\x2f\xfd", "x: packed by zstd, not a text; unpack it (unzstd)"),
    ],
)
def test_texts_that_fairseq_would_read_otherwise(tmp_path, content, message):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x:") as caught:
        read_plain_lines(path)
    assert message in str(caught.value)


def test_a_damaged_gzip_a_folder_and_a_pipe(tmp_path):
    path = tmp_path / "x.gz"
    packed = gzip.compress(b"one sentence\n" * 100)
    for content in (packed[:-6], packed[:20], packed[:30] + b"junk" + packed[34:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.gz: a damaged gzip file"):
            read_lines(path)
    with pytest.raises(ValueError, match="a folder, not a text"):
        read_lines(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file; a pipe is read as standard input"):
        read_lines(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["D-0\t0\ta", "D-999999999999\t0\tb"],
            "999999999998 of 1000000000000 sentences have no D- line",
        ),
        (["D-0\t0\ta", f"D-{'9' * 5000}\t0\tb"], "out:2: not a D- line of fairseq's"),
        (["D-0\t0"], "out:1: not a D- line of fairseq's: 'D-0"),
        (["S-0\ta", "H-0\t0\ta"], "none with D-, which has the translation"),
        (["D-0\t0\ta", "D-2\t0\tb"], "1 of 3 sentences have no D- line, the first is 1"),
    ],
)
def test_output_of_fairseq_that_is_not_whole(lines, message):
    with pytest.raises(ValueError, match="out:") as caught:
        hypotheses_in(lines, "out")
    assert message in str(caught.value)


def test_output_of_fairseq_and_plain_text():
    assert hypotheses_in(["D-1\t0\tb", f"D-0\t0\t{ODD}", "D-0\t0\tworse"], "out") == [ODD, "b"]
    assert hypotheses_in(["D- is a letter", "D-\t\t"], "out") == ["D- is a letter", "D-\t\t"]
    # Other digits than ours are text.
    assert hypotheses_in(["D-\u0663\t0\tx"], "out") == ["D-\u0663\t0\tx"]


def test_two_texts_of_one_name_are_not_encoded_onto_each_other(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.de").write_text(f"{folder}\n")
    words = ["encode", *(str(tmp_path / name / "x.de") for name in "ab")]
    status = main([*words, "--model", "m", "--out", str(tmp_path / "pieces")])
    assert status == 2
    assert "a/x.de and " in (error := capsys.readouterr().err)
    assert "would both become" in error
    assert not (tmp_path / "pieces").exists()


def test_no_text_and_no_model_is_encoded_onto_by_way_of_a_link(tmp_path, capsys):
    for name in ("a/x.de", "b/y.de", "a/joint.model"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept\n")
    out = tmp_path / "pieces"
    out.mkdir()
    (out / "x.de").symlink_to(tmp_path / "b/y.de")
    (out / "joint.model").write_text("kept\n")
    model, folder = ["--model", str(out / "joint.model")], ["--out", str(out)]
    for texts, message in (
        (("a/x.de", "b/y.de"), "b/y.de would be overwritten; give another folder"),
        (("a/joint.model",), "joint.model is read here, and would be overwritten"),
    ):
        assert main(["encode", *(str(tmp_path / text) for text in texts), *model, *folder]) == 2
        assert message in capsys.readouterr().err
    assert {path.read_text() for path in (tmp_path / "b/y.de", out / "joint.model")} == {"kept\n"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "text"
    lines = ["ein Haus und zwei Häuser", "ein Baum", "½ Liter ﬁnden", "a" * 3000 + "ä" * 700]
    path.write_text("\n".join([*lines, "", "mit ▅ Zeichen"]) + "\n", encoding="utf-8")
    return path


def test_a_vocabulary_says_what_it_was_not_learned_from(text, tmp_path):
    out = tmp_path / "joint.model"
    report = train_vocabulary([text], 60, out, segmentation=Segmentation(soft_limit=True))
    assert report.num_lines == 5
    assert (report.num_too_long, report.too_long) == (1, (f"{text}:4",))
    assert report.num_reserved == 1
    assert report.num_changed == 1
    assert report.example == ("½ Liter ﬁnden", "1⁄2 Liter finden")
    assert report.num_pieces < 60


def test_characters_that_no_vocabulary_holds(text, tmp_path):
    with_nul = tmp_path / "nul"
    with_nul.write_bytes(text.read_bytes() + b"a\0b\n")
    wanted = f"{with_nul}:7: a NUL character, which no vocabulary holds; leave it out, as with tr"
    for call in (
        lambda: train_vocabulary([text, with_nul], 60, tmp_path / "x.model"),
        lambda: encode_file(_model(text, tmp_path), with_nul, tmp_path / "out"),
        lambda: check_parallel([with_nul, with_nul]),
    ):
        with pytest.raises(ValueError, match=re.escape(wanted)):
            call()
    with_bell = tmp_path / "bell"
    with_bell.write_bytes(b"ring\x07ing it\n" * 5 + text.read_bytes())
    report = train_vocabulary(
        [with_bell], 60, tmp_path / "x.model", segmentation=Segmentation(soft_limit=True)
    )
    assert report.example == ("ring\x07ing it", "ringing it")


def _model(text, folder):
    train_vocabulary([text], 60, folder / "m", segmentation=Segmentation(soft_limit=True))
    return folder / "m"


def test_options_of_the_segmentation(text, tmp_path):
    def pieces(line, **options):
        out = tmp_path / "x.model"
        how = Segmentation(soft_limit=True, **options)
        train_vocabulary([text], 400, out, segmentation=how)
        (tmp_path / "line").write_text(f"{line}\n", encoding="utf-8")
        encode_file(out, tmp_path / "line", tmp_path / "encoded")
        return (tmp_path / "encoded").read_text(encoding="utf-8").split()

    assert "½" not in "".join(pieces("½ Liter"))
    assert "½" in "".join(pieces("½ Liter", normalization="identity"))
    assert "haus" in "".join(pieces("HAUS", normalization="nmt_nfkc_cf"))
    assert "".join(pieces("Z")) == "▁Z"
    assert "<0x5A>" in pieces("Z", byte_fallback=True)
    assert "<Name>" in pieces("ein <Name> und", user_symbols=("<Name>",))
    assert (
        train_vocabulary(
            [text],
            60,
            tmp_path / "y",
            segmentation=Segmentation("bpe", longest_line=9000, soft_limit=True),
        ).num_too_long
        == 0
    )


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (0, {}, r"the number of pieces must be in \[1, 4000000\], got 0"),
        (2 * 10**9, {}, r"the number of pieces must be in \[1, 4000000\], got 2000000000"),
        (30, {"user_symbols": ("",)}, "the user symbol '' is empty"),
        (30, {"user_symbols": ("x", "y", "x")}, "the user symbol 'x' is given twice"),
        (30, {"kind": "word"}, "unknown kind 'word'; known: unigram, bpe"),
        (30, {"normalization": "nfd"}, "unknown normalization 'nfd'; known: nmt_nfkc"),
        (30, {"character_coverage": 0.5}, r"character coverage must be in \[0.98, 1\], got 0.5"),
        (30, {"longest_line": 0}, "the longest line must be 10 to"),
        (900, {}, "no vocabulary of 900 pieces from 5 lines: Vocabulary size too high"),
        (3, {}, "the number of pieces must be at least 4: three are SentencePiece's own, .* got 3"),
        (5, {"user_symbols": ("<a>", "<b>")}, "must be at least 6: "),
        (259, {"byte_fallback": True}, "must be at least 260: "),
        (5, {}, "no vocabulary of 5 pieces from 5 lines: Vocabulary size is smaller"),
    ],
)
def test_vocabularies_that_cannot_be(text, tmp_path, size, options, message):
    with pytest.raises(ValueError, match=message):
        train_vocabulary([text], size, tmp_path / "x", segmentation=Segmentation(**options))
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_not_overwritten_by_its_vocabulary(tmp_path):
    text = tmp_path / "a.de"
    text.write_text("one two\n" * 9)
    with pytest.raises(
        ValueError, match=r"a\.de is read here, and would be overwritten; give another file"
    ):
        train_vocabulary([text], 9, text)
    assert text.read_text() == "one two\n" * 9
    text.write_text(("one two " * 9 + "\n") * 9)
    with pytest.raises(ValueError, match=r"all 9 lines of .* are over .*; --longest-line takes"):
        train_vocabulary([text], 9, tmp_path / "x", segmentation=Segmentation(longest_line=10))


def test_a_text_that_grows_when_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_MOST_UNPACKED", 1000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one\n" * 250))
    assert len(read_lines(tmp_path / "x.gz")) == 250
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one\n" * 251))
    with pytest.raises(ValueError, match="more than 1,000 bytes when it is unpacked"):
        read_lines(tmp_path / "x.gz")


def test_a_model_that_is_none(text, tmp_path):
    with pytest.raises(ValueError, match=r"not a regular file"):
        encode_file(tmp_path, text, tmp_path / "out")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk: not a SentencePiece model"):
        encode_file(tmp_path / "junk", text, tmp_path / "out")
    with pytest.raises(ValueError, match=r"none: no such file"):
        encode_file(tmp_path / "none", text, tmp_path / "out")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ValueError, match=r"all lines of .*empty are empty"):
        train_vocabulary([tmp_path / "empty"], 30, tmp_path / "x")
