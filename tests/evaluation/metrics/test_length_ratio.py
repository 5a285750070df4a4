"""Length ratio, counted by hand."""

import math

import pytest

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References


def ratio(outputs, references):
    return METRICS["length_ratio"].scorer(references).score(outputs).value


def test_words_over_words_of_all_sentences():
    assert ratio(["one two", "three."], References(["one two three", "four five six"], "en")) == pytest.approx(3 / 6)
    assert ratio(["今天很好"], References(["今天好"], "zh")) == pytest.approx(4 / 3)


def test_the_closest_of_several_references_the_shorter_of_two():
    references = References(["a", "a b"], "en", further=[("a b c d",), ("a b c d",)])
    assert ratio(["w x y", "w x y"], references) == pytest.approx(6 / (4 + 2))


def test_no_words_to_compare_with():
    assert math.isnan(ratio(["a"], References(["…"], "en")))
