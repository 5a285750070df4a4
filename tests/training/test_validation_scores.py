"""Metrics of the validation's translations: what goes into the metrics log."""

from types import SimpleNamespace

import pytest

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.training.validation import _scores

SENTENCES = ["one two three four five", "six seven eight nine ten", "eleven twelve one two three"]
TESTS = (TestSet("en-de", SENTENCES, SENTENCES), TestSet("de-en", SENTENCES[:2], SENTENCES[:2]))


def test_each_direction_has_its_own_outputs():
    outputs = [*SENTENCES, SENTENCES[0], "six seven eight nine eleven"]
    recipe = SimpleNamespace(validation=SimpleNamespace(metrics=("bleu", "ter", "off_target", "copy_rate")))
    record = _scores(SimpleNamespace(tests=TESTS, vocabulary=SimpleNamespace(languages=("de", "en"))), recipe, outputs)
    expected = {
        name: METRICS[name].scorer(References(SENTENCES[:2], "en")).score(outputs[3:]).value for name in ("bleu", "ter")
    }
    assert record["bleu_of"] == pytest.approx({"en-de": 100, "de-en": expected["bleu"]})
    assert record["ter_of"] == pytest.approx({"en-de": 0, "de-en": expected["ter"]})
    assert record["bleu"] == pytest.approx((100 + expected["bleu"]) / 2)
    assert record["ter"] == pytest.approx(expected["ter"] / 2)
    assert record["off_target_of"] == {"en-de": 100, "de-en": 0}  # all outputs are English
    assert record["copy_rate"] == 100
    assert set(record) == {f"{name}{end}" for name in ("bleu", "ter", "off_target", "copy_rate") for end in ("", "_of")}
