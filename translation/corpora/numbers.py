"""A German-English corpus that is made and not downloaded: dates, times, numbers, amounts, durations."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, time, timedelta

Pair = tuple[str, str]
LANGUAGES = ("de", "en")

_CURRENCIES = ("EUR", "USD", "GBP", "CHF", "JPY", "SEK")
_UNITS = (
    *("length-kilometer", "length-meter", "length-centimeter", "mass-kilogram", "mass-gram"),
    *("volume-liter", "area-square-meter", "speed-kilometer-per-hour", "temperature-celsius"),
    *("energy-kilowatt-hour", "digital-megabyte", "length-mile"),
)
_DURATIONS = (
    "duration-week",
    "duration-day",
    "duration-hour",
    "duration-minute",
    "duration-second",
)


def number_pairs(size: int, seed: int) -> list[Pair]:
    """Draw pairs of German and English phrases that say the same, no German one twice.

    OURS. The wording is that of Unicode CLDR (by Babel) and of num2words; nothing is written by hand. A
    pair holds one to three phrases, joined as CLDR joins lists.

    Args:
        size: number of pairs, at least 1.
        seed: the same seed gives the same pairs (with the same versions of Babel and num2words), and
            a smaller size the first of them.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> for german, english in number_pairs(3, seed=6):
        ...     print(german, "|", english)
        78,1 % | 78.1%
        30. Januar 1950 und 7.163,7 Liter | January 30, 1950 and 7,163.7 liters
        82,2 % und 14. Apr. - 22. Juni 2024 | 82.2% and Apr 14 - Jun 22, 2024
    """
    from babel.lists import format_list

    if size < 1:
        raise ValueError(f"the corpus needs at least one pair, got size {size}")
    draw = random.Random(seed)
    kinds = list(KINDS.values())
    pairs: dict[str, str] = {}
    while len(pairs) < size:
        parts = [draw.choice(kinds)(draw) for _ in range(draw.choice((1, 1, 2, 3)))]
        german, english = (
            plain(format_list([part[side] for part in parts], locale=language))
            for side, language in enumerate(LANGUAGES)
        )
        pairs.setdefault(german, english)
    return list(pairs.items())


def plain(text: str) -> str:
    """Text as people type it: CLDR's special spaces and dashes are the ordinary ones.

    Example:
        >>> plain("2:05\\u202fPM, 25.\\u2009–\\u200929. Nov.")
        '2:05 PM, 25. - 29. Nov.'
    """
    spaced = "".join(" " if unicodedata.category(letter) == "Zs" else letter for letter in text)
    return " ".join(spaced.replace("–", "-").replace("−", "-").split())


def _both(render: Callable[[str], str]) -> Pair:
    german, english = (render(language) for language in LANGUAGES)
    return german, english


def _whole(draw: random.Random) -> int:
    """A whole number of one to six digits, each length as likely."""
    digits = draw.randint(1, 6)
    return draw.randint(10 ** (digits - 1), 10**digits - 1)


def _day(draw: random.Random) -> date:
    return date(1950, 1, 1) + timedelta(days=draw.randrange(100 * 365))


def _clock(draw: random.Random) -> time:
    return time(draw.randrange(24), draw.randrange(60), draw.randrange(60))


def _date(draw: random.Random) -> Pair:
    from babel.dates import format_date

    day, style = _day(draw), draw.choice(("full", "long", "medium", "short"))
    return _both(lambda language: format_date(day, style, locale=language))


def _time(draw: random.Random) -> Pair:
    from babel.dates import format_time

    clock, style = _clock(draw), draw.choice(("short", "medium"))
    return _both(lambda language: format_time(clock, style, locale=language))


def _moment(draw: random.Random) -> Pair:
    from babel.dates import format_datetime

    moment = datetime.combine(_day(draw), _clock(draw))
    return _both(lambda language: format_datetime(moment, "medium", locale=language))


def _interval(draw: random.Random) -> Pair:
    from babel.dates import format_interval

    start = _day(draw)
    end = start + timedelta(days=draw.randint(1, 90))
    return _both(lambda language: format_interval(start, end, "yMMMd", locale=language))


def _in_words(draw: random.Random) -> Pair:
    from num2words import num2words

    number = _whole(draw)
    return _both(lambda language: num2words(number, lang=language))


def _ordinal(draw: random.Random) -> Pair:
    from num2words import num2words

    number = draw.randint(1, 999)
    return _both(lambda language: num2words(number, lang=language, to="ordinal"))


def _decimal(draw: random.Random) -> Pair:
    from babel.numbers import format_decimal

    number = _whole(draw) / draw.choice((1, 10, 100))
    return _both(lambda language: format_decimal(number, locale=language))


def _percent(draw: random.Random) -> Pair:
    from babel.numbers import format_percent

    part = draw.randint(1, 1000) / 1000
    return _both(lambda language: format_percent(part, locale=language, decimal_quantization=False))


def _amount(draw: random.Random) -> Pair:
    from babel.numbers import format_currency

    number, currency = _whole(draw) / draw.choice((1, 100)), draw.choice(_CURRENCIES)
    kind = draw.choice(("standard", "name"))
    return _both(
        lambda language: format_currency(number, currency, locale=language, format_type=kind)
    )


def _price_in_words(draw: random.Random) -> Pair:
    from num2words import num2words

    number = draw.randint(100, 99999) / 100
    return _both(lambda language: num2words(number, lang=language, to="currency", currency="EUR"))


def _measure(draw: random.Random) -> Pair:
    from babel.units import format_unit

    number, unit = _whole(draw) / draw.choice((1, 10)), draw.choice(_UNITS)
    length = draw.choice(("long", "short"))
    return _both(lambda language: format_unit(number, unit, length=length, locale=language))


def _duration(draw: random.Random) -> Pair:
    from babel.lists import format_list
    from babel.units import format_unit

    first = draw.randrange(len(_DURATIONS))
    units = _DURATIONS[first : first + draw.randint(1, 3)]
    numbers = [draw.randint(1, 59) for _ in units]
    return _both(
        lambda language: format_list(
            [
                format_unit(number, unit, length="long", locale=language)
                for number, unit in zip(numbers, units, strict=True)
            ],
            locale=language,
        )
    )


def _from_now(draw: random.Random) -> Pair:
    from babel.dates import format_timedelta

    unit = draw.choice(("second", "minute", "hour", "day", "week", "month", "year"))
    length = {"month": timedelta(days=30), "year": timedelta(days=365)}.get(unit)
    length = timedelta(**{f"{unit}s": 1}) if length is None else length
    span = length * (draw.randint(1, 50) * draw.choice((1, -1)))
    return _both(
        lambda language: format_timedelta(
            span, granularity=unit, threshold=1000, add_direction=True, locale=language
        )
    )


KINDS: dict[str, Callable[[random.Random], Pair]] = {
    "date": _date,
    "time": _time,
    "moment": _moment,
    "interval": _interval,
    "number in words": _in_words,
    "ordinal": _ordinal,
    "decimal": _decimal,
    "percent": _percent,
    "amount": _amount,
    "price in words": _price_in_words,
    "measure": _measure,
    "duration": _duration,
    "from now": _from_now,
}
