"""Intervals against sacreBLEU's, p against a brute-force count and against what a p has to be."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References, ratio_score
from deltalm_ds.evaluation.significance import RESAMPLES, agreement, difference, interval, resampled_scores

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def noisy(rng, lines, share):
    """The lines with a share of their words exchanged."""
    return [" ".join(str(rng.choice(WORDS)) if rng.random() < share else w for w in line.split()) for line in lines]


@pytest.fixture(scope="module")
def texts():
    """References, and two outputs of which the second is better."""
    rng = np.random.default_rng(3)
    references = [" ".join(rng.choice(WORDS, size=rng.integers(4, 15))) for _ in range(60)]
    return references, noisy(rng, references, 0.4), noisy(rng, references, 0.37)


def statistics_of(name, outputs, references):
    return METRICS[name].scorer(References(references, "en")).score(outputs)


def test_intervals_are_sacrebleus(texts):
    references, first, second = texts
    test = PairedTest(
        [("a", first), ("b", second)], {"bleu": BLEU(), "chrf": CHRF()}, [references], test_type="bs", n_samples=1000
    )
    _, found = test()
    for name, theirs in (("bleu", found["BLEU"]), ("chrf", found["chrF2"])):
        ours = [statistics_of(name, outputs, references) for outputs in (first, second)]
        samples = resampled_scores([score.statistics for score in ours])
        for score, own, expected in zip(ours, samples, theirs, strict=True):
            low, high = interval(own)
            assert score.value == pytest.approx(expected.score, abs=1e-9)
            assert own.mean() == pytest.approx(expected.mean, abs=1e-3)  # theirs sum in float32
            assert (high - low) / 2 == pytest.approx(expected.ci, abs=1e-3)
        ours_p = difference(*samples, ours[1].value - ours[0].value).p
        assert theirs[1].p_value <= ours_p <= 2.5 * theirs[1].p_value  # theirs counts one side


def test_resamples_by_a_loop_are_the_same():
    """Sentence by sentence, from the same draws, whatever part is drawn at once."""
    rows = [(3.0, 4), (1.0, 2), (0.0, 7)]
    drawn = np.random.default_rng(12345).choice(3, size=(RESAMPLES, 3), replace=True)
    expected = [sum(rows[i][0] for i in one) / sum(rows[i][1] for i in one) for one in drawn]
    (found,) = resampled_scores([ratio_score(rows, "").statistics])
    assert found == pytest.approx(expected)


def test_drawing_in_parts_changes_nothing(monkeypatch):
    statistics = ratio_score([(float(i % 5), 1) for i in range(50)], "").statistics
    whole = resampled_scores([statistics])
    monkeypatch.setattr("deltalm_ds.evaluation.significance.DRAWS_AT_ONCE", 50 * 7)
    assert np.array_equal(whole, resampled_scores([statistics]))


def test_equal_outputs_differ_by_chance_alone(texts):
    references, first, _ = texts
    score = statistics_of("bleu", first, references)
    found = difference(*resampled_scores([score.statistics] * 2), 0.0)
    assert (found.value, found.interval, found.p) == (0, (0, 0), 1)


def test_a_difference_in_every_sentence_is_no_chance():
    worse, better = ([(value, 1) for value in (offset, offset + 1.0)] * 20 for offset in (0.0, 5.0))
    samples = resampled_scores([ratio_score(rows, "").statistics for rows in (worse, better)])
    assert difference(*samples, 5.0).p == 1 / (RESAMPLES + 1)


def test_p_is_below_a_level_as_often_as_the_level_says():
    """Of systems that are equally good, 5 % should differ at p < 0.05; sacreBLEU's count says about 10 %."""
    rng = np.random.default_rng(11)
    systems = 300
    scores = rng.normal(size=(2 * systems, 150))
    samples = resampled_scores([ratio_score([(v, 1) for v in row], "").statistics for row in scores])
    values = []
    for a, b in zip(range(systems), range(systems, 2 * systems), strict=True):
        values.append(difference(samples[a], samples[b], float(scores[b].mean() - scores[a].mean())).p)
    share = np.mean(np.array(values) < 0.05)
    assert 0.02 < share < 0.085  # 2.5 standard deviations of 300 draws


def test_what_a_difference_means_to_people():
    """Published: BLEU +1.0 is 63.989 %, and chrF needs 0.710 for the same [Kocmi+24]."""
    assert agreement(METRICS["bleu"], 1.0) == pytest.approx(63.989, abs=5e-4)
    assert agreement(METRICS["chrf"], -0.710) == pytest.approx(63.989, abs=0.02)
    found = [agreement(METRICS[name], 1.0) for name in ("comet", "cometkiwi")]
    assert found == pytest.approx([90.892, 92.766], abs=5e-4)  # as the package mt-thresholds prints them
    assert agreement(METRICS["ter"], 1.0) is None
