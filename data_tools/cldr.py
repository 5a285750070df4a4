"""The built-in demo corpus: everyday phrases in English and ten languages, made from Unicode CLDR by Babel.

Dates, times, durations, amounts of money, units and lists, in the proportions of WMT-10 (compressed). Case, plural
and word order are CLDR's own; a phrase that a language's data does not have is left out rather than taken from
Babel's fallbacks. Needs no download, and is a pure function of (seed, scale, Babel's version).
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from babel import Locale, __version__
from babel.dates import (
    TIMEDELTA_UNITS,
    format_date,
    format_skeleton,
    format_time,
    format_timedelta,
)
from babel.lists import format_list
from babel.numbers import format_compact_decimal, format_currency, get_currency_precision
from babel.units import format_unit

from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_directory
from deltalm_ds.progress import progress

NUM_TRAIN = {
    "fr": 40_000,
    "cs": 30_000,
    "de": 20_000,
    "fi": 20_000,
    "lv": 12_000,
    "et": 8_000,
    "ro": 6_000,
    "hi": 3_500,
    "tr": 3_000,
    "gu": 2_000,
}
"""Training pairs with English: 144,500 in all, falling in the order of WMT-10's sizes."""

NUM_HELD_OUT = 200
"""Pairs of each language in `dev` and in `test`."""

SPLITS = ("train", "dev", "test")

DEMO_PHRASES = ("Saturday, November 21, 2026", "3.5 kilometers")
"""What the demo translates in the end: never trained on."""

Element = TypeVar("Element")
Render = Callable[[Locale], str]
"""What a phrase means, written in a language."""


def write_corpus(out_directory: str | Path, seed: int = 1, scale: float = 1.0) -> dict[str, Any]:
    """Write `<split>.en-<xx>.<language>`, one phrase a line, for train, dev and test of ten language pairs.

    An English phrase belongs to one split only, in all pairs; within a pair no text of either side occurs twice.

    Args:
        out_directory: a new directory; it appears only when complete.
        seed: another seed draws other phrases.
        scale: multiplies all sizes (1.0: 144,500 pairs for training, 200 of each pair for dev and test).

    Returns:
        The summary: Babel's version, seed, scale, and the number of pairs by split and language pair.

    Raises:
        InputError: the directory exists and is not empty, or the scale is not positive.
    """
    if not scale > 0:
        raise InputError(f"The scale of the CLDR corpus must be positive, not {scale}.")
    num_pairs: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    with (
        atomic_directory(out_directory) as directory,
        progress("CLDR phrases", total=len(NUM_TRAIN), unit="language pairs") as advance,
    ):
        for language in NUM_TRAIN:
            for split, pairs in draw_corpus(language, seed, scale).items():
                num_pairs[split][f"en-{language}"] = len(pairs)
                for side, texts in zip(("en", language), zip(*pairs, strict=True), strict=True):
                    path = directory / f"{split}.en-{language}.{side}"
                    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
            advance()
    return {"babel": __version__, "seed": seed, "scale": scale, "num_pairs": num_pairs}


def draw_corpus(language: str, seed: int, scale: float = 1.0) -> dict[str, list[tuple[str, str]]]:
    """Draw phrases until every split of the pair English and `language` is full; (English, other) by split."""
    wanted = {"train": NUM_TRAIN[language], "dev": NUM_HELD_OUT, "test": NUM_HELD_OUT}
    wanted = {split: math.ceil(count * scale) for split, count in wanted.items()}
    corpus: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    english_locale, locale = Locale("en"), Locale(language)
    seen_english, seen_target = set(), set()
    for draw in draws(seed, language):
        render = draw_phrase(draw, locale)
        english = clean(render(english_locale)) if render else None
        if render is None or english is None or english in seen_english:
            continue
        seen_english.add(english)
        split = split_of(english, seed)
        if len(corpus[split]) == wanted[split]:
            continue
        target = clean(render(locale))
        if target in seen_target or is_fallback(target, language):
            continue
        seen_target.add(target)
        corpus[split].append((english, target))
        if all(len(corpus[name]) == wanted[name] for name in SPLITS):
            return corpus
    raise AssertionError("draws() never ends")


