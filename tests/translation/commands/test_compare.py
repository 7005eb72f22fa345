"""`score` with intervals and buckets, `compare`: where two systems differ."""

import json

import pytest

from translation.evaluation.buckets import by_length, by_rarity

REFERENCE = [
    "the cat sat on the mat",
    "a dog barks at the big moon tonight and all of us wake up",
    "birds sing",
]
FIRST = ["the cat sat on the mat", "a dog looks at the moon tonight and we all wake up", "bird"]
SECOND = [
    "the cat sat on the mat",
    "a dog barks at the big moon tonight and all of us wake up",
    "fish",
]


@pytest.fixture
def texts(tmp_path):
    for name, lines in {"reference": REFERENCE, "first": FIRST, "second": SECOND}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "known").write_text("the cat sat on a mat and the dog\n" * 3)
    return tmp_path


def test_intervals_of_one_system(said, texts):
    status, out, _ = said("score", texts / "first", "-r", texts / "reference", "--resamples", 50)
    assert status == 0
    assert out.count(" ± ") == 4
    status, out, _ = said(
        "score", texts / "first", "-r", texts / "reference", "--json", "--buckets"
    )
    report = json.loads(out)
    (system,) = report["systems"].values()
    assert system["scores"]["BLEU"]["half_width"] > 0
    assert system["scores"]["BLEU"]["p_value"] is None
    assert [bucket["title"] for bucket in report["buckets"]] == ["under 10 words", "10 to 19 words"]
    assert [bucket["sentences"] for bucket in report["buckets"]] == [[0, 2], [1]]


def test_buckets_in_the_table(said, texts):
    words = ("score", texts / "first", texts / "second", "-r", texts / "reference")
    status, out, _ = said(*words, "--resamples", 20, "--buckets", "--known", texts / "known")
    assert status == 0
    assert "sentences  BLEU and chrF of " in out
    assert "\nunder 10 words" in out
    assert "\nrarest word 2 to 9 times" in out
    assert "\nrarest word under 1 times" in out


def test_buckets_hold_every_sentence_once():
    for groups in (by_length(REFERENCE), by_rarity(REFERENCE, ["the cat", "the mat a dog"])):
        assert sorted(row for rows in groups.values() for row in rows) == [0, 1, 2]


def test_compare_shows_the_sentences_that_differ_most(said, texts):
    words = ("compare", texts / "first", texts / "second", "-r", texts / "reference")
    status, out, _ = said(*words, "--resamples", 50, "--top", 1, "--source", texts / "known")
    assert status == 0
    assert "\nBLEU " in out
    assert " p 0." in out or " p 1." in out
    assert out.count("\nsentence ") == 1
    assert "\nsentence 2: chrF " in out
    assert f"\n  first      {FIRST[1]}\n  second     {SECOND[1]}" in out
    status, out, _ = said(*words, "--resamples", 50, "--json")
    report = json.loads(out)
    assert [sentence["sentence"] for sentence in report["sentences"]] == [1, 2]
    assert report["sentences"][0]["difference"] > 0 > report["sentences"][1]["difference"]
    assert report["systems"]["second"].endswith("second")


def test_what_cannot_be_compared(said, texts):
    words = ("-r", texts / "reference")
    status, _, error = said("compare", texts / "first", texts / "first", *words)
    assert status == 2
    assert "a system is compared with itself; give two files" in error
    (texts / "short").write_text("one\n")
    assert "line counts differ" in said("compare", texts / "first", texts / "short", *words)[2]
    short = ("--source", texts / "short")
    assert (
        "line counts differ: the source has 1, the reference 3 lines"
        in said("compare", texts / "first", texts / "second", *words, *short)[2]
    )
