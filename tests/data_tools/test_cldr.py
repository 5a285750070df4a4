"""The CLDR corpus: hand-checked phrases, nothing from Babel's fallbacks, no overlap, the sizes promised."""

import pickle
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from babel import Locale, localedata
from babel.units import format_unit

from deltalm_ds.data_tools import cldr
from deltalm_ds.errors import InputError

Corpus = dict[str, list[tuple[str, str]]]
LANGUAGES = tuple(cldr.NUM_TRAIN)


def own_data(language: str) -> dict[str, Any]:
    """A locale's own data, without what it inherits, read past Babel's cache."""
    with open(localedata.resolve_locale_filename(language), "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def corpora() -> dict[str, Corpus]:
    return {language: cldr.draw_corpus(language, seed=1, scale=0.1) for language in LANGUAGES}


def position(index: int, limit: int) -> float:
    """The uniform number that makes `Draw.below(limit)` give `index`."""
    return (index + 0.5) / limit


def unit_draw(unit: str, length_index: int = 0) -> cldr.Draw:
    """The draw of 3.5 of a unit: its fourth way of numbers is up to 100 tenths."""
    numbers = position(3, 6), position(34, 100)
    length = position(length_index, len(cldr.UNIT_LENGTHS))
    return cldr.Draw([position(cldr.UNITS.index(unit), len(cldr.UNITS)), *numbers, length])


# Written by hand after the languages' own rules, not by running the code.
FULL_DATES = {
    "en": "Saturday, November 21, 2026",
    "fr": "samedi 21 novembre 2026",
    "cs": "sobota 21. listopadu 2026",
    "de": "Samstag, 21. November 2026",
    "fi": "lauantai 21. marraskuuta 2026",
    "lv": "sestdiena, 2026. gada 21. novembris",
    "et": "laupäev, 21. november 2026",
    "ro": "sâmbătă, 21 noiembrie 2026",
    "hi": "शनिवार, 21 नवंबर 2026",
    "tr": "21 Kasım 2026 Cumartesi",
    "gu": "શનિવાર, 21 નવેમ્બર, 2026",
}
KILOMETERS = {
    "en": "3.5 kilometers",
    "fr": "3,5 kilomètres",
    "cs": "3,5 kilometru",
    "de": "3,5 Kilometer",
    "fi": "3,5 kilometriä",
    "lv": "3,5 kilometri",
    "et": "3,5 kilomeetrit",
    "ro": "3,5 kilometri",
    "hi": "3.5 किलोमीटर",
    "tr": "3,5 kilometre",
    "gu": "3.5 કિલોમીટર",
}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_hand_checked_phrases(language: str) -> None:
    locale = Locale(language)
    days = (date(2026, 11, 21) - cldr.FIRST_DAY).days, (cldr.LAST_DAY - cldr.FIRST_DAY).days + 1
    saturday = cldr._date(cldr.Draw([position(*days), 0.0]), locale)
    assert cldr.clean(saturday(locale)) == FULL_DATES[language]
    distance = cldr._unit(unit_draw("length-kilometer"), Locale("de"))
    assert distance is not None
    assert cldr.clean(distance(locale)) == KILOMETERS[language]


def test_demo_phrases_are_held_out() -> None:
    assert set(cldr.DEMO_PHRASES) == {FULL_DATES["en"], KILOMETERS["en"]}
    assert {cldr.split_of(phrase, seed) for phrase in cldr.DEMO_PHRASES for seed in range(9)} == {"test"}


def test_plural_and_case_follow_the_number() -> None:
    """Czech: 1 rok, 2 roky, 5 let; in the past in the instrumental; amounts of money in the genitive."""
    years = {1: "1 rok", 2: "2 roky", 5: "5 let"}
    assert {count: cldr._write_duration(count, "year", Locale("cs")) for count in years} == years
    assert cldr._write_duration(-24, "hour", Locale("cs"), add_direction=True) == "před 24 hodinami"
    euro = position(cldr.CURRENCIES.index("EUR"), len(cldr.CURRENCIES))
    money = cldr._money(cldr.Draw([euro, 0.9, 0.1, 0.1, position(4, 20)]), Locale("cs"))
    assert money is not None
    assert [money(Locale(language)) for language in ("en", "cs", "ro")] == ["5 euros", "5 eur", "5 euro"]


def test_a_missing_unit_is_left_out() -> None:
    """Babel writes "3.5 length-mile" in Hindi, Turkish and Gujarati, and English "tsp" where root data is inherited."""
    for language in ("hi", "tr", "gu"):
        assert cldr._unit(unit_draw("length-mile"), Locale(language)) is None
    assert cldr._unit(unit_draw("length-mile"), Locale("de")) is not None
    assert "volume-teaspoon" in own_data("root")["unit_patterns"]
    inherited = [x for x in LANGUAGES if "short" not in own_data(x)["unit_patterns"].get("volume-teaspoon", {})]
    assert all(cldr._unit(unit_draw("volume-teaspoon", 3), Locale(language)) is None for language in inherited)


def test_babels_private_data_is_what_its_public_function_writes() -> None:
    """Babel may change it: were it empty, all phrases with units would be left out without a word."""
    for language in LANGUAGES:
        locale = Locale(language)
        patterns = cldr._unit_patterns(locale, "mass-kilogram", "long")
        for count in (1, 2, 5, 21):
            written = format_unit(count, "mass-kilogram", "long", locale=locale)
            assert patterns[locale.plural_form(count)].format(count) == written
    assert cldr._unit_patterns(Locale("de"), "mass-nothing", "long") == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_unit_is_the_language_s_own(language: str) -> None:
    own, locale, num_checked = own_data(language)["unit_patterns"], Locale(language), 0
    for unit in cldr.UNITS:
        if render := cldr._unit(unit_draw(unit), locale):
            pattern = own[unit]["long"][locale.plural_form(Decimal("3.5"))]
            assert render(locale) == pattern.format("3.5" if language in ("hi", "gu") else "3,5")
            num_checked += 1
    assert num_checked >= 30


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_is_the_language_s_own(language: str) -> None:
    own = own_data(language)
    assert set(cldr.TERRITORIES) <= set(own["territories"])
    assert set(cldr.LANGUAGES) <= set(own["languages"])
    assert set(own["months"]["format"]["wide"]) == set(range(1, 13))
    assert set(own["days"]["format"]["wide"]) == set(range(7))
    assert {"yMMMEd", "MMMMd", "yMMMM"} <= set(own["datetime_skeletons"])
    assert set(cldr.LIST_STYLES) <= set(own["list_patterns"])
    plurals = {Locale(language).plural_form(count) for count in range(1, 100)}
    for unit in cldr._SECONDS_OF_UNIT:
        assert all(plurals <= set(own["date_fields"][unit][direction]) for direction in ("future", "past"))
        durations = own["unit_patterns"][f"duration-{unit}"]
        # Babel takes the first length that has "other": root's long form is an alias of the short one.
        first = next(durations[length] for length in ("long", "short") if "other" in durations.get(length, {}))
        assert plurals <= set(first)


def test_no_identifiers_and_no_english(corpora: dict[str, Corpus]) -> None:
    identifier = re.compile("|".join({unit.split("-")[0] + "-" for unit in cldr.UNITS}))
    for language, corpus in corpora.items():
        for english, target in (pair for pairs in corpus.values() for pair in pairs):
            assert english and target
            assert not re.search(r"[\u00a0\u202f\u200e\u200f\n]|^\s|\s$", english + target)
            assert not identifier.search(target), target
            if language in ("hi", "gu"):
                assert set(re.findall("[A-Za-z]+", target)) <= {"AM", "PM", "am", "pm"}, target
            if re.search(r"day,? |and |ago|hour|dollar|degree", english):
                assert english != target
            if dated := re.match(r"(?:\w+, )?[A-Z]\w+ (?:\d+, )?([12]\d{3})(?:,|$)", english):
                assert dated[1] in target


def test_splits_share_no_text(corpora: dict[str, Corpus]) -> None:
    split_of_english: dict[str, str] = {}
    for corpus in corpora.values():
        for side in (0, 1):
            texts = [pair[side] for pairs in corpus.values() for pair in pairs]
            assert len(set(texts)) == len(texts)
        for split, pairs in corpus.items():
            assert all(split_of_english.setdefault(english, split) == split for english, _ in pairs)


def test_sizes(corpora: dict[str, Corpus]) -> None:
    assert sum(cldr.NUM_TRAIN.values()) == 144_500
    for language, corpus in corpora.items():
        sizes = {split: len(pairs) for split, pairs in corpus.items()}
        assert sizes == {"train": cldr.NUM_TRAIN[language] // 10, "dev": 20, "test": 20}


def test_held_out_phrases_are_of_the_same_kinds() -> None:
    """Each recognisable kind has about the share in dev and test that it has in training."""
    corpus = cldr.draw_corpus("et", seed=1)
    for kind in (r"^\w+day, ", r"[AP]M$", r" ago$|^in \d", r", and |, or ", r"dollar|euro|kron", r"^\d\S* \w+s$"):
        train, *held_out = (
            sum(bool(re.search(kind, english)) for english, _ in corpus[split]) / len(corpus[split])
            for split in cldr.SPLITS
        )
        # 200 phrases: a standard deviation of at most 0.035.
        assert all(abs(share - train) < 0.11 for share in held_out), (kind, train, held_out)


def test_drawing_is_a_function_of_the_seed(corpora: dict[str, Corpus]) -> None:
    assert cldr.draw_corpus("gu", seed=1, scale=0.1) == corpora["gu"]
    assert cldr.draw_corpus("gu", seed=2, scale=0.1) != corpora["gu"]
    # A larger corpus begins with the smaller one.
    assert cldr.draw_corpus("gu", seed=1, scale=0.2)["train"][:200] == corpora["gu"]["train"]


def test_writes_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "corpus"
    summary = cldr.write_corpus(out, seed=1, scale=0.001)
    assert summary["num_pairs"]["train"] == {f"en-{x}": -(-cldr.NUM_TRAIN[x] // 1000) for x in LANGUAGES}
    assert len(list(out.iterdir())) == 3 * 2 * len(LANGUAGES)
    english = (out / "train.en-de.en").read_text(encoding="utf-8").splitlines()
    german = (out / "train.en-de.de").read_text(encoding="utf-8").splitlines()
    assert list(zip(english, german, strict=True)) == cldr.draw_corpus("de", seed=1, scale=0.001)["train"]

    with pytest.raises(InputError, match="exists already"):
        cldr.write_corpus(out, seed=1, scale=0.001)
    with pytest.raises(InputError, match="positive"):
        cldr.write_corpus(tmp_path / "other", seed=1, scale=0)
    draw_corpus = cldr.draw_corpus

    def fail_at_last(language: str, seed: int, scale: float) -> Corpus:
        if language == "gu":
            raise OSError("disk full")
        return draw_corpus(language, seed, scale)

    monkeypatch.setattr(cldr, "draw_corpus", fail_at_last)
    with pytest.raises(OSError, match="disk full"):
        cldr.write_corpus(tmp_path / "other", seed=1, scale=0.001)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
