"""One grammar of amounts and aims."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_core.support.aims import (
    looks_like_an_amount,
    parse_aim,
    parse_amount,
    parse_budget,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("best", ("best", None, False)),
        ("macs=100M", ("macs", 1e8, False)),
        ("macs=20m", ("macs", 2e7, False)),
        ("macs=1.5g", ("macs", 1.5e9, False)),
        ("macs=2e4", ("macs", 2e4, False)),
        ("macs=60%", ("macs", 0.6, True)),
        ("macs=100%", ("macs", 1.0, True)),
        ("latency=20", ("latency", 20.0, False)),
        ("latency=.3ms", ("latency", 0.3, False)),
        ("latency=60%", ("latency", 0.6, True)),
        ("accuracy_drop=0.5%", ("accuracy_drop", 0.005, False)),
        ("accuracy_drop=0%", ("accuracy_drop", 0.0, False)),
        ("accuracy=90%", ("accuracy", 0.9, False)),
        ("bleu_drop=0.5", ("bleu_drop", 0.5, False)),
        ("chrf_drop=0", ("chrf_drop", 0.0, False)),
    ],
)
def test_aims(text, expected):
    aim = parse_aim(text)
    assert aim[:3] == expected
    assert aim.text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy_drop=0.5", "no percent sign: write accuracy_drop=0.5% for half a point"),
        ("accuracy_drop=0.005", "no percent sign: write accuracy_drop=0.005% for 0.005 points"),
        ("accuracy_drop=0", "no percent sign: write accuracy_drop=0% for 0 points"),
        ("accuracy=0.9", "no percent sign: write accuracy=90%$"),
        ("accuracy=90", "no percent sign: write accuracy=90%$"),
        ("accuracy=101%", "is above 100"),
        ("bleu_drop=0.5%", "is in points: write bleu_drop=0.5 for half a point"),
        ("bleu_drop=1%", "write bleu_drop=1 for one point"),
        ("bleu_drop=-1", "aim 'bleu_drop=-1' needs a number: write bleu_drop=0.5"),
        ("macs=0", "aim 'macs=0' must be above 0: write macs=100M or macs=60%"),
        ("macs=inf", "aim 'macs=inf' needs a number"),
        ("macs=1e999", "needs a number"),
        ("macs=nan", "needs a number"),
        ("macs=120%", "is more than what no exits cost: write at most macs=100%"),
        ("macs=1M%", "needs a number"),
        ("macs=20ms", "is not understood: write macs=100M"),
        ("macs=20MB", "is not understood"),
        ("latency=20M", "is not understood: write latency=20"),
        ("macs=1_000", "needs a number"),
        ("macs=", "needs a number"),
        ("macs", "needs a number"),
        ("latency=０", "needs a number"),
        ("best=1", "aim 'best' takes no value"),
        ("acuracy_drop=1%", "unknown aim 'acuracy_drop=1%'; nearest: accuracy_drop"),
        ("", "unknown aim ''.*known: best, macs=100M"),
        ("x" * 5000, "unknown aim 'x{76}\\.\\.\\.; known"),
    ],
)
def test_what_is_no_aim(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_aim(text)
    assert "\n" not in str(caught.value)


def test_only_the_kinds_that_the_caller_knows():
    with pytest.raises(ValueError, match=r"unknown aim 'bleu_drop=1'; known: best, accuracy=90%$"):
        parse_aim("bleu_drop=1", ("best", "accuracy"))


def test_parts_of_what_no_exits_cost():
    assert parse_aim("macs=60%").absolute(2e8) == pytest.approx(1.2e8)
    assert parse_aim("macs=1M").absolute(2e8) == 1e6
    assert parse_aim("best").absolute(2e8) is None
    assert parse_amount("60%").absolute(10) == 6


@pytest.mark.parametrize("text", ["100M", "100m", "macs=100M", "1e8", 1e8, 100_000_000, "0.1G"])
def test_budgets(text):
    assert parse_budget(text).value == 1e8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "'fast' is no amount; write one such as 100M"),
        (float("inf"), "is no amount"),
        (float("nan"), "is no amount"),
        ("-5M", "is no amount"),
        ("0", "must be above 0, got 0"),
        ("200%", "200% is more than what no exits cost"),
        ("macs=macs=3", "is no amount"),
    ],
)
def test_what_is_no_budget(text, message):
    with pytest.raises(ValueError, match=message):
        parse_budget(text)


def test_names_are_told_from_amounts():
    assert [looks_like_an_amount(text) for text in ("5M", "macs=x", "-3", ".5", "half", "M5")] == [
        *[True] * 4,
        *[False] * 2,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inf", "'inf' is no size; write one such as 500k"),
        ("nan", "is no size"),
        ("-1", "is no size"),
        ("10%", "is no size"),
        ("1e400", "is no size"),
        ("0", "at least one byte, got 0"),
        ("0.1", "at least one byte"),
    ],
)
def test_what_is_no_size(text, message):
    with pytest.raises(ValueError, match=message):
        parse_size(text)


def test_sizes():
    assert [parse_size(text) for text in ("1", "2kB", "1MiB", "1.5g", 7)] == [
        *(1, 2048, 2**20, 3 * 2**29, 7)
    ]


@given(st.integers(1, 2**50))
def test_a_size_that_is_written_is_read_again(size):
    assert parse_size(size_text(size).replace(" bytes", "").replace(" ", "")) == pytest.approx(
        size, rel=5e-3
    )


@pytest.mark.fuzz
@given(st.text(max_size=30) | st.from_regex(r"[a-z_]{0,14}=[-+0-9.e%kMG]{0,9}", fullmatch=True))
def test_any_text_is_an_aim_or_one_line(text):
    for parse in (parse_aim, parse_budget, parse_size):
        message = ""
        try:
            parse(text)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message