def split_of(english: str, seed: int) -> str:
    """The split an English phrase belongs to, whatever the other language: a twelfth each to dev and test."""
    if english in DEMO_PHRASES:
        return "test"
    bucket = hashlib.blake2b(f"{seed} {english}".encode(), digest_size=8).digest()
    return {0: "dev", 1: "test"}.get(int.from_bytes(bucket, "big") % 12, "train")


_SPACES = re.compile("[\u00a0\u2009\u202f]")
_INVISIBLE = re.compile("[\u061c\u200b\u200e\u200f\u2060]")


def clean(text: str) -> str:
    """Plain spaces for no-break and thin ones, and no direction marks: what people type, and BLEU can split."""
    return _INVISIBLE.sub("", _SPACES.sub(" ", text)).strip()


_LATIN_WORD = re.compile(r"(?!(?:AM|PM|am|pm)\b)[A-Za-z]+")


def is_fallback(text: str, language: str) -> bool:
    """Whether a phrase of a language in another script has Latin letters: then CLDR's root data was used."""
    return language in ("gu", "hi") and _LATIN_WORD.search(text) is not None


# --- drawing ---


class Draw:
    """The random choices of one phrase, in order, from one row of uniform numbers."""

    def __init__(self, uniforms: Sequence[float]) -> None:
        self._uniforms = iter(uniforms)

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        return int(next(self._uniforms) * limit)

    def choice(self, elements: Sequence[Element]) -> Element:
        """One of the elements."""
        return elements[self.below(len(elements))]

    def some(self, elements: Sequence[Element], count: int) -> list[Element]:
        """`count` different elements, in random order."""
        rest = list(elements)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


DRAWS_PER_PHRASE = 8


def draws(seed: int, language: str) -> Iterator[Draw]:
    """Endlessly, the draws of phrase 0, 1, …: phrase i's are a function of (seed, language, i) alone (Philox)."""
    key = hashlib.blake2b(f"{seed} {language}".encode(), digest_size=16).digest()
    uniforms = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    while True:
        for row in uniforms.random((1024, DRAWS_PER_PHRASE)).tolist():
            yield Draw(row)


def draw_phrase(draw: Draw, locale: Locale) -> Render | None:
    """Draw what a phrase says; None if `locale` lacks the data to say it."""
    return draw.choice(_KIND_WHEEL)(draw, locale)


# --- kinds of phrases: each draws what is said and returns how to say it ---

FIRST_DAY, LAST_DAY = date(1950, 1, 1), date(2049, 12, 31)


def _draw_day(draw: Draw) -> date:
    return date.fromordinal(FIRST_DAY.toordinal() + draw.below((LAST_DAY - FIRST_DAY).days + 1))


DATE_STYLES: tuple[Literal["full", "long", "medium"], ...] = ("full", "full", "full", "long", "long", "medium")


def _date(draw: Draw, locale: Locale) -> Render:
    day, style = _draw_day(draw), draw.choice(DATE_STYLES)
    return lambda locale: format_date(day, style, locale)


def _short_date(draw: Draw, locale: Locale) -> Render:
    midnight, skeleton = datetime.combine(_draw_day(draw), time()), draw.choice(("yMMMEd", "MMMMd"))
    return lambda locale: format_skeleton(skeleton, midnight, locale=locale)


def _month(draw: Draw, locale: Locale) -> Render:
    first = datetime.combine(_draw_day(draw).replace(day=1), time())
    return lambda locale: format_skeleton("yMMMM", first, locale=locale)


def _draw_time(draw: Draw) -> time:
    return time(draw.below(24), draw.below(60), draw.below(60))


