"""Test sets from files, and evaluation by direction, with an engine that knows one language."""

import pytest
import sentencepiece

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.translation import TestSet, evaluate_directions, read_test_sets
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

    max_positions = 50

    def __init__(self, vocabulary):
        self.vocabulary_size, self.german = vocabulary.num_tokens, vocabulary.language_id("de")

    def generate(self, sources, options):
        return [[Hypothesis(tuple(s[1:]) if s[0] == self.german else (), -1.0)] for s in sources]


def test_each_direction_gets_its_tag_and_score(vocabulary):
    tests = [TestSet("en-de", SENTENCES, SENTENCES), TestSet("de-en", SENTENCES, SENTENCES)]
    into_german, into_english = evaluate_directions(CopyingEngine(vocabulary), vocabulary, tests, SearchOptions())
    assert (into_german.direction, into_english.direction) == ("en-de", "de-en")
    assert (into_german.bleu, into_german.chrf) == pytest.approx((100, 100))
    assert into_german.hypotheses == tuple(SENTENCES)
    assert into_english.bleu == 0
    assert "hypotheses" not in into_german.as_dict()


def test_a_language_without_a_tag_is_refused_before_any_work(vocabulary):
    tests = [TestSet("en-de", SENTENCES, SENTENCES), TestSet("en-xx", SENTENCES, SENTENCES)]
    with pytest.raises(InputError, match="'xx'"):
        evaluate_directions(None, vocabulary, tests, SearchOptions())


def write(directory, **files):
    for name, text in files.items():
        (directory / name.replace("__", ".").replace("_", "-")).write_text(text)


def test_one_pair_of_files_serves_both_directions(tmp_path):
    write(tmp_path, test__en_de__en="a\nb\n", test__en_de__de="c\nd\n", dev__en_fr__en="x\n", dev__en_fr__fr="y\n")
    assert read_test_sets(tmp_path, "test") == [
        TestSet("de-en", ["c", "d"], ["a", "b"]),
        TestSet("en-de", ["a", "b"], ["c", "d"]),
    ]
    assert read_test_sets(tmp_path, "dev", ["fr-en"]) == [TestSet("fr-en", ["y"], ["x"])]


def test_what_is_missing_or_uneven_is_named(tmp_path):
    with pytest.raises(InputError, match=r"test.en-de.en"):
        read_test_sets(tmp_path, "test")
    write(tmp_path, test__en_de__en="a\nb\n", test__en_de__de="c\n")
    with pytest.raises(InputError, match="'en-fr'; it has de-en, en-de"):
        read_test_sets(tmp_path, "test", ["en-fr"])
    with pytest.raises(InputError, match=r"test\.en-de\.en has 2 lines but .*test\.en-de\.de has 1"):
        read_test_sets(tmp_path, "test", ["en-de"])
