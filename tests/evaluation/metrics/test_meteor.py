"""METEOR against nltk's own call and its formula; synonyms by a WordNet of five words made here."""

import os
import sys
from pathlib import Path

import pytest
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import meteor_score

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.metrics.meteor import WORDNET, WORDNET_FILES

INSTALLED = Path(os.environ.get(WORDNET, "/usr/share/wordnet"))
TEXTS = (
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is a guide to action that ensures that the military will forever heed Party commands",
)


@pytest.fixture(autouse=True)
def without_wordnet(monkeypatch):
    monkeypatch.delenv(WORDNET, raising=False)


def meteor(output, reference, language, further=()):
    scorer = METRICS["meteor"].scorer(References([reference], language, further=[further] if further else ()))
    return scorer.score([output]), scorer.note


class NoSynonyms:
    def synsets(self, word):
        return []


def test_nltk_itself_without_synonyms():
    score, note = meteor(*TEXTS, "en")
    words = [text.split() for text in TEXTS]  # there is no punctuation, so 13a does the same
    assert score.value == pytest.approx(100 * meteor_score(words[1:], words[0], wordnet=NoSynonyms()))
    assert "stem:porter|synonyms:none" in score.signature and "tok:13a" in score.signature
    assert note == (
        "METEOR matches exact words and stems: for synonyms name the directory of WordNet's files as WNSEARCHDIR."
    )


def test_the_formula_by_hand():
    """All six words in two runs: F 1, penalty 0.5 × (2 / 6)³ [Lavie+07]."""
    score, _ = meteor("on a mat sat the cat", "sat the cat on a mat", "sv")
    assert score.value == pytest.approx(100 * (1 - 0.5 * (2 / 6) ** 3))


def test_stems_are_those_of_the_language():
    german, note = meteor("die Häuser", "die Häusern", "de")
    assert german.value > 90 and "stem:snowball" in german.signature
    assert note == "METEOR matches exact words and stems in de."
    latvian, note = meteor("die Häuser", "die Häusern", "lv")
    assert latvian.value < 60 and "stem:none" in latvian.signature
    assert note == "METEOR matches exact words only in lv."
    stem = PorterStemmer().stem
    assert stem("houses") == stem("house") and meteor("two houses", "two house", "en")[0].value > 90


def test_chinese_has_characters_for_words():
    score, _ = meteor("猫坐在垫子上", "猫坐在垫子上", "zh")
    assert score.value == pytest.approx(100 * (1 - 0.5 * (1 / 6) ** 3)) and "tok:zh" in score.signature


def write_wordnet(directory, words=("auto", "car")):
    """One synset of nouns, in WordNet's format and without `lexnames`, as Debian has it."""
    for name in (*WORDNET_FILES, "adj.exc", "adv.exc", "noun.exc", "verb.exc", "cntlist.rev"):
        (directory / name).write_text("")
    (directory / "data.adj").write_text("  1 WordNet 3.0 Copyright 2006 by Princeton University.\n")
    line = f"00000000 06 n {len(words):02x} {' '.join(f'{word} 0' for word in words)} 000 | a vehicle  \n"
    (directory / "data.noun").write_text(line)
    (directory / "index.noun").write_text("".join(f"{word} n 1 0 1 0 00000000  \n" for word in sorted(words)))


def test_synonyms_by_the_files_that_the_environment_names(tmp_path, monkeypatch):
    write_wordnet(tmp_path)
    monkeypatch.setenv(WORDNET, str(tmp_path))
    score, note = meteor("the auto stops", "the car stops", "en")
    assert score.value == pytest.approx(100 * (1 - 0.5 * (1 / 3) ** 3)) and note == ""
    assert "synonyms:wordnet-3.0|" in score.signature
    assert meteor("die Autos", "die Autos", "de")[0].signature.count("synonyms:none") == 1


def test_a_directory_that_is_not_wordnets_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(WORDNET, str(tmp_path))
    with pytest.raises(InputError, match=r"WNSEARCHDIR=.* lacks index.adj, .*wordnet-base.*/usr/share/wordnet"):
        meteor("a", "a", "en")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(InputError, match=r"METEOR needs the package nltk: pip install 'deltalm-ds\[eval\]'"):
        meteor("a", "a", "en")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED.exists(), reason=f"{INSTALLED} (Debian's package wordnet-base) is not here")
def test_a_whole_wordnet(monkeypatch):
    """0.6944 without synonyms by nltk's documentation of `meteor_score`, which has these sentences, with them too."""
    monkeypatch.setenv(WORDNET, str(INSTALLED))
    further = (
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    )
    assert round(meteor(*TEXTS, "en", further)[0].value, 2) == 69.44
    assert meteor("the auto stops", "the car stops", "en")[0].value > 90
