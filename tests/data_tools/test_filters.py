"""Reasons to leave a record out: each counted once, first come first served; scripts and duplicates."""

import math
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.data_tools import build as build_module
from deltalm_ds.data_tools.build import CorpusSpec, build
from deltalm_ds.data_tools.cut import _number_by_part
from deltalm_ds.data_tools.filters import Settings
from deltalm_ds.data_tools.scripts import script_shares
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.errors import InputError
from deltalm_ds.languages import LETTERS_OF_SCRIPT, scripts_of
from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("spm") / "spm"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcdefghijklmnopqrstuvwxyz"] * 3 + ["the cat sees a dog"] * 5),
        model_prefix=str(prefix),
        vocab_size=40,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        num_threads=1,
    )
    return Vocabulary.from_spm(f"{prefix}.model", num_sentinels=4)


def build_pairs(tmp_path, vocabulary, pairs, chosen, name="en-de"):
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    files = tuple(tmp_path / f"{out.name}.{side}" for side in range(len(pairs[0])))
    for side, path in enumerate(files):
        path.write_text("".join(f"{pair[side]}\n" for pair in pairs))
    (corpus,) = build([CorpusSpec.from_name(name, [TextSource(files)])], vocabulary, out, chosen).corpora
    reader = ShardDataset.open(out).corpora[name]
    sides = [reader.tokens(side, np.arange(reader.num_rows)) for side in reader.sides]
    return corpus.dropped, [tuple(map(vocabulary.decode, row)) for row in zip(*sides, strict=True)]


def test_every_reason_is_counted_once(tmp_path, vocabulary):
    good = ("the cat sees a dog", "the dog sees a cat")
    pairs = [
        good,
        ("a\x07b", "привет"),  # control before script
        ("a b", "привет"),
        good,  # duplicate
        ("the  cat sees a\u00a0dog", "ｔｈｅ dog sees a cat"),  # the same after NFKC
        ("\u200b", "a"),  # no tokens
        ("", "a"),
        ("a", "a"),  # short
        ("the cat " * 9, "the dog sees " * 6),  # overlong
        ("the", "the cat sees a dog the cat"),  # ratio
    ]
    everything = Settings(
        drop_control=True,
        min_script_share=0.5,
        deduplicate=True,
        min_tokens=2,
        max_tokens=30,
        overlong="drop",
        max_ratio=2.5,
    )
    pieces = [[len(vocabulary.encode(text)) for text in pair] for pair in pairs[-3:]]
    assert pieces[0] == [1, 1] and min(pieces[1]) > 30 and 2 <= pieces[2][0] * 2.5 < pieces[2][1] <= 30
    dropped, rows = build_pairs(tmp_path, vocabulary, pairs, everything)
    reasons = {"control": 1, "script": 1, "duplicate": 2, "empty": 2, "short": 1, "overlong": 1, "ratio": 1}
    assert (dropped, rows) == (reasons, [good])
    dropped, rows = build_pairs(tmp_path, vocabulary, pairs, Settings())
    assert (dropped, len(rows)) == ({"empty": 2}, 8)


