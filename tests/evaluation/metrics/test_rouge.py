"""ROUGE against published scores of real summaries, other implementations' numbers, and counts by hand."""

import json
import lzma
import sys

import pytest
from wmt17 import EVALREF

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References

SUMMARIES = EVALREF.parent / "summarisation"
needs_summaries = pytest.mark.skipif(
    not SUMMARIES.exists(), reason=f"{SUMMARIES} (OrangeSum, real systems) is not here"
)
# rouge_score as it is, R-1, R-2 and R-L: barthez and mbarthez are also published (Eddine et al. 2021), 31.44 and 32.67
ORANGESUM = {
    "abstracts": {
        "barthez": (31.45, 12.77, 22.24), "mbarthez": (32.66, 13.74, 23.15), "mbart": (31.88, 13.11, 22.34),
        "camembert2camembert": (29.21, 9.78, 19.95),
    },
    "titles": {
        "barthez": (40.86, 23.66, 36.03), "mbarthez": (41.10, 24.12, 36.43), "mbart": (40.73, 23.72, 35.99),
        "camembert2camembert": (34.90, 18.03, 30.79),
    },
}  # fmt: skip
PUBLISHED_R1 = {"barthez": 31.44, "mbarthez": 32.67}


def rouge(kind, outputs, references):
    return METRICS[kind].scorer(references).score(outputs)


def orangesum(kind):
    """Of every system its outputs; `gold` are the references."""
    text = lzma.decompress((SUMMARIES / f"orangesum_fr_{kind}.systems.jsonl.xz").read_bytes()).decode()
    records = [json.loads(line) for line in text.splitlines()]
    return {name: [record[name] for record in records] for name in records[0]}


@needs_summaries
def test_published_rouge_of_a_french_system():
    systems = orangesum("abstracts")
    score = rouge("rouge1", systems["barthez"], References(systems["gold"], "fr", "rouge_score"))
    assert score.value == pytest.approx(PUBLISHED_R1["barthez"], abs=0.02)
    assert score.signature == "nrefs:1|case:lc|tok:rouge_score|stem:no|version:rouge_score-0.1.2"
    own = rouge("rouge1", systems["barthez"], References(systems["gold"], "fr"))
    assert own.value == pytest.approx(30.69, abs=0.01) and "tok:unicode" in own.signature  # words by \w+


@pytest.mark.slow
@needs_summaries
@pytest.mark.parametrize("kind", ORANGESUM)
def test_all_published_french_systems(kind):
    systems = orangesum(kind)
    references = References(systems["gold"], "fr", "rouge_score")
    for name, expected in ORANGESUM[kind].items():
        found = [rouge(metric, systems[name], references).value for metric in ("rouge1", "rouge2", "rougel")]
        assert found == pytest.approx(expected, abs=0.006)
        if kind == "abstracts" and name in PUBLISHED_R1:
            assert found[0] == pytest.approx(PUBLISHED_R1[name], abs=0.02)


@pytest.mark.skipif(not EVALREF.exists(), reason=f"{EVALREF} (texts with another package's ROUGE) is not here")
def test_another_packages_numbers():
    """pltrdy's `rouge` counts each word of a text once: so do we for texts without repetition."""
    records = json.loads((EVALREF / "pltrdy_rouge_data.json").read_text())
    assert len(records) == 4
    for record in records:
        code: dict[str, str] = {}
        texts = [
            " ".join(code.setdefault(word, f"w{len(code)}") for word in dict.fromkeys(record[side].split()))
            for side in ("hyp", "ref")
        ]
        found = rouge("rouge1", texts[:1], References(texts[1:], "en")).value / 100
        assert found == pytest.approx(record["scores"]["rouge-1"]["f"], abs=1e-8)  # it adds 1e-8


@pytest.mark.parametrize(
    ("kind", "f1"),
    [
        ("rouge1", 2 * 3 / (5 + 6)),  # the, cat, on
        ("rouge2", 2 * 1 / (4 + 5)),  # the cat
        ("rougel", 2 * 3 / (5 + 6)),  # the cat … on
        ("rougelsum", 2 * 3 / (5 + 6)),
    ],
)
@pytest.mark.parametrize("language", ["en", "de", None])
def test_f1_counted_by_hand(kind, f1, language):
    references = References(["The cat sits on the mat!"], language)
    assert rouge(kind, ["the cat sat on mats"], references).value == pytest.approx(100 * f1)


def test_rouge_lsum_takes_each_sentence_by_itself():
    """Two sentences in the other order: all words are found again by sentences, one sentence's in a whole."""
    references = References(["The dog barks. A cat sleeps."], "en")
    outputs = ["A cat sleeps. The dog barks."]
    assert rouge("rougelsum", outputs, references).value == pytest.approx(100)
    assert rouge("rougel", outputs, references).value == pytest.approx(50)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ru", "Кошка сидит на коврике"),
        ("hi", "बिल्ली चटाई पर बैठी है"),
        ("zh", "猫坐在垫子上"),
        ("th", "แมวนั่งบนเสื่อ"),
        ("ar", "القطة تجلس على الحصيرة"),
        ("zh-Hant", "貓坐在墊子上"),
    ],
)
def test_no_script_scores_nothing(language, text):
    """rouge_score's own tokenizer sees no word of these, so that right text has 0 and no two differ."""
    assert rouge("rougel", [text], References([text], language)).value == 100
    half = text[: len(text) // 2]
    assert 30 < rouge("rouge1", [half], References([text], language)).value < 90
    with pytest.raises(InputError, match=r"sees Latin letters and digits only.*take --tokenizer unicode"):
        rouge("rouge1", [text], References([text], language, "rouge_score"))
    with pytest.raises(InputError, match="no tokenizer '13a' for ROUGE"):
        rouge("rouge1", [text], References([text], language, "13a"))


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(InputError, match=r"ROUGE needs the package rouge_score: pip install 'deltalm-ds\[eval\]'"):
        METRICS["rouge1"].scorer(References(["a"], "en"))
