"""Pairs as people have them: two files, columns, translation memories, packed; cleaning with counts."""

import gzip
import io
import lzma

import pytest

from translation.corpora import lines
from translation.corpora.letters import main_script
from translation.corpora.pairs import clean, read_pairs
from translation.corpora.tmx import read_tmx

PAIRS = [("ein Haus", "a house"), ("zwei\u2028Häuser", "two houses")]
TEXTS = ["".join(pair[side] + "\n" for pair in PAIRS) for side in range(2)]
COLUMNS = "".join(f"{a}\t{b}\tCC-BY\n" for a, b in PAIRS)
TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "http://example.org/tmx14.dtd" [<!ENTITY secret SYSTEM "file:///etc/passwd">]>
<tmx version="1.4"><header srclang="de"/><body>
<tu><tuv xml:lang="de-DE"><seg>ein <bpt i="1">&lt;b&gt;</bpt>Haus<ept i="1">&lt;/b&gt;</ept></seg></tuv>
<tuv xml:lang="EN"><seg>a <hi>house</hi></seg></tuv></tu>
<tu><tuv lang="de"><seg>zwei
 Häuser</seg></tuv><tuv lang="en_GB"><seg>two houses</seg></tuv></tu>
<tu><tuv xml:lang="de"><seg>drei</seg></tuv><tuv xml:lang="fr"><seg>trois</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize(
    "files",
    [
        {"train.de": TEXTS[0], "train.en": TEXTS[1]},
        {"train.de.gz": gzip.compress(TEXTS[0].encode()), "train.en": TEXTS[1]},
        {
            "train.de.xz": lzma.compress(TEXTS[0].encode()),
            "train.en.xz": lzma.compress(TEXTS[1].encode()),
        },
        {
            "de-en/train.de": TEXTS[0],
            "de-en/train.en": TEXTS[1],
            "train.de": "x\n",
            "train.en": "x\n",
        },
    ],
)
def test_two_files(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_pairs(tmp_path, "train", "de", "en") == PAIRS


def test_columns_and_standard_input(tmp_path, monkeypatch):
    (tmp_path / "train.tsv.xz").write_bytes(lzma.compress(COLUMNS.encode()))
    assert read_pairs(tmp_path, "train.tsv.xz", "de", "en") == PAIRS
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(COLUMNS.encode())))
    assert read_pairs(None, "-", "de", "en") == PAIRS
    (tmp_path / "bad.tsv").write_text("ein Haus\ta house\nzwei\n")
    with pytest.raises(ValueError, match=r"bad\.tsv:2: not source, tab, target: 'zwei'"):
        read_pairs(tmp_path, "bad.tsv", "de", "en")


def test_a_translation_memory(tmp_path):
    (tmp_path / "memory.tmx").write_text(TMX)
    expected = [("ein Haus", "a house"), ("zwei Häuser", "two houses")]
    assert read_pairs(tmp_path, "memory.tmx", "de", "en") == expected
    (tmp_path / "memory.tmx.gz").write_bytes(gzip.compress(TMX.encode()))
    assert read_pairs(tmp_path, "memory.tmx.gz", "de", "en") == expected
    with pytest.raises(
        ValueError, match="no unit in de and cs; languages in it: de, de-de, en, en-gb, fr"
    ):
        read_tmx(tmp_path / "memory.tmx", "de", "cs")


@pytest.mark.parametrize(
    "content",
    [
        "plain text",
        "",
        "<tmx><body><tu>",
        '<!DOCTYPE a [<!ENTITY a "aaaa">]><tmx><tu><tuv lang="de"><seg>&a;</seg></tuv></tu></tmx>',
        "<a>" * 1000,
    ],
)
def test_what_is_no_translation_memory(tmp_path, content):
    (tmp_path / "x.tmx").write_text(content)
    with pytest.raises(
        ValueError, match=r"x\.tmx: (not a translation memory|no unit in de and en)"
    ):
        read_tmx(tmp_path / "x.tmx", "de", "en")


def test_entities_are_not_looked_up(tmp_path):
    evil = TMX.replace("two houses", "&secret;")
    (tmp_path / "evil.tmx").write_text(evil)
    assert read_tmx(tmp_path / "evil.tmx", "de", "en")[1] == ("zwei Häuser", "")


def test_texts_that_are_missing_or_empty(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere: give the folder of the texts"):
        read_pairs(tmp_path / "nowhere", "train", "de", "en")
    with pytest.raises(
        ValueError, match=r"language de has no text: .*train\.de is missing; .* nothing"
    ):
        read_pairs(tmp_path, "train", "de", "en")
    (tmp_path / "train.de").write_text("eins\n")
    with pytest.raises(ValueError, match=r"language en has no text: .*there is train\.de"):
        read_pairs(tmp_path, "train", "de", "en")
    (tmp_path / "train.en").write_text("\n")
    with pytest.raises(ValueError, match=r"language en has no text: all 1 lines of .* are empty"):
        read_pairs(tmp_path, "train", "de", "en")
    with pytest.raises(ValueError, match=r"text x\.tsv has no text: .*x\.tsv is missing"):
        read_pairs(tmp_path, "x.tsv", "de", "en")


def test_damaged_and_growing_xz(tmp_path, monkeypatch):
    packed = lzma.compress(b"one sentence\n" * 100)
    (tmp_path / "x.xz").write_bytes(packed[:-8])
    with pytest.raises(ValueError, match=r"x\.xz: a damaged xz file"):
        lines.read_lines(tmp_path / "x.xz")
    (tmp_path / "x.xz").write_bytes(packed)
    monkeypatch.setattr(lines, "_MOST_UNPACKED", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes when it is unpacked"):
        lines.read_lines(tmp_path / "x.xz")


def test_cleaning_counts_every_reason():
    pairs = [
        ("ein Haus", "a house"),
        ("", "a"),
        ("b", " "),
        ("eins zwei drei vier fünf sechs", "one two three four five six"),
        ("eins", "one two three four"),
        ("дом", "a house"),
        ("ein Haus", "a house"),
        ("14:05", "14:05"),
    ]
    cleaned = clean(pairs, max_words=5, max_ratio=3, duplicates=True, scripts=["LATIN", "LATIN"])
    assert cleaned.pairs == [("ein Haus", "a house"), ("14:05", "14:05")]
    assert cleaned.left_out == {
        **{"empty": 2, "length ratio": 1, "other script": 1, "repeated": 1, "too long": 1}
    }
    assert clean(pairs).left_out == {"empty": 2}


def test_scripts():
    assert main_script(["日本語のテキスト"]) == "CJK"
    assert main_script(["abc дом"]) is None
    assert main_script([]) is None