@pytest.mark.parametrize("records_per_range", [3, 1000])
def test_duplicates_over_shards_and_sources_against_a_set(tmp_path, vocabulary, monkeypatch, records_per_range):
    """Many small parts and ranges of hash values; the first occurrence in the order of the corpus stays."""
    monkeypatch.setattr(build_module, "RECORDS_PER_RANGE", records_per_range)
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list("abc"), 3)) for _ in range(100)]
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_text("\n".join(texts[number * 33 : number * 33 + 33 + number // 2]))
    spec = CorpusSpec.from_name("en", [TextSource((path,)) for path in paths])
    chosen = Settings(deduplicate=True, rows_per_shard=7)
    (corpus,) = build([spec], vocabulary, tmp_path / "out", chosen).corpora
    reader = ShardDataset.open(tmp_path / "out").corpora["en"]
    expected = list(dict.fromkeys(texts))
    assert [vocabulary.decode(row) for row in reader.tokens("source", np.arange(reader.num_rows))] == expected
    assert corpus.dropped == {"duplicate": 100 - len(expected)} and len(corpus.shards) > 5


SAMPLES = {
    "sr": "Добар дан", "zh_CN": "你好，世界", "ja": "カタカナとひらがなと漢字", "ko": "안녕하세요", "hi": "नमस्ते दुनिया",
    "gu": "નમસ્તે", "ar": "مرحبا بالعالم", "el": "Καλημέρα", "de": "Schöne Grüße", "th": "สวัสดีชาวโลก", "am": "ሰላም",
    "ka": "გამარჯობა", "my": "မင်္ဂလာပါ", "km": "សួស្តី", "he": "שלום", "ta": "வணக்கம்",
}  # fmt: skip


@pytest.mark.parametrize("language", SAMPLES)
def test_greetings_are_in_the_scripts_of_their_language(language):
    shares = script_shares(list(SAMPLES.values()), scripts_of(language))
    for other, share in zip(SAMPLES, shares, strict=True):
        if other == language:
            assert share == 1
        elif not set(scripts_of(other)) & set(scripts_of(language)):
            assert share == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=5), st.sampled_from(["ru", "ja", "de", "sr"]))
def test_shares_against_a_plain_count(texts, language):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    expected = []
    for text in texts:
        letters = [character for character in text if unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo")]
        names = [unicodedata.name(letter, "?").replace("-", " ").split()[0] for letter in letters]
        expected.append(np.mean([name in scripts_of(language) for name in names]) if names else 1.0)
    assert script_shares(texts, scripts_of(language)).tolist() == pytest.approx(expected)


def test_limits_are_within_what_is_kept(tmp_path, vocabulary):
    pair = ("the cat", "the cat the cat")
    short, long = (len(vocabulary.encode(text)) for text in pair)
    limits = {"min_tokens": short, "max_tokens": long, "overlong": "drop", "max_ratio": long / short}
    assert build_pairs(tmp_path, vocabulary, [pair], Settings(**limits)) == ({}, [pair])


def test_every_language_of_wmt10_and_every_script_is_known():
    for language in ["en", "fr", "cs", "de", "fi", "lv", "et", "ro", "hi", "tr", "gu"]:
        assert scripts_of(language)
    names = {unicodedata.name(chr(code), "?").split()[0] for code in range(0x30000)}
    assert {word for words in LETTERS_OF_SCRIPT.values() for word in words} <= names
    with pytest.raises(InputError, match="script of 'qqq' is not known"):
        scripts_of("qqq")


@pytest.mark.parametrize(
    "wrong",
    [
        {"overlong": "cut"}, {"max_tokens": 0}, {"min_tokens": 0}, {"subword_samples": -1}, {"rows_per_shard": 0},
        {"max_ratio": 0.5}, {"max_ratio": math.nan}, {"sample_alpha": math.nan}, {"sample_alpha": 0}, {"seed": -1},
        {"seed": 1 << 63}, {"min_script_share": 0}, {"min_script_share": 1.5}, {"window_tokens": 0},
        {"window_tokens": 5, "max_tokens": 5}, {"window_tokens": 5, "subword_samples": 2}, {"cross_documents": True},
    ],
)  # fmt: skip
def test_impossible_settings(wrong):
    with pytest.raises(InputError):
        Settings(**wrong)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 7), st.integers(1, 20), st.data())
def test_parts_end_where_the_records_say_however_they_come(lengths, max_records, max_characters, data):
    """Against a loop over records; the blocks they come in make no difference."""
    expected, records, characters = [[]], 0, 0
    for length in lengths:
        if records == max_records or characters >= max_characters:
            expected.append([])
            records = characters = 0
        expected[-1].append("x" * length)
        records, characters = records + 1, characters + length
    texts = ["x" * length for length in lengths]
    bounds = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=5)))
    blocks = [texts[begin:end] for begin, end in zip([0, *bounds], [*bounds, len(texts)], strict=True)]
    found = {}
    for part, (block,) in _number_by_part(((block,) for block in blocks), max_records, max_characters):
        found.setdefault(part, []).extend(block)
    assert [found[part] for part in sorted(found)] == [part for part in expected if part]
