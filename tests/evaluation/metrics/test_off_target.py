"""Off-target rate on texts whose languages are known."""

import sys
from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References

L10N10 = Path(__file__).parents[4] / "shared/data/l10n10"
SENTENCES = {
    "de": "Der Hund schläft heute den ganzen Tag vor der Tür.",
    "en": "The dog has been sleeping in front of the door all day.",
    "fr": "Le chien dort toute la journée devant la porte.",
    "ru": "Собака весь день спит перед дверью.",
    "zh": "狗今天一整天都在门口睡觉。",
    "gu": "કૂતરો આખો દિવસ દરવાજા પાસે સૂઈ રહે છે.",
}


def off_target(outputs, language, languages=(), references=()):
    scorer = METRICS["off_target"].scorer(References(references, language, languages=languages))
    return scorer.score(outputs), scorer.note


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("languages", [(), tuple(SENTENCES)])
def test_one_of_six_languages_is_the_target(language, languages):
    score, note = off_target(list(SENTENCES.values()), language, languages)
    assert score.value == pytest.approx(100 * 5 / 6) and note == ""
    assert f"lang:{language}|" in score.signature


@pytest.mark.parametrize("code", ["deu_Latn", "de-AT", "de_DE"])
def test_a_language_by_any_code(code):
    assert off_target([SENTENCES["de"], SENTENCES["en"]], code, ["deu_Latn", "eng_Latn"])[0].value == 50


def test_what_has_no_letters_is_in_no_other_language():
    assert off_target(["", "2026", "…!"], "de")[0].value == 0


def test_of_a_language_that_py3langid_does_not_know_the_script_counts():
    """Cherokee is not known, nor Tachelhit in Tifinagh."""
    score, note = off_target(["ᎣᏏᏲ ᎪᎱᏍᏗ", SENTENCES["en"]], "chr", ["en", "chr"])
    assert score.value == 50 and "by:script" in score.signature
    assert note == "py3langid does not know chr: off-target is what is written in another script."
    score, _ = off_target(["ⴰⵣⵓⵍ ⴼⵍⵍⴰⵡⵏ", SENTENCES["en"], SENTENCES["de"]], "en", ["en", "de", "ber"])
    assert score.value == pytest.approx(100 * 2 / 3)


def test_a_language_that_nothing_is_known_of():
    with pytest.raises(InputError, match="off_target cannot tell 'xx' from other languages: The script of 'xx'"):
        off_target(["a"], "xx")


def test_what_the_test_gets_wrong_is_said():
    references = [SENTENCES["de"], SENTENCES["en"]]
    _, note = off_target(references, "de", ["de", "en"], references)
    assert note == "1 of 2 references count as off-target, the test's own rate of mistakes."


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(InputError, match=r"off_target needs the package py3langid: pip install 'deltalm-ds\[eval\]'"):
        off_target(["a"], "de")


@pytest.mark.slow
@pytest.mark.skipif(not L10N10.exists(), reason=f"{L10N10} (sentences in 11 languages) is not here")
def test_a_mixed_file_with_known_answers():
    """Of 11 languages 500 sentences each, every one as target once: what is off-target is ten elevenths."""
    languages = ["en", "fr", "cs", "de", "fi", "lv", "et", "ro", "hi", "tr", "gu"]
    texts = {code: (L10N10 / f"dev.{code}").read_text(encoding="utf-8").splitlines() for code in languages}
    for code in languages:
        scorer = METRICS["off_target"].scorer(References(language=code, languages=languages))
        assert scorer.score(texts[code]).value <= 0.6  # a few lines are names and numbers
        others = [line for other in languages if other != code for line in texts[other]]
        assert scorer.score(others).value >= 99
