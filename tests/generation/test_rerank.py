"""Reranking against sums by hand, by sacreBLEU's own functions and by engines that answer at once."""

import math

import numpy as np
import pytest
from sacrebleu import sentence_chrf

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import Hypothesis
from deltalm_ds.generation.rerank import Candidates, Coverage, MinimumBayesRisk, ReverseModel, reranker_of

TEXTS = ["the cat sat", "a cat sat", "the cat sat", "dogs", ""]
FOUND = [Hypothesis((number,), -1.0 - number) for number in range(len(TEXTS))]
SENTENCE = Candidates("die Katze", (9, 8), FOUND, TEXTS)


class Shows:
    """An engine whose attention and scores depend on the output's first token."""

    vocabulary_size, max_positions, batch_tokens = 100, 50, 1000

    def attention(self, sources, targets):
        return [np.array([[0.5, 0.25, 0.25], [1.0 - t[0] / 10, 0.0, t[0] / 10]], np.float32) for t in targets]

    def score(self, sources, targets):
        return [[-float(len(source))] * (len(target) + 1) for source, target in zip(sources, targets, strict=True)]


class Characters:
    """A vocabulary of characters."""

    languages = ()

    def source_tag(self, target_lang, source_lang=None):
        return []

    def encode(self, text):
        return np.array(list(map(ord, text)), dtype=np.int64)

    encode_output = encode


def test_risk_is_the_mean_chrf():
    (found,) = MinimumBayesRisk().scores(Shows(), [SENTENCE])
    expected = [sum(sentence_chrf(one, [other]).score for other in TEXTS) / len(TEXTS) for one in TEXTS]
    assert found == pytest.approx(expected)
    assert found[0] == max(found) > found[1] > found[3]


def test_the_reverse_score_is_mixed_in():
    found, again = ReverseModel(Shows(), Characters(), weight=0.5).scores(Shows(), [SENTENCE, SENTENCE])
    assert (
        found == again == pytest.approx([one.score - 0.5 * len(text) for one, text in zip(FOUND, TEXTS, strict=True)])
    )


def test_coverage_is_that_of_the_equation():
    (found,) = Coverage(weight=0.2).scores(Shows(), [SENTENCE])
    expected = [
        one.score + 0.2 * (math.log(0.25) + math.log(min(1.0, 0.25 + number / 10))) for number, one in enumerate(FOUND)
    ]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mrb",), "no reranker 'mrb': the nearest is 'mbr'"),
        (("mbr", 0.5), "--rerank mbr mixes nothing"),
        (("reverse",), "needs a model the other way"),
        (("mbr", None, "somewhere"), "nothing else takes one"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        reranker_of(*arguments)
