"""Two outputs compared: groups and sentences against counts by hand, and metrics against each output's own."""

import math

import pytest
from sacrebleu.metrics import CHRF

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.comparison import Pair, compare_outputs
from deltalm_ds.evaluation.comparison_tables import tables_of, write_page
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScorer

TEXTS = ["one two three", "one " * 10 + "four", "five <b>six</b> seven", "one two"]
FIRST = ["one two nine", "one " * 10 + "four", "five <b>six</b> seven", "one"]
SECOND = ["one two three", "one " * 10 + "four", "zero", "one two"]


def compare(metrics=("chrf", "bleu"), num_shown=5, **more):
    return compare_outputs([Pair("en", FIRST, SECOND, References(TEXTS, "en", **more))], metrics, num_shown)


def test_metrics_are_those_of_each_output():
    found = compare(["chrf", "bleu", "distinct_1"])
    for index, outputs in enumerate((FIRST, SECOND)):
        alone = DirectionScorer("en", References(TEXTS, "en"), ["chrf", "bleu", "distinct_1"]).score(outputs)
        for pair in found.metrics:
            assert (pair.first, pair.second)[index] == alone.scores[pair.name]
            assert pair.intervals is None or pair.intervals[index] == alone.intervals[pair.name]
    assert found.metrics[0].difference.value == found.metrics[0].second - found.metrics[0].first
    assert found.metrics[2].difference is None
    more = abs(found.metrics[0].difference.value)
    assert found.metrics[0].agreement == pytest.approx(93.0 / (1 + math.exp(-1.1142732 * more)))  # chrF [Kocmi+24]


def test_groups_by_length_have_the_score_of_their_sentences():
    found = compare()
    assert found.ranked_by == "chrf"
    assert [(group.name, group.count) for group in found.lengths] == [("0 to 9", 3), ("10 to 19", 1)]
    short = [0, 2, 3]
    for group_value, outputs in ((found.lengths[0].first, FIRST), (found.lengths[0].second, SECOND)):
        own = DirectionScorer("en", References([TEXTS[i] for i in short], "en"), ["chrf"])
        assert group_value == pytest.approx(own.score([outputs[i] for i in short]).scores["chrf"])


def test_words_by_frequency_counted_by_hand():
    """`two` stands twice, `b` too, `one` 12 times, the rest once: three, four, five, six, seven."""
    found = {group.name: group for group in compare().frequencies}
    assert list(found) == ["1", "2", "10 to 99"]
    assert [group.count for group in found.values()] == [5, 4, 12]
    assert found["1"].first == pytest.approx(200 * 4 / (4 + 5))  # all but three
    assert found["1"].second == pytest.approx(200 * 2 / (2 + 5))  # three and four
    assert found["2"].first == pytest.approx(200 * 3 / (3 + 4)) and found["2"].second == pytest.approx(
        200 * 2 / (2 + 4)
    )
    assert found["10 to 99"].first == found["10 to 99"].second == 100


def test_sentences_that_differ_most_come_first():
    found = compare(sources=["eins", "zwei", "drei", "vier"], num_shown=2)
    values = [
        [CHRF().sentence_score(*pair).score for pair in zip(outputs, [[t] for t in TEXTS], strict=True)]
        for outputs in (FIRST, SECOND)
    ]
    apart = sorted(range(4), key=lambda index: -abs(values[1][index] - values[0][index]))
    assert [sentence.line - 1 for sentence in found.sentences] == apart[:2] and apart[0] == 2
    assert found.sentences[1].first_value == pytest.approx(values[0][apart[1]])
    assert (found.sentences[0].source, found.sentences[0].second) == ("drei", "zero")
    assert len(compare(num_shown=9).sentences) == 3  # the second line is the same in both


def test_several_directions_are_means_of_each_alone():
    pairs = [
        Pair("en-de", FIRST, SECOND, References(TEXTS, "de")),
        Pair("en-fr", FIRST[1:], SECOND[1:], References(TEXTS[1:], "fr")),
    ]
    alone = [compare_outputs([pair], ["chrf", "bleu"], 9) for pair in pairs]
    found = compare_outputs(pairs, ["chrf", "bleu"], 9)
    assert found.num_sentences == 7 and alone[0].directions == []
    assert [each.direction for each in found.directions] == ["en-de", "en-fr"]
    for each, one in zip(found.directions, alone, strict=True):
        assert each.metrics == one.metrics
    for index, pair in enumerate(found.metrics):
        assert pair.second == pytest.approx(sum(one.metrics[index].second for one in alone) / 2)
        assert pair.difference.value == pytest.approx(pair.second - pair.first)
        assert pair.intervals[1][0] <= pair.second <= pair.intervals[1][1]
    short = [one.lengths[0] for one in alone]  # 3 and 2 sentences
    assert (found.lengths[0].count, found.lengths[0].first) == (
        5,
        pytest.approx((3 * short[0].first + 2 * short[1].first) / 5),
    )
    twice = {group.name: group for group in found.frequencies}["2"]  # `two` and `b` in German, `b` alone in French
    assert (twice.count, twice.first) == (6, pytest.approx(200 * 5 / (5 + 6)))
    differences = [abs(sentence.second_value - sentence.first_value) for sentence in found.sentences]
    assert differences == sorted(differences, reverse=True) and len(differences) == 5
    assert {(sentence.direction, sentence.line) for sentence in found.sentences} == {
        ("en-de", 1),
        ("en-de", 3),
        ("en-de", 4),
        ("en-fr", 2),
        ("en-fr", 3),
    }
    titles = [table.title for table in tables_of(found, ("a", "b"))]
    assert titles[:2] == ["Metrics, means over 2 directions", "By direction"]
    assert len(tables_of(found, ("a", "b"))[1].rows) == 4


def test_the_page_holds_everything_and_no_foreign_markup(tmp_path):
    found = compare(sources=["eins", "zwei", "drei", "vier"])
    write_page(found, ("a.txt", "b.txt"), tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    for table in tables_of(found, ("a.txt", "b.txt")):
        assert table.title in page and all(cell in page for row in table.rows for cell in row)
    assert "five &lt;b&gt;six&lt;/b&gt; seven" in page and "<b>six" not in page
    assert "drei" in page and "nrefs:1" in page


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="needs references, and a metric that tells sentences apart"):
        compare(["distinct_1"])
    with pytest.raises(InputError, match="1 hypotheses for 4 references"):
        compare_outputs([Pair("en", FIRST[:1], SECOND, References(TEXTS, "en"))], ["chrf"], 1)
