"""BLEU and chrF against published scores and a case counted by hand."""

import csv
import lzma
import math
from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.bleu import score_hypotheses

EVALREF = Path(__file__).parents[3] / "shared/data/evalref"


def lines_of(name):
    return lzma.decompress((EVALREF / f"wmt17.en-de.{name}.xz").read_bytes()).decode().removesuffix("\n").split("\n")


@pytest.mark.skipif(not EVALREF.exists(), reason=f"{EVALREF} (real system outputs of WMT17) is not here")
def test_published_scores_of_a_wmt17_system():
    with open(EVALREF / "wmt17.en-de.scores.tsv", encoding="utf-8") as file:
        published = next(csv.DictReader(file, delimiter="\t"))
    score = score_hypotheses("en-de", lines_of(published["system"]), lines_of("ref"))
    assert f"{score.bleu:.4f}" == published["BLEU_sacrebleu_2.6.0"]
    assert f"{score.chrf:.4f}" == published["chrF2_sacrebleu_2.6.0"]
    assert score.num_sentences == 3004
    assert score.bleu_signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert score.chrf_signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


def test_bleu_counted_by_hand():
    """7 of 8 words, 5 of 6 pairs, 3 of 4 triples, 1 of 2 quadruples match; 8 words for 9: brevity exp(1 - 9/8)."""
    score = score_hypotheses("en-de", ["a b c d x", "e f g"], ["a b c d y", "e f g h"])
    precisions = [7 / 8, 5 / 6, 3 / 4, 1 / 2]
    expected = 100 * math.exp(1 - 9 / 8) * math.prod(precisions) ** 0.25
    assert score.bleu == pytest.approx(expected)


def test_the_tokenizer_is_that_of_the_target_language_unless_given():
    text = ["我爱北京天安门。"]
    assert "tok:zh" in score_hypotheses("en-zh", text, text).bleu_signature
    assert "tok:13a" in score_hypotheses("zh-en", text, text).bleu_signature
    assert "tok:char" in score_hypotheses("en-zh", text, text, tokenizer="char").bleu_signature
    with pytest.raises(InputError, match="'moses'"):
        score_hypotheses("en-de", text, text, tokenizer="moses")


def test_counts_that_differ_are_refused():
    with pytest.raises(InputError, match="1 hypotheses for 2 references"):
        score_hypotheses("en-de", ["a"], ["a", "b"])
    with pytest.raises(InputError, match="no sentences"):
        score_hypotheses("en-de", [], [])
