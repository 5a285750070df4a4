"""Floors: by hand, and beside a plain nearest-neighbour search."""

import random
from math import log

import pytest

from deltalm_ds.evaluation.floors import TranslationMemory, first_sentence
from deltalm_ds.evaluation.metrics.words import words_of

WORDS = "open close file window save all new page"


def test_words_of_any_script() -> None:
    assert set(words_of("Open the FILE, open: don't")) == {"open", "the", "file", "don", "t"}
    assert set(words_of("猫在睡觉 ok")) == {"猫", "在", "睡", "觉", "ok"}
    assert words_of("") == [] == words_of("?!")


def test_the_memory_is_a_plain_search_for_the_nearest() -> None:
    draw = random.Random(1)
    sources = [" ".join(draw.choices(WORDS.split(), k=draw.randint(1, 5))) for _ in range(60)]
    memory = TranslationMemory(sources, [str(number) for number in range(60)])
    sets = [set(source.split()) for source in sources]
    weight = {word: log(60 / n) for word in WORDS.split() if (n := sum(word in words for words in sets))}
    for _ in range(40):
        words = set(draw.choices(WORDS.split(), k=draw.randint(1, 5)))
        shares = [sum(weight[w] for w in words & s) / sum(weight[w] for w in words | s) for s in sets]
        found = shares[int(memory.nearest(" ".join(sorted(words))))]
        assert found == pytest.approx(max(shares))


def test_unknown_words_take_nothing_away_from_the_order() -> None:
    memory = TranslationMemory(["save the file", "close the window"], ["Datei speichern", "Fenster schließen"])
    assert memory.nearest("please close that window") == "Fenster schließen"
    assert memory.nearest("xyz") in ("Datei speichern", "Fenster schließen")


def test_the_first_sentence() -> None:
    assert first_sentence("Dr. Meyer came. He left.", "en") == "Dr. Meyer came."
    assert first_sentence("今天下雨。明天晴。", "zh") == "今天下雨。"
    assert first_sentence("No end", "en") == "No end"
