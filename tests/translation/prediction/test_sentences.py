"""Where sentences end: by hand, and that no letter is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from translation.prediction.sentences import split_sentences


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("Ein Satz.", ["Ein Satz."]),
        ("Ein Satz. Noch einer!  Und?", ["Ein Satz.", "Noch einer!", "Und?"]),
        ("Am 3. Mai kam Dr. Weiß an.", ["Am 3. Mai kam Dr. Weiß an."]),
        ("Das ist z. B. Holz. Ja.", ["Das ist z. B. Holz.", "Ja."]),
        ("Er fragte: „Warum?“ Dann ging er.", ["Er fragte: „Warum?“", "Dann ging er."]),
        ("so was... ja", ["so was... ja"]),
        ("那是书。这是笔。", ["那是书。", "这是笔。"]),
        ("", [""]),
        ("  ", [""]),
        ("no mark", ["no mark"]),
        ("3.5 Meter. 4 Tage.", ["3.5 Meter.", "4 Tage."]),
    ],
)
def test_by_hand(line, sentences):
    assert split_sentences(line) == sentences


@given(st.text('aB. !?\u3002"3', max_size=40))
def test_no_letter_is_lost(line):
    sentences = split_sentences(line)
    assert "".join("".join(sentences).split()) == "".join(line.split())
    assert sentences == [""] or all(sentence.strip() for sentence in sentences)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["a", "a. ", "a! ", ".", '."', ". ", " ", "usw. ", "3. ", "\u3002"]
)
def test_a_text_of_anyone_is_split_in_time_that_grows_as_it_does(part):
    """A request of a megabyte must not hold a server: a quadratic time would be minutes for a third of it."""
    line = part * (300_000 // len(part)) + "! B"
    sentences = split_sentences(line)
    assert sentences[-1] == "B"
    assert sum(map(len, sentences)) <= len(line)