def _time(draw: Draw, locale: Locale) -> Render:
    moment, style = _draw_time(draw), draw.choice(("short", "medium"))
    return lambda locale: format_time(moment, style, locale=locale)


def _date_and_time(draw: Draw, locale: Locale) -> Render:
    day, style, moment = _draw_day(draw), draw.choice(DATE_STYLES), _draw_time(draw)

    def render(locale: Locale) -> str:
        pattern = str(locale.datetime_formats[style]).replace("'", "")
        written = {"{1}": format_date(day, style, locale), "{0}": format_time(moment, "short", locale=locale)}
        return re.sub(r"\{[01]\}", lambda place: written[place[0]], pattern)

    return render


_SECONDS_OF_UNIT = dict(TIMEDELTA_UNITS)
"""Babel's own, from year to second."""


def _write_duration(count: int, unit: str, locale: Locale, add_direction: bool = False) -> str:
    # An endless threshold: else Babel writes 24 hours as a day.
    seconds = count * _SECONDS_OF_UNIT[unit]
    return format_timedelta(seconds, unit, math.inf, add_direction, "long", locale)  # type: ignore[arg-type]


def _relative_time(draw: Draw, locale: Locale) -> Render:
    unit, count, sign = draw.choice(tuple(_SECONDS_OF_UNIT)), 1 + draw.below(99), draw.choice((-1, 1))
    return lambda locale: _write_duration(sign * count, unit, locale, add_direction=True)


def _duration(draw: Draw, locale: Locale) -> Render:
    larger = draw.below(len(_SECONDS_OF_UNIT) - 1)
    units, counts = tuple(_SECONDS_OF_UNIT)[larger : larger + 2], (1 + draw.below(30), 1 + draw.below(59))
    parts = tuple(zip(counts, units, strict=True))[: 1 + draw.below(2)]
    return lambda locale: format_list([_write_duration(*part, locale) for part in parts], "standard", locale)


def _draw_number(draw: Draw) -> int | Decimal:
    """A whole number or one with a decimal: a Decimal keeps its zeros, so that plurals follow what is written."""
    largest, digits = draw.choice(((20, 0), (100, 0), (5_000, 0), (100, 1), (200, 1), (1_000, 1)))
    number = 1 + draw.below(largest)
    return number if digits == 0 else Decimal(number).scaleb(-digits)


CURRENCIES = tuple(
    """
    AUD BRL CAD CHF CNY CZK DKK EUR GBP HUF ILS INR ISK JPY KRW MXN NOK NZD PLN RON RUB SEK THB TRY UAH USD ZAR
    """.split()  # noqa: SIM905
)


def _money(draw: Draw, locale: Locale) -> Render | None:
    code, by_name = draw.choice(CURRENCIES), draw.below(4) > 0
    whole = draw.choice((True, False)) or get_currency_precision(code) == 0
    amount = 1 + draw.below(draw.choice((20, 1_000, 50_000)) * (1 if whole else 100))
    number = Decimal(amount) if whole else Decimal(amount).scaleb(-2)
    if code not in locale.currencies or (not by_name and locale.currency_symbols.get(code, code) == code):
        return None
    if by_name:
        return lambda locale: format_currency(
            number, code, format_type="name", currency_digits=not whole, locale=locale
        )
    return lambda locale: format_currency(number, code, locale=locale)


UNITS = tuple(
    """
    area-hectare area-square-centimeter area-square-foot area-square-kilometer area-square-meter area-square-mile
    digital-gigabyte digital-kilobyte digital-megabyte digital-terabyte
    electric-ampere electric-volt energy-calorie energy-joule energy-kilocalorie energy-kilowatt-hour
    frequency-gigahertz frequency-hertz frequency-kilohertz frequency-megahertz
    length-centimeter length-foot length-inch length-kilometer length-light-year length-meter length-mile
    length-millimeter length-nautical-mile length-yard light-lux
    mass-gram mass-kilogram mass-milligram mass-ounce mass-pound mass-tonne
    power-horsepower power-kilowatt power-megawatt power-watt pressure-hectopascal pressure-millibar
    speed-kilometer-per-hour speed-knot speed-meter-per-second speed-mile-per-hour
    temperature-celsius temperature-fahrenheit temperature-kelvin
    volume-centiliter volume-cubic-kilometer volume-cubic-meter volume-cup volume-gallon volume-liter
    volume-milliliter volume-tablespoon volume-teaspoon
    """.split()  # noqa: SIM905
)


