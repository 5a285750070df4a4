"""The vocabulary against SentencePiece itself, fairseq's layout of ids, and damaged files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from spm_models import SENTENCES, train_spm

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.token_ids import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from deltalm_ds.vocabulary import BLOCK_NAMES, Vocabulary


@pytest.fixture(scope="module")
def vocabulary(spm_path: Path) -> Vocabulary:
    return Vocabulary.from_spm(spm_path, num_sentinels=5, languages=("en", "de"), tasks=("[S]",))


def test_layout(vocabulary: Vocabulary) -> None:
    assert [vocabulary.token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (BOS_ID, PAD_ID, EOS_ID, UNK_ID) == (0, 1, 2, 3)
    # 60 SentencePiece ids are 57 pieces and three specials; ours begin at 4.
    assert vocabulary.sentinel_ids.tolist() == [61, 62, 63, 64, 65]
    assert vocabulary.languages == ("en", "de")
    assert [vocabulary.language_id("en"), vocabulary.language_id("de"), vocabulary.block_start("tasks")] == [66, 67, 68]
    assert (vocabulary.num_tokens, vocabulary.size) == (69, 128)
    assert [vocabulary.token(i) for i in (61, 67, 68, 69)] == ["<extra_id_0>", "__de__", "[S]", "<padding_0>"]


@given(st.lists(st.text(alphabet="The riverhousngtabld 0123.▁é☃", max_size=30), max_size=5))
def test_encodes_as_sentencepiece(spm_path: Path, vocabulary: Vocabulary, texts: list[str]) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(spm_path))
    expected = [[i + 1 if i else 3 for i in reference.encode(text)] for text in texts]
    encoded = vocabulary.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == expected
    assert all(ids.dtype == np.int64 for ids in encoded)
    assert [vocabulary.decode(ids) for ids in encoded] == [reference.decode(reference.encode(text)) for text in texts]


def test_decoding_leaves_out_what_is_not_text(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode(SENTENCES[0])
    tagged = [
        vocabulary.language_id("de"),
        0,
        *ids,
        *vocabulary.sentinel_ids,
        vocabulary.block_start("tasks"),
        100,
        2,
        1,
    ]
    assert vocabulary.decode(tagged) == SENTENCES[0]
    assert "⁇" in vocabulary.decode([*ids, UNK_ID])
    for outside in (-1, vocabulary.size):
        with pytest.raises(InputError, match="ids 0 to 127"):
            vocabulary.decode([outside])


def test_decoded_text_is_one_line(tmp_path: Path) -> None:
    """Pieces of single bytes can make any character: what ends a line somewhere, or no reader takes, is a space."""
    vocabulary = Vocabulary.from_spm(train_spm(tmp_path / "bytes.model", vocab_size=320, byte_fallback=True))
    pieces = vocabulary.blocks["pieces"]

    def ids_of(text: str) -> list[int]:
        return [4 + pieces.index(f"<0x{byte:02X}>") for byte in text.encode()]

    the = vocabulary.encode("The").tolist()
    for character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0\x07":
        text = vocabulary.decode([*the, *ids_of(character), *the])
        assert text == "The  The"  # the second word has a space of its own
        assert len(text.splitlines()) == 1
    assert vocabulary.decode([*the, *ids_of("\r\n"), *the]) == "The  The"
    assert vocabulary.decode([*the, *ids_of("\t☃é\u00a0"), *the]) == "The\t☃é\u00a0 The"


def test_literal_special_tokens_in_text_stay_text(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("</s> __de__ <extra_id_0>")
    assert not set(ids.tolist()) & {0, 1, 2, *vocabulary.sentinel_ids.tolist(), vocabulary.language_id("de")}


def test_dictionary_gives_the_order(spm_path: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    pieces = list(vocabulary.blocks["pieces"])
    lost = vocabulary.token(int(vocabulary.encode("The")[0]))
    order = [piece for piece in reversed(pieces) if piece != lost] + ["madeupword0000", "madeupword0001"]
    dict_path = tmp_path / "dict.txt"
    dict_path.write_text("".join(f"{piece} 7\n" for piece in order), encoding="utf-8")
    by_dict = Vocabulary.from_spm(spm_path, dict_path, num_sentinels=0)
    assert by_dict.blocks["pieces"] == tuple(order)
    assert by_dict.piece_differences() == (2, 1)
    assert vocabulary.piece_differences() == (0, 0)
    for text in SENTENCES[:5]:
        names = [vocabulary.token(int(i)) for i in vocabulary.encode(text)]
        expected = [4 + order.index(name) if name != lost else 3 for name in names]
        assert by_dict.encode(text).tolist() == expected


def test_unusable_files_are_one_sentence(tmp_path: Path, spm_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Vocabulary.from_spm(tmp_path / "absent")
    (tmp_path / "not.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        Vocabulary.from_spm(tmp_path / "not.model")
    with pytest.raises(InputError, match="at ids 0-2"):
        Vocabulary.from_spm(train_spm(tmp_path / "t5.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    with pytest.raises(InputError, match=r"'__en__' .* twice"):
        Vocabulary.from_spm(spm_path, languages=("en", "de", "en"))


def test_unknown_names_list_the_known(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match=r"'fr'; it has: en, de\."):
        vocabulary.language_id("fr")
    with pytest.raises(InputError, match=r"'DE' is not a language code.*perhaps de"):
        vocabulary.language_id("DE")


def test_saved_loaded_and_pickled_alike(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    for other in (Vocabulary.load(tmp_path), pickle.loads(pickle.dumps(vocabulary))):
        assert other.blocks == vocabulary.blocks
        assert other.hash == vocabulary.hash
        assert other.encode(SENTENCES[0]).tolist() == vocabulary.encode(SENTENCES[0]).tolist()
    described = json.loads((tmp_path / "vocabulary.json").read_text())["blocks"]
    assert [block["name"] for block in described] == list(BLOCK_NAMES)
    assert [block["start"] for block in described] == [0, 4, 61, 66, 68, 69]
    assert all(block["count"] == len(block["tokens"]) for block in described)


def test_hash_tells_every_difference(spm_path: Path, tmp_path: Path) -> None:
    other = train_spm(tmp_path / "other.model", vocab_size=59)
    vocabularies = [
        Vocabulary.from_spm(spm_path, num_sentinels=5, languages=("en", "de")),
        Vocabulary.from_spm(spm_path, num_sentinels=5, languages=("de", "en")),
        Vocabulary.from_spm(spm_path, num_sentinels=6, languages=("en",)),
        Vocabulary.from_spm(spm_path, num_sentinels=5, languages=("en",), tasks=("__de__",)),
        Vocabulary.from_spm(other, num_sentinels=5, languages=("en", "de")),
    ]
    assert len({vocabulary.hash for vocabulary in vocabularies}) == len(vocabularies)


def test_altered_files_are_refused(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path)
    content = (tmp_path / "vocabulary.json").read_text(encoding="utf-8")
    for altered in (
        content.replace("__de__", "__fr__"),
        content.replace('"format_version": 1', '"format_version": 2'),
        content.replace('"sentinels"', '"sentinel"'),
        content.replace('"blocks"', '"block"'),
        "[]",
    ):
        (tmp_path / "vocabulary.json").write_text(altered, encoding="utf-8")
        with pytest.raises(DataError, match=r"vocabulary\.json"):
            Vocabulary.load(tmp_path)
    (tmp_path / "vocabulary.json").write_text(content, encoding="utf-8")
    model = bytearray((tmp_path / "spm.model").read_bytes())
    model[len(model) // 2] ^= 1
    (tmp_path / "spm.model").write_bytes(model)
    with pytest.raises(DataError, match=r"spm\.model"):
        Vocabulary.load(tmp_path)
    (tmp_path / "spm.model").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        Vocabulary.load(tmp_path)


def test_sampled_segmentations(vocabulary: Vocabulary) -> None:
    texts = [SENTENCES[0]] * 20
    sampled = vocabulary.encode_batch(texts, sample_alpha=0.1, seed=7)
    as_tuples = [tuple(ids.tolist()) for ids in sampled]
    assert len(set(as_tuples)) > 5
    assert {vocabulary.decode(ids) for ids in sampled} == {SENTENCES[0]}
    # The draw of a text depends on (seed, index) alone: not on what was drawn before or on the batch's size.
    again = vocabulary.encode_batch(texts[:3], sample_alpha=0.1, seed=7)
    assert [tuple(ids.tolist()) for ids in again] == as_tuples[:3]
    other = vocabulary.encode_batch(texts, sample_alpha=0.1, seed=8)
    assert [tuple(ids.tolist()) for ids in other] != as_tuples
