"""Metrics of the validation's translations: what goes into the metrics log, and what a recipe may name."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.training.validation import scores_by_direction

SENTENCES = ["one two three four five", "six seven eight nine ten", "eleven twelve one two three"]
TESTS = [TestSet("en-de", SENTENCES, SENTENCES), TestSet("de-en", SENTENCES[:2], SENTENCES[:2])]


def test_each_direction_has_its_own_outputs():
    outputs = [*SENTENCES, SENTENCES[0], "six seven eight nine eleven"]
    record = scores_by_direction(TESTS, outputs, ("bleu", "ter"))
    expected = {
        name: METRICS[name].scorer(References(SENTENCES[:2], "en")).score(outputs[3:]).value for name in ("bleu", "ter")
    }
    assert record["bleu_of"] == pytest.approx({"en-de": 100, "de-en": expected["bleu"]})
    assert record["ter_of"] == pytest.approx({"en-de": 0, "de-en": expected["ter"]})
    assert record["bleu"] == pytest.approx((100 + expected["bleu"]) / 2)
    assert record["ter"] == pytest.approx(expected["ter"] / 2)
    assert set(record) == {"bleu", "bleu_of", "ter", "ter_of"}


def test_a_recipe_names_metrics_of_the_table():
    path = recipe_path("demo_finetune")
    assert load_recipe(path).validation.metrics == ("bleu",)
    assert load_recipe(path, ["validation.metrics=[chrf++, ter]"]).validation.metrics == ("chrf++", "ter")
    for wrong, message in (("[blue]", "nearest is 'bleu'"), ("[]", "at least one"), ("[ter, ter]", "once")):
        with pytest.raises(InputError, match=f"validation.metrics: .*{message}"):
            load_recipe(path, [f"validation.metrics={wrong}"])
