"""The table of metrics: every row is what its interface says, and goes the way that it states."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import DEFAULT_METRICS, METRICS, find_metric, find_metrics
from deltalm_ds.evaluation.metrics.interface import References

REFERENCES = References(["one two three four five six", "seven eight nine ten eleven twelve"], "en")
WORSE = ["one two three four five sax", "seven eight nine ten twelve eleven"]


@pytest.mark.parametrize("name", METRICS)
def test_the_right_text_is_better_by_the_stated_direction(name):
    metric = METRICS[name]
    scorer = metric.scorer(REFERENCES)
    best, worse = scorer.score(REFERENCES.texts), scorer.score(WORSE)
    assert (best.value > worse.value) is metric.higher_is_better and best.value != worse.value
    assert metric.name == name and metric.title and best.signature


def test_names_are_found():
    assert set(DEFAULT_METRICS) <= set(METRICS)
    assert [metric.name for metric in find_metrics(reversed(METRICS))] == list(reversed(METRICS))
    assert find_metric("bleu").higher_is_better and not find_metric("ter").higher_is_better


def test_unknown_names_get_the_nearest():
    with pytest.raises(InputError, match=r"no metric 'blue', the nearest is 'bleu': bleu, .*"):
        find_metric("blue")
    for names in ([], ["bleu", "bleu"]):
        with pytest.raises(InputError, match="each metric once, and at least one"):
            find_metrics(names)
