"""Evaluation by direction, with an engine that knows one language."""

import pytest
import sentencepiece

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.scores import summarize
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.evaluation.translation import evaluate_directions
from deltalm_ds.generation.interface import Hypothesis, SearchOptions
from deltalm_ds.vocabulary import Vocabulary

SENTENCES = ["one two three four five", "six seven eight nine ten", "five four three two one"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vocabulary")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(directory / "spm"),
        vocab_size=40,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return Vocabulary.from_spm(directory / "spm.model", num_sentinels=0, languages=["de", "en"])


class CopyingEngine:
    """Copies into German, says nothing in any other language."""

    max_positions, batch_tokens = 50, 1000

    def __init__(self, vocabulary):
        self.vocabulary_size, self.german = vocabulary.num_tokens, vocabulary.language_id("de")

    def generate(self, sources, options):
        return [[Hypothesis(tuple(s[1:]) if s[0] == self.german else (), -1.0)] for s in sources]


def test_each_direction_gets_its_tag_and_score(vocabulary):
    tests = [TestSet("en-de", SENTENCES, SENTENCES), TestSet("de-en", SENTENCES, SENTENCES)]
    into_german, into_english = evaluate_directions(CopyingEngine(vocabulary), vocabulary, tests, SearchOptions())
    assert (into_german.direction, into_english.direction) == ("en-de", "de-en")
    assert into_german.scores == pytest.approx({"bleu": 100, "chrf": 100})
    assert into_german.hypotheses == tuple(SENTENCES)
    assert into_english.scores["bleu"] == 0
    assert "hypotheses" not in into_german.as_dict()


def test_sources_further_references_and_languages_reach_the_metrics(vocabulary):
    german = "Der Hund schläft heute den ganzen Tag vor der Tür."
    tests = [TestSet("en-de", SENTENCES, [german] * 3, further_references=[[SENTENCES[0]], [], []])]
    metrics = ["copy_rate", "off_target", "exact_match"]
    (found,) = evaluate_directions(CopyingEngine(vocabulary), vocabulary, tests, SearchOptions(), metrics)
    assert found.scores == pytest.approx({"copy_rate": 100, "off_target": 100, "exact_match": 100 / 3})
    assert "among:2|" in found.signatures["off_target"]


def test_another_spelling_of_a_language_finds_its_tag(vocabulary):
    tests = [TestSet("eng_Latn-deu_Latn", SENTENCES, SENTENCES), TestSet("de_AT", SENTENCES, SENTENCES)]
    found = evaluate_directions(CopyingEngine(vocabulary), vocabulary, tests, SearchOptions(), ["chrf"])
    assert [score.scores for score in found] == [pytest.approx({"chrf": 100})] * 2


def test_what_is_missing_is_said_before_any_work(vocabulary):
    tests = [TestSet("en-de", SENTENCES, SENTENCES), TestSet("en-xx", SENTENCES, SENTENCES)]
    with pytest.raises(InputError, match="'xx'"):
        evaluate_directions(None, vocabulary, tests, SearchOptions())
    with pytest.raises(InputError, match="no metric 'blue'"):
        evaluate_directions(None, vocabulary, tests[:1], SearchOptions(), ["blue"])
    with pytest.raises(InputError, match="no tokenizer 'moses'"):
        evaluate_directions(None, vocabulary, tests[:1], SearchOptions(), ["bleu"], "moses")
    with pytest.raises(InputError, match="A tokenizer changes nothing but bleu"):
        evaluate_directions(None, vocabulary, tests[:1], SearchOptions(), ["chrf"], "char")


def test_the_summary_names_what_it_holds(vocabulary):
    tests = [TestSet("en-de", SENTENCES, SENTENCES), TestSet("de-en", SENTENCES, SENTENCES)]
    metrics = ["bleu", "ter"]
    summary = summarize(evaluate_directions(CopyingEngine(vocabulary), vocabulary, tests, SearchOptions(), metrics))
    expected = {"bleu": 100, "ter": 0}, {"bleu": 0, "ter": 100}
    assert [score["scores"] for score in summary["directions"]] == [pytest.approx(scores) for scores in expected]
    assert (summary["average_bleu"], summary["average_ter"]) == pytest.approx((50, 50))
    assert summary["metrics"]["ter"] == {"title": "TER", "higher_is_better": False}
    assert [score["bleu"] for score in summary["directions"]] == pytest.approx([100, 0])
    assert summary["signatures"]["bleu"] == [summary["directions"][0]["bleu_signature"]]
