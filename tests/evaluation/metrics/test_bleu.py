"""BLEU against published scores and a case counted by hand; the tokenizer that each language gets."""

import math

import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from wmt17 import ROWS, lines_of, needs_outputs, published_scores

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.bleu import TOKENIZERS
from deltalm_ds.evaluation.metrics.interface import SENTENCES_AT_ONCE, References

THREE_LINES = (
    ["今天上午我们在图书馆讨论了新的翻译系统。", "请将这份文件翻译成中文,然后发给我。", "会议将在星期五下午三点开始。"],
    [
        "今天上午我们在图书馆里讨论了新的翻译系统。",
        "请把这份文件翻译成中文,然后发给我。",
        "会议将于星期五下午三点开始。",
    ],
)


def bleu(hypotheses, references, language=None, tokenizer=None):
    """The score and the scorer's note."""
    scorer = METRICS["bleu"].scorer(References(references, language, tokenizer))
    return scorer.score(hypotheses), scorer.note


@needs_outputs
@pytest.mark.parametrize("row", ROWS)
def test_published_scores_of_a_wmt17_system(row):
    published, references = published_scores()[row], lines_of("ref")
    score, _ = bleu(lines_of(published["system"]), references, "de")
    assert len(references) == 3004
    assert f"{score.value:.4f}" == published["BLEU_sacrebleu_2.6.0"]
    assert score.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


@pytest.mark.parametrize(("name", "theirs"), [("bleu", BLEU()), ("chrf", CHRF()), ("ter", TER())])
def test_many_sentences_with_any_number_of_references_are_sacrebleus(name, theirs):
    """More than are counted at once, of which the last part has one reference each; sacreBLEU pads with None."""
    texts = [f"one two three {i} five" for i in range(SENTENCES_AT_ONCE + 3)]
    outputs = [f"one two three {i} six seven" for i in range(len(texts))]
    further = [(f"one two {i} six seven",) if i < 500 else () for i in range(len(texts))]
    found = METRICS[name].scorer(References(texts, "en", further=further)).score(outputs)
    expected = theirs.corpus_score(outputs, [texts, [more[0] if more else None for more in further]])
    assert found.value == pytest.approx(expected.score, abs=1e-9)
    assert found.signature == str(theirs.get_signature()) and "nrefs:var" in found.signature


def test_our_names_of_tokenizers_are_sacrebleus():
    assert set(TOKENIZERS) == set(BLEU.TOKENIZERS)


def test_bleu_counted_by_hand():
    """7 of 8 words, 5 of 6 pairs, 3 of 4 triples, 1 of 2 quadruples match; 8 words for 9: brevity exp(1 - 9/8)."""
    score, note = bleu(["a b c d x", "e f g"], ["a b c d y", "e f g h"], "de")
    precisions = [7 / 8, 5 / 6, 3 / 4, 1 / 2]
    expected = 100 * math.exp(1 - 9 / 8) * math.prod(precisions) ** 0.25
    assert score.value == pytest.approx(expected)
    assert note == ""


@pytest.mark.parametrize("language", ["zh", "zh_CN", "zh-CN", "zh-Hans", "zho_Hans", "cmn", "zho", "zh-SG", None])
def test_chinese_by_any_name_or_none_is_split_into_characters(language):
    score, note = bleu(*THREE_LINES, language)
    assert f"{score.value:.2f}" == "85.56"
    assert "tok:zh" in score.signature
    assert (note == "") == (language is not None)


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("zh_TW", "zh"),
        ("yue_Hant", "zh"),
        ("ja", "ja-mecab"),
        ("jpn_Jpan", "ja-mecab"),
        ("ko", "ko-mecab"),
        ("kor_Hang", "ko-mecab"),
        ("zh-Latn", "13a"),
        ("vi", "13a"),
        ("de", "13a"),
    ],
)
def test_the_tokenizer_is_that_of_the_language(language, tokenizer):
    score, note = bleu(["a b"], ["a b"], language)
    assert f"|tok:{tokenizer}" in score.signature
    assert note == ""


@pytest.mark.parametrize(
    "language", ["th", "tha_Thai", "lo", "km", "my", "shn", "bo", "dz", "jv-Java", "ban-Bali", "ii"]
)
def test_scripts_without_spaces_or_tokenizer_are_compared_by_characters_and_the_note_says_so(language):
    score, note = bleu(["a b"], ["a b"], language)
    assert "|tok:char" in score.signature
    assert note.startswith(f"{language} is written without spaces") and "--tokenizer flores200" in note


def test_without_a_language_the_script_decides_and_the_note_says_so():
    thai, japanese = "สวัสดีชาวโลก", "今日は東京へ行った"
    for text, tokenizer in ((thai, "char"), (japanese, "ja-mecab"), ("Guten Tag", "13a")):
        score, note = bleu([text], [text])
        assert f"|tok:{tokenizer}" in score.signature
        assert (note == "") == (tokenizer == "13a")


def test_a_tokenizer_asked_for_is_taken():
    score, note = bleu(*THREE_LINES, "zh", tokenizer="char")
    assert "tok:char" in score.signature and note == ""
    with pytest.raises(InputError, match="'moses'"):
        bleu(*THREE_LINES, "zh", tokenizer="moses")


@pytest.mark.parametrize("failure", [OSError("no network"), SystemExit(1)])
def test_a_tokenizer_that_cannot_be_downloaded_names_the_file_and_its_place(failure, tmp_path, monkeypatch):
    from sacrebleu.tokenizers import tokenizer_spm

    def fail(*_arguments):
        raise failure

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", fail)
    for tokenizer in ("flores200", "spm"):
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            bleu(["a"], ["a"], "th", tokenizer)
        url = tokenizer_spm.SPM_MODELS[tokenizer]["url"]
        assert f"{tmp_path / 'models' / url.rpartition('/')[2]}" in str(caught.value) and url in str(caught.value)


def test_a_tokenizers_file_is_taken_from_its_place(tmp_path, monkeypatch):
    """What the message says works: here with a model of a few words in place of the one to download."""
    import sentencepiece
    from sacrebleu.tokenizers import tokenizer_spm

    (tmp_path / "models").mkdir()
    url = tokenizer_spm.SPM_MODELS["flores200"]["url"]
    model = tmp_path / "models" / url.rpartition("/")[2]
    with open(model, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d e f g"] * 5), model_writer=file, vocab_size=12, minloglevel=2
        )
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    score, _ = bleu(["a b c d"], ["a b c d"], "th", "flores200")
    assert score.value == pytest.approx(100) and "tok:flores200" in score.signature
