"""Distinct-n, counted by hand."""

import pytest

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References


def distinct(n, outputs):
    return METRICS[f"distinct_{n}"].scorer(References()).score(outputs)


def test_different_ngrams_of_all_outputs_over_all():
    outputs = ["I do not know.", "I do not know!", "yes"]
    assert distinct(1, outputs).value == pytest.approx(100 * 5 / 9)
    assert distinct(2, outputs).value == pytest.approx(100 * 3 / 6)
    assert distinct(2, ["我不知道"]).value == 100
    assert distinct(1, ["", ""]).value == 0


def test_nothing_but_outputs_is_needed_and_no_sample_of_sentences_means_anything():
    assert METRICS["distinct_1"].needs == () and distinct(1, ["a"]).statistics is None
