"""Words of any script."""

import pytest

from deltalm_ds.evaluation.metrics.words import words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's 2 mats, déjà-vu!", ["the", "cat", "s", "2", "mats", "déjà", "vu"]),
        ("बिल्ली चटाई पर", ["बिल्ली", "चटाई", "पर"]),  # \w+ would cut at each vowel sign
        ("今天abc很好。", ["今", "天", "abc", "很", "好"]),
        ("カタカナ", ["カ", "タ", "カ", "ナ"]),
        ("ดีที่", ["ดี", "ที่"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("İstanbul'da", ["i̇stanbul", "da"]),
        ("", []),
        ("…!_-", []),
    ],
)
def test_letters_marks_and_digits(text, words):
    assert words_of(text) == words
