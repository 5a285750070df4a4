"""Scores of given outputs: what is refused, what is said, and what each metric is given."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScorer, summarize
from deltalm_ds.evaluation.significance import interval, resampled_scores

TEXTS = ["the cat sat on the mat", "a dog barked at the moon", "nobody was there"]


@pytest.mark.parametrize(
    ("references", "metrics", "message"),
    [
        (References([], "de"), ["chrf"], r"no sentences to score: chrf needs references \(--reference\), and none is"),
        (References(["a"], "de"), ["copy_rate"], r"en-de: copy_rate needs sources \(--source\), and none is given"),
        (References(["a"]), ["off_target"], r"off_target needs a language \(--target-lang\), and none is given"),
        (References(["a", "b"], sources=["a"]), ["bleu"], "2 references for 1 sources"),
        (References(["a", "b"], further=[["c"]]), ["bleu"], "1 groups of further references for 2 references"),
        (References(["", " "]), ["bleu"], "all 2 references are empty"),
        (References(["a"], "en", "unicod"), ["rouge1", "ter"], "no tokenizer 'unicod', the nearest is 'unicode'"),
        (References(["a"], "en", "unicode"), ["ter"], "A tokenizer changes nothing but bleu, rouge1, rouge2, rougel"),
    ],
)
def test_what_a_metric_lacks_is_said_before_any_work(references, metrics, message):
    with pytest.raises(InputError, match=message):
        DirectionScorer("en-de", references, metrics)


def test_counts_that_differ_are_refused():
    with pytest.raises(InputError, match="en-de: 1 hypotheses for 2 references"):
        DirectionScorer("en-de", References(["a", "b"], "de")).score(["a"])
    with pytest.raises(InputError, match="en-de: 1 hypotheses for 2 sources"):
        DirectionScorer("en-de", References(sources=["a", "b"]), ["copy_rate"]).score(["a"])
    with pytest.raises(InputError, match="en-de: there are no sentences to score"):
        DirectionScorer("en-de", References(), ["distinct_1"]).score([])


def test_empty_references_are_counted():
    found = DirectionScorer("en-de", References(["a b", "", " "], "de"), ["chrf"]).score(["a b", "c", "d"])
    assert found.notes == (
        "en-de: 2 of 3 references are empty, the first in line 2: whatever is said there counts as wrong.",
    )


def test_a_tokenizer_is_for_the_metrics_that_have_it():
    found = DirectionScorer("de", References(TEXTS, "en", "char"), ["bleu", "rouge1"]).score(TEXTS)
    assert "tok:char" in found.signatures["bleu"] and "tok:rouge_score" in found.signatures["rouge1"]
    found = DirectionScorer("de", References(TEXTS, "en", "unicode"), ["bleu", "rouge1"]).score(TEXTS)
    assert "tok:13a" in found.signatures["bleu"] and "tok:unicode" in found.signatures["rouge1"]


def test_intervals_are_those_of_each_metric_alone():
    outputs = ["the cat sat", "a dog at the moon", "somebody was there"]
    found = DirectionScorer("de", References(TEXTS, "de"), ["chrf", "distinct_1", "rouge1"]).score(outputs)
    assert list(found.intervals) == ["chrf", "rouge1"]  # a sample of sentences has no distinct-n
    for name, bounds in found.intervals.items():
        assert bounds == interval(*resampled_scores([found.statistics[name]]))
        assert bounds[0] < found.scores[name] < bounds[1]
    summary = summarize([found])
    assert summary["directions"][0]["intervals"] == found.intervals
    assert summary["bootstrap"] == {"resamples": 1000, "seed": 12345}
