"""chrF2 and chrF2++ against published scores and their formula, computed from n-grams counted here."""

from collections import Counter

import pytest
from wmt17 import ROWS, lines_of, needs_outputs, published_scores

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References

HYPOTHESIS, REFERENCE = "the cat sat on mats", "the cat sits on the mat"


def score(metric, hypotheses, references):
    return METRICS[metric].scorer(References(references, "de")).score(hypotheses)


@needs_outputs
@pytest.mark.parametrize("row", ROWS)
def test_published_chrf_of_a_wmt17_system(row):
    published = published_scores()[row]
    found = score("chrf", lines_of(published["system"]), lines_of("ref"))
    assert f"{found.value:.4f}" == published["chrF2_sacrebleu_2.6.0"]
    assert found.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


def ngrams(items, n):
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def f_score(sequences):
    """Mean precision and recall of n-grams, (hypothesis, reference, n) each; recall counts twice [Popović15]."""
    precisions, recalls = [], []
    for hypothesis, reference, n in sequences:
        found, wanted = ngrams(hypothesis, n), ngrams(reference, n)
        matches = (found & wanted).total()
        precisions.append(matches / found.total())
        recalls.append(matches / wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


@pytest.mark.parametrize(("metric", "num_words"), [("chrf", 0), ("chrf++", 2)])
def test_the_formula(metric, num_words):
    texts = HYPOTHESIS.replace(" ", ""), REFERENCE.replace(" ", "")
    words = HYPOTHESIS.split(), REFERENCE.split()
    sequences = [(*texts, n) for n in range(1, 7)] + [(*words, n) for n in range(1, num_words + 1)]
    found = score(metric, [HYPOTHESIS], [REFERENCE])
    assert found.value == pytest.approx(f_score(sequences), abs=1e-9)
    assert f"nc:6|nw:{num_words}" in found.signature
