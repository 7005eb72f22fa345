"""Corpora that are made, and those that people download: what becomes of them."""

import zipfile
from collections import Counter

import pytest

from translation.commands.cli import main
from translation.corpora.numbers import KINDS, number_pairs
from translation.corpora.published import _key, iwslt14_splits, split_apart, tatoeba_pairs


def test_numbers_are_seeded_and_differ():
    pairs = number_pairs(60, seed=1)
    assert number_pairs(40, seed=1) == pairs[:40]
    assert number_pairs(40, seed=2) != pairs[:40]
    assert len({german for german, _ in pairs}) == 60
    assert all(text == " ".join(text.split()) and text for pair in pairs for text in pair)
    with pytest.raises(ValueError, match="at least one pair, got size 0"):
        number_pairs(0, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_say_the_same_in_both_languages(kind):
    """Digits are CLDR's own check: where both sides write digits they write the same number of them."""
    import random

    draw = random.Random(0)
    for _ in range(20):
        german, english = KINDS[kind](draw)
        assert german
        assert english
        if kind in ("decimal", "percent", "amount", "measure", "duration", "from now"):
            assert Counter(filter(str.isdigit, german)) == Counter(filter(str.isdigit, english))


def test_splits_share_no_sentence():
    pairs = [(f"de {i // 3}", f"en {i // 2}") for i in range(12)]  # overlapping groups
    pairs += [(f"satz {i}!", f"sentence {i}.") for i in range(30)]
    pairs += [(f"Satz {i}", f"another {i}") for i in range(30)]
    pairs += [("oft", f"often {i}") for i in range(20)]  # too large a group to hold out
    splits = split_apart(pairs, {"valid": 5, "test": 7}, seed=1)
    assert (len(splits["valid"]), len(splits["test"])) == (5, 7)
    assert splits == split_apart(pairs, {"valid": 5, "test": 7}, seed=1)
    assert splits != split_apart(pairs, {"valid": 5, "test": 7}, seed=2)
    for side in (0, 1):
        keys = {name: {_key(pair[side]) for pair in some} for name, some in splits.items()}
        assert not keys["train"] & keys["valid"]
        assert not keys["train"] & keys["test"]
        assert not keys["valid"] & keys["test"]
    assert sum(german == "oft" for german, _ in splits["train"]) == 20
    with pytest.raises(ValueError, match="40 pairs are to be held out, but the 92 pairs have only"):
        split_apart(pairs, {"test": 40}, seed=1)


def test_tatoeba_files(tmp_path):
    text = "Hi.\tHallo!\nRun!\tLauf!\tCC-BY 2.0\n"
    (tmp_path / "deu.txt").write_text(text)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("deu.txt", text)
    wanted = [("Hallo!", "Hi."), ("Lauf!", "Run!")]
    for path in (tmp_path, tmp_path / "deu.txt", tmp_path / "x.zip"):
        assert tatoeba_pairs(path) == wanted
    (tmp_path / "deu.txt").write_text("Hi.\tHallo!\nRun!\n")
    with pytest.raises(ValueError, match=r"deu.txt:2: not English, tab, German: 'Run!'"):
        tatoeba_pairs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither deu.txt nor deu-eng.zip is in this folder"):
        tatoeba_pairs(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("fra.txt", text)
    with pytest.raises(ValueError, match=r"no deu.txt in this archive"):
        tatoeba_pairs(tmp_path / "y.zip")


def test_iwslt14_is_cut_as_fairseq_cuts_it(tmp_path):
    for language in ("de", "en"):
        lines = ["<url>u</url>", f"<title>Title {language}</title>", "<talkid>3</talkid>"]
        lines += [f"Line {i} {language}" for i in range(45)]
        lines += ["one" if language == "de" else "one two"]  # lengths that do not fit
        (tmp_path / f"train.tags.de-en.{language}").write_text("\n".join(lines) + "\n")
        for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            text = f'<title>x</title>\n<seg id="1"> {name} </seg>\n<seg id="2">b {language}</seg>\n'
            (tmp_path / f"IWSLT14.{name}.de-en.{language}.xml").write_text(text)
    splits = iwslt14_splits(tmp_path)
    assert splits["valid"] == [("Title de", "Title en"), ("Line 22 de", "Line 22 en")]
    assert len(splits["train"]) == 44
    assert len(splits["test"]) == 10
    assert splits["test"][:2] == [("TED.dev2010", "TED.dev2010"), ("b de", "b en")]
    assert iwslt14_splits(tmp_path, lowercase=True)["valid"][0] == ("title de", "title en")
    with open(tmp_path / "train.tags.de-en.de", "a") as file:
        file.write("<keywords>more\n")
    with pytest.raises(ValueError, match="line counts differ"):
        iwslt14_splits(tmp_path)
    with pytest.raises(ValueError, match=r"train.tags.de-en.de, .* missing; give the folder de-en"):
        iwslt14_splits(tmp_path / "nowhere")


def test_corpus_command(capsys, tmp_path):
    def said(*arguments):
        status = main(["corpus", *map(str, arguments)])
        return status, *capsys.readouterr()

    assert said("numbers", "--train", 20, "--held-out", 3, "--out", tmp_path)[0] == 0
    assert len((tmp_path / "train.de").read_text().splitlines()) == 20
    assert len((tmp_path / "test.en").read_text().splitlines()) == 3
    assert "takes no file, got x" in said("numbers", "x", "--out", tmp_path)[2]
    assert "needs a file or folder" in said("tatoeba", "--out", tmp_path)[2]
    error = said("numbers", "--held-out", 0, "--out", tmp_path)[2]
    assert "argument --held-out: must be at least 1, got 0" in error
    error = said("numbers", "--train", 10**10, "--out", tmp_path)[2]
    assert "argument --train: must be at most 1000000, got 10000000000" in error
    for words, option in (
        (("numbers", "--lowercase"), "--lowercase"),
        (("tatoeba", "x", "--train", 3), "--train"),
        (("iwslt14", "x", "--seed", 3), "--seed"),
    ):
        assert f"has no use for {option}" in said(*words, "--out", tmp_path)[2]
