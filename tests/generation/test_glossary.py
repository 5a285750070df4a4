"""Phrases and glossaries on cases by hand, and forms that are forced."""

from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.generation.glossary import Forcing, Glossary, missing
from deltalm_ds.generation.interface import Hypothesis, SearchOptions
from deltalm_ds.generation.phrases import read_phrase, read_phrases


@pytest.mark.parametrize(
    ("phrase", "text", "expected"),
    [
        ("dog", "A dog, a Dog and a hotdog; dogs.", ["dog", "Dog"]),
        ("Dog", "A dog, a Dog.", ["Dog"]),
        ("dog*", "dogs and hotdogs, dog", ["dog", "dog", ]),
        ("New  York", "in New York", ["New York"]),
        ("c++", "C++ and c", ["C++"]),
        ("犬", "白い犬が走る。子犬", ["犬", "犬"]),
        ("eau", "l'eau, bateau", ["eau"]),
        ("cafe\u0301", "Ein café", ["café"]),
        ("सड", "सड़क", []),
    ],
)  # fmt: skip
def test_phrases_are_whole_words(phrase, text, expected):
    spans = read_phrase(phrase).spans(text)
    assert [text[start:end] for start, end in spans] == expected


def glossary(tmp_path, *lines):
    (tmp_path / "glossary.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Glossary.read(tmp_path / "glossary.tsv")


def test_the_longest_term_wins(tmp_path):
    found = glossary(tmp_path, "York\tYork", "New York\tNeu-York", "dog\tHund*", "犬\tHündchen", "Dog\tDogge")

    def forms(source):
        return [form.written for form in found.forms_of(source)]

    assert forms("the dog of New York") == ["Hund*", "Neu-York"]
    assert forms("York and New York") == ["York", "Neu-York"]
    assert forms("A Dog and 犬が") == ["Dogge", "Hündchen"]
    assert forms("dogs and yorks") == []
    hund, city = found.forms_of("the dog of New York")
    assert missing([hund, city], "Zwei Hunde in Neu-York") == []
    assert missing([hund, city], "Schweinehund in neu-york") == [hund, city]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\tb", "c"], "line 2: found 1 columns, expected 2"),
        (["a\tb\tc"], "line 1: found 3 columns"),
        (["a\tb", ""], "line 2: found 1 columns"),
        (["a\t "], "line 1: the form is empty"),
        (["a\tb", "\tc"], "line 2: the term is empty"),
        (["*\tc"], "line 1: the term is empty"),
        (["a\tb", "c\td", "a\te"], r"line 3: the term 'a' has the form 'e', and in line 1 'b'"),
    ],
)
def test_faulty_glossaries_are_named_by_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        glossary(tmp_path, *lines)


def test_equal_rows_are_one_and_empty_phrases_are_refused(tmp_path):
    assert len(glossary(tmp_path, "a\tb", "a\tb").forms_of("a")) == 1
    (tmp_path / "ban").write_text("one\n  \n")
    with pytest.raises(InputError, match="ban, line 2: there is no phrase"):
        read_phrases(Path(tmp_path / "ban"))


class Likes:
    """An engine whose tokens are characters: it wants `wanted`, and goes on with that behind any prefix."""

    vocabulary_size, max_positions, batch_tokens = 2**20, 60, 10_000

    def __init__(self, wanted):
        self.wanted = wanted

    def generate(self, sources, options):
        text = "".join(map(chr, options.prefix))
        text += self.wanted[len(text) :]
        return [[Hypothesis(tuple(map(ord, text)), -1.0)] * len(sources)][:1] * len(sources)

    def score(self, sources, targets):
        """A character that is wanted at its place is sure."""
        texts = ["".join(map(chr, target)) for target in targets]
        return [[0.0 if self.wanted.startswith(t[: i + 1]) else -1.0 for i in range(len(t) + 1)] for t in texts]


@pytest.mark.parametrize(
    ("forms", "expected"),
    [
        (["Hund"], "der Hund ist rot."),
        (["Hund", "rote"], None),
        (["犬"], None),
    ],
)
def test_a_form_is_put_where_it_is_most_probable(forms, expected):
    engine = Likes("der Hund ist rot.")
    forcing = Forcing(engine, lambda text: list(map(ord, text)), lambda ids: "".join(map(chr, ids)), SearchOptions())
    forms = [read_phrase(form) for form in forms]
    found = forcing.decode(forcing.force([4], "der Kater ist rot.", forms).ids)
    assert missing(forms, found) == []
    assert expected in (None, found)
