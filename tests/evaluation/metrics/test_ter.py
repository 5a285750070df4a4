"""TER against edits counted by hand."""

import pytest

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References


def ter(hypothesis, reference, language):
    scorer = METRICS["ter"].scorer(References([reference], language))
    return scorer.score([hypothesis]).value, scorer.note


@pytest.mark.parametrize(
    ("hypothesis", "reference", "edits", "words"),
    [
        ("a b c d e", "a b c d e", 0, 5),
        ("a b x d e", "a b c d e", 1, 5),  # one exchanged
        ("a b d e", "a b c d e", 1, 5),  # one missing
        ("d e a b c", "a b c d e", 1, 5),  # two moved together
        ("A B C", "a b c", 0, 3),
    ],
)
def test_edits_over_words(hypothesis, reference, edits, words):
    assert ter(hypothesis, reference, "de") == (pytest.approx(100 * edits / words), "")


def test_chinese_and_japanese_by_characters():
    for language in ("zh", "zho_Hans", "ja", None):
        value, note = ter("今天上午我们去图书馆", "今天上午我们在图书馆", language)
        assert (value, note) == (pytest.approx(100 / 10), "")


def test_a_language_without_spaces_gets_a_note():
    value, note = ter("สวัสดีชาวโลก", "สวัสดีครับ", "th")
    assert value == 100 and "written without them" in note
