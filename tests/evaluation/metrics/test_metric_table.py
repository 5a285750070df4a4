"""The table of metrics: every row is what its interface says, and goes the way that it states."""

import math
import os

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import DEFAULT_METRICS, METRICS, find_metric, find_metrics, higher_is_better
from deltalm_ds.evaluation.metrics.interface import REFERENCES, References
from deltalm_ds.evaluation.metrics.meteor_1_5 import JAR
from deltalm_ds.report.quality import KNOWN_METRICS

NO_JAR = pytest.mark.skipif(
    JAR not in os.environ, reason=f"{JAR} names no METEOR 1.5; test_meteor_1_5.py has a stand-in"
)
NO_CHECKPOINT = pytest.mark.skip(reason="its numbers are a checkpoint's: test_comet.py makes some")
MARKS = {"meteor_1.5": NO_JAR, "comet": NO_CHECKPOINT, "cometkiwi": NO_CHECKPOINT}
NAMES = [pytest.param(name, marks=MARKS.get(name, ())) for name in METRICS]
RIGHT = ["the old man reads a book in the garden", "seven children were swimming across our river"]
SOURCES = [
    "der alte Mann liest ein Buch im Garten",
    "sieben Kinder schwammen durch unseren Fluss, ja durch unseren Fluss",
]
GIVEN = References(RIGHT, "en", sources=SOURCES, languages=["de", "en"])


@pytest.mark.parametrize("name", NAMES)
def test_the_right_text_is_better_by_the_stated_direction(name):
    """Than a copy of the source, which says a thing twice."""
    metric = METRICS[name]
    scorer = metric.scorer(GIVEN)
    best, worse = scorer.score(RIGHT), scorer.score(SOURCES)
    if metric.higher_is_better is not None:
        assert (best.value > worse.value) is metric.higher_is_better and best.value != worse.value
    assert metric.name == name and metric.title and best.signature


@pytest.mark.parametrize("name", NAMES)
def test_sums_over_sentences_give_the_score(name):
    """Of all sentences, and of one of them what it scores alone."""
    scorer = METRICS[name].scorer(GIVEN)
    found = scorer.score(SOURCES)
    if found.statistics is None:
        assert name.startswith("distinct_")
        return
    assert len(found.statistics.rows) == 2
    assert found.statistics.score_of(found.statistics.rows.sum(axis=0)) == found.value
    alone = References(RIGHT[1:], "en", sources=SOURCES[1:], languages=["de", "en"])
    of_one = METRICS[name].scorer(alone).score(SOURCES[1:])
    assert found.statistics.score_of(found.statistics.rows[1]) == pytest.approx(of_one.value, abs=1e-9)
    assert of_one.signature == found.signature


@pytest.mark.parametrize("name", NAMES)
def test_of_several_references_the_best_counts_and_the_signature_has_their_number(name):
    """Where the first reference is nonsense and a further one right; the other sentence has one only."""
    metric = METRICS[name]
    several = References(["zzz", RIGHT[1]], "en", further=[RIGHT[:1], ()], sources=SOURCES, languages=["de", "en"])
    found, best = metric.scorer(several).score(RIGHT), metric.scorer(GIVEN).score(RIGHT)
    if name == "ter":  # edits are divided by the mean length of the references
        assert found.value == 0 == best.value
    else:
        assert found.value == pytest.approx(best.value)
    assert ("nrefs:var" in found.signature) is (REFERENCES in metric.needs)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_of_nothing_have_a_score(name):
    assert math.isfinite(METRICS[name].scorer(GIVEN).score(["", ""]).value)


def test_names_are_found():
    assert set(DEFAULT_METRICS) <= set(METRICS)
    assert [metric.name for metric in find_metrics(reversed(METRICS))] == list(reversed(METRICS))
    assert find_metric("bleu").higher_is_better and not find_metric("ter").higher_is_better


def test_unknown_names_get_the_nearest():
    for wrong, nearest in (("blue", "bleu"), ("rouge-1", "rouge1"), ("off-target", "off_target"), ("rougeL", "rougel")):
        with pytest.raises(InputError, match=f"no metric {wrong!r}, the nearest is {nearest!r}: bleu, .*"):
            find_metric(wrong)
    for names in ([], ["bleu", "bleu"]):
        with pytest.raises(InputError, match="each metric once, and at least one"):
            find_metrics(names)


def test_what_has_no_better_end_ranks_nothing():
    assert [name for name, metric in METRICS.items() if metric.higher_is_better is None] == ["length_ratio"]
    assert higher_is_better("rouge1") and not higher_is_better("off_target")
    with pytest.raises(InputError, match="length_ratio has no better end, so that nothing is ranked by it"):
        higher_is_better("length_ratio")


def test_a_report_knows_of_its_own_what_the_table_says():
    for name, known in KNOWN_METRICS.items():
        assert (known.title, known.higher_is_better) == (METRICS[name].title, METRICS[name].higher_is_better)