UNIT_LENGTHS: tuple[Literal["long", "short"], ...] = ("long", "long", "long", "short")


def _unit(draw: Draw, locale: Locale) -> Render | None:
    unit, number, length = draw.choice(UNITS), _draw_number(draw), draw.choice(UNIT_LENGTHS)
    pattern = _unit_patterns(locale, unit, length).get(locale.plural_form(number))
    # Without a pattern Babel would write the unit's identifier ("24.5 length-mile") or its title; the root's
    # patterns are English abbreviations ("tsp") as much as international symbols.
    if pattern is None or pattern == _unit_patterns(Locale("root"), unit, length).get("other"):
        return None
    return lambda locale: format_unit(number, unit, length, locale=locale)


def _unit_patterns(locale: Locale, unit: str, length: str) -> dict[str, str]:
    """How each plural form of a unit is written; {} where that is not known.

    Babel has no public way to ask: this is the one place that looks into its private data.
    """
    return locale._data["unit_patterns"].get(unit, {}).get(length, {})


def _compact_number(draw: Draw, locale: Locale) -> Render:
    # Two digits that count: what is rounded in one language would be lost in the other.
    number = (10 + draw.below(90)) * 10 ** (2 + draw.below(9))
    return lambda locale: format_compact_decimal(number, format_type="long", fraction_digits=1, locale=locale)


TERRITORIES = tuple(
    """
    AR AT AU BD BE BG BR CA CH CL CN CO CY CZ DE DK EE EG ES ET FI FR GB GR HR HU ID IE IL IN IQ IR IS IT JP KE KR
    LT LU LV MA MT MX NG NL NO NP NZ PE PH PK PL PT RO RS RU SA SE SG SI SK TH TR UA US VN ZA
    """.split()  # noqa: SIM905
)
LANGUAGES = tuple(
    """
    ar bg bn cs da de el en es et eu fa fi fr gu he hi hr hu id is it ja ko lt lv mr nl pl pt ro ru sk sl sv sw ta
    te th tr uk ur vi zh
    """.split()  # noqa: SIM905
)

LIST_STYLES: tuple[Literal["standard", "or"], ...] = ("standard", "standard", "or")


def _list(draw: Draw, locale: Locale) -> Render:
    kind = draw.choice(("territories", "territories", "languages", "languages", "months", "days"))
    style, count = draw.choice(LIST_STYLES), 2 + draw.below(3)
    keys: Sequence[Any] = {
        "territories": TERRITORIES,
        "languages": LANGUAGES,
        "months": range(1, 13),
        "days": range(7),
    }[kind]
    chosen = draw.some(keys, count)

    def render(locale: Locale) -> str:
        names = getattr(locale, kind)
        if kind in ("months", "days"):
            names = names["stand-alone"]["wide"]
        return format_list([names[key] for key in chosen], style, locale)

    return render


_KIND_WEIGHTS: dict[Callable[[Draw, Locale], Render | None], int] = {
    _date: 22,
    _short_date: 5,
    _month: 2,
    _time: 3,
    _date_and_time: 10,
    _relative_time: 7,
    _duration: 7,
    _money: 14,
    _unit: 20,
    _compact_number: 1,
    _list: 10,
}
_KIND_WHEEL = tuple(kind for kind, weight in _KIND_WEIGHTS.items() for _ in range(weight))
