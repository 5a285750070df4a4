"""Sentences and the cuts of over-long ones, against what must hold of any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.generation.documents.sentences import cut, language_of, sentence_space, split_sentences

TEXTS = st.text(st.sampled_from("ab C.,;!? 。，中文é\u0301\U0001f600-\"'()1"), max_size=80)


@given(TEXTS, st.sampled_from(["en", "de", "zh_Hans", "hi", "tlh"]), st.integers(1, 20), st.data())
def test_sentences_and_their_parts_are_all_of_the_text(text, language, most, data):
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4, unique=True)))
    whole = list(zip(ends[::2], ends[1::2], strict=False))
    sentences = split_sentences(text, language, whole)
    parts = [part for sentence in sentences for part in cut(text, sentence, lambda part: len(part) <= most, whole)]
    for spans in (sentences, parts):
        assert all(start < end for start, end in spans)
        bounds = [0, *(place for span in spans for place in span), len(text)]
        assert bounds == sorted(bounds)
        between = "".join(text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True))
        assert not between.strip()
        assert not any(start < place < end for place in bounds for start, end in whole)
    for start, end in parts:
        touches = any(start <= begin and stop <= end for begin, stop in whole)
        assert end - start <= most or touches or "\u0301" in text[start:end]


def test_it_is_cut_where_a_clause_ends_then_at_a_space_then_anywhere():
    def parts(text, most):
        return [text[start:end] for start, end in cut(text, (0, len(text)), lambda part: len(part) <= most)]

    assert parts("one two three, four five six", 20) == ["one two three,", "four five six"]
    assert parts("one two three four five six", 20) == ["one two three", "four five six"]
    assert parts("一二三四，五六七八", 6) == ["一二三四，", "五六七八"]
    assert parts("abcdefgh", 4) == ["abcd", "efgh"]
    assert parts("abce\u0301fgh", 4) == ["abc", "e\u0301fgh"] or all(
        not p.startswith("\u0301") for p in parts("abce\u0301fgh", 5)
    )


def test_abbreviations_of_the_language_end_no_sentence():
    text = "Das gilt z. B. für Herrn Dr. Müller. Es regnet."
    assert [text[start:end] for start, end in split_sentences(text, "de")][-1] == "Es regnet."
    text = "Mr. Smith met Dr. Jones. They talked."
    assert len(split_sentences(text, "en")) == 2


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Guten Tag", "en"),
        ("你好，世界", "zh"),
        ("こんにちは世界", "ja"),
        ("नमस्ते", "hi"),
        ("Привет", "ru"),
        ("123", "en"),
    ],
)
def test_a_language_of_the_script(text, language):
    assert language_of([text]) == language


def test_what_stands_between_sentences():
    assert [sentence_space(code) for code in ("zh", "zho_Hant", "ja", "ko", "th", "de")] == ["", "", "", " ", " ", " "]
