"""tokenizer.json gives the ids that SentencePiece gives."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import TEXT, text_vocabulary

from deltalm_ds.errors import InputError
from deltalm_ds.export.tokenizer import build_tokenizer, write_tokenizer
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

KINDS = {
    "unigram": {},
    "bpe": {"model_type": "bpe", "vocab_size": 300},
    "byte fallback": {"byte_fallback": True, "vocab_size": 480},
    "no normalisation": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no dummy prefix": {"add_dummy_prefix": False},
}
ODD_STRINGS = (
    "",
    " ",
    "  two  spaces   and more ",
    "tab\there\nand\r\nlines\x0b",
    "zero\u200bwidth\u200c\u200djoiners\ufeff and\u2060 marks\u200e\u200f",
    "\x00control\x01\x7f\x85 characters\x9f",
    "\x85",
    "\u00a0no\u2003break\u3000spaces\u2028",
    "😀👩‍👧🏽❤️🇩🇪1️⃣ emoji",
    "ﬁ ㎏ ½ Ⅳ ＡＢＣ ｶﾅ compatibility",
    "e\u0301 a\u0308 composed",
    "▁the▁ mark_of▁▁spaces",
    "unknown ꙮ𓀀𓀁 characters 龘",
    "a" * 300,
)
# what the head of export/tokenizer.py names: marks, what composes with its neighbour, beginnings of special tokens
COMPOSING = ("Mn", "Mc", "Me", "Cs")
TEXTS = st.text(st.characters(exclude_categories=COMPOSING, exclude_characters="<_[＜＿［ﾞﾟ"), max_size=12).filter(
    lambda text: unicodedata.is_normalized("NFC", text) and not any("ᄀ" <= character <= "ᇿ" for character in text)
)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """(vocabulary, its tokenizer)."""
    vocabulary = text_vocabulary(tmp_path_factory.mktemp("vocabulary"), **KINDS[request.param])
    return vocabulary, build_tokenizer(vocabulary)


def assert_same(both, text):
    """Equal ids, or others of the same probability; the scores of BPE are ranks and differ."""
    vocabulary, tokenizer = both
    ours, theirs = vocabulary.encode(text).tolist(), tokenizer.encode(text).ids
    assert theirs[-1] == EOS_ID
    if ours != theirs[:-1]:
        assert probability(vocabulary, ours) == pytest.approx(probability(vocabulary, theirs[:-1]), abs=1e-3), text


def probability(vocabulary, ids):
    return sum(vocabulary._spm_scores[token_id - 1] for token_id in ids)


def test_ordinary_and_odd_strings(both):
    for text in (*TEXT, *ODD_STRINGS):
        assert both[1].encode(text).ids == [*both[0].encode(text).tolist(), 2], text


@given(text=TEXTS)
def test_any_text(both, text):
    assert_same(both, text)


@given(words=st.lists(st.sampled_from(" ".join(TEXT).split()), max_size=8), gap=st.sampled_from([" ", "  ", "", "-"]))
def test_any_words(both, words, gap):
    assert_same(both, gap.join(words))


def test_decoding(both):
    vocabulary, tokenizer = both
    for text in TEXT:
        ids = vocabulary.encode(text).tolist()
        assert tokenizer.decode([vocabulary.language_id("de"), *ids, 2]) == vocabulary.decode(ids)


def test_tags_sentinels_and_tasks_are_one_token(both):
    vocabulary, tokenizer = both
    sentinel = int(vocabulary.sentinel_ids[1])
    assert tokenizer.get_vocab_size() == vocabulary.num_tokens
    text = vocabulary.encode("A dog").tolist()
    for tag, token_id in (
        ("__de__", vocabulary.language_id("de")),
        ("<extra_id_1>", sentinel),
        ("[S]", vocabulary.block_start("tasks")),
    ):
        assert tokenizer.encode(f"{tag} A dog").ids[0] == token_id
        assert tokenizer.encode(f"{tag}A dog").ids == [token_id, *text, 2]


def test_every_id_has_our_name(both):
    vocabulary, tokenizer = both
    for token_id in range(vocabulary.num_tokens):
        assert tokenizer.id_to_token(token_id) == vocabulary.token(token_id)


def test_what_would_not_be_exact_is_refused(tmp_path):
    vocabulary = text_vocabulary(tmp_path)
    pieces = vocabulary.blocks["pieces"]
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in ("extra", *pieces[1:])), encoding="utf-8")
    other = Vocabulary.from_spm(tmp_path / "spm.model", tmp_path / "dict.txt")
    with pytest.raises(InputError, match=r"not those of its spm.model \(1 more, 1 fewer\)"):
        write_tokenizer(other, tmp_path / "out", 40)
    special = text_vocabulary(tmp_path / "special", user_defined_symbols=["[NAME]"])
    with pytest.raises(InputError, match=r"pieces of special types, such as '\[NAME\]'"):
        write_tokenizer(special, tmp_path / "out", 40)
    suffix = text_vocabulary(tmp_path / "suffix", treat_whitespace_as_suffix=True)
    with pytest.raises(InputError, match="spaces at the ends"):
        write_tokenizer(suffix, tmp_path / "out", 40)
    assert not (tmp_path / "out").exists()
