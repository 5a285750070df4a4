"""A vocabulary as Hugging Face's `tokenizer.json`, which gives the ids that SentencePiece gives.

It agrees on ordinary text of all scripts (docs/serving.md has the measurement), and not on:

- special tokens written out in a text (`</s>`, `__de__`): they are those tokens here, and pieces in SentencePiece;
- segmentations of equal probability, where SentencePiece's rounding in float32 decides;
- decomposed characters (NFD: Hangul, kana, letters with two accents) and marks on compatibility characters, which
  `tokenizers` composes one grapheme at a time and SentencePiece across them; text in NFC does not have them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import sentencepiece_model_pb2

from deltalm_ds.errors import InputError
from deltalm_ds.files import write_json
from deltalm_ds.token_ids import EOS_ID, SPECIAL_TOKENS, UNK_ID
from deltalm_ds.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPM_FORMAT: Any = sentencepiece_model_pb2  # its classes are made when it is imported: mypy sees none
UNIGRAM, BPE = 1, 2  # model types of SentencePiece
NORMAL, BYTE = 1, 6  # types of pieces that are made of text


def write_tokenizer(vocabulary: Vocabulary, directory: Path, max_positions: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` of a vocabulary with text.

    Sentinels, language tags and task tokens are special tokens: in `__de__ Some text.` the tag is one token.

    Raises:
        InputError: the vocabulary has something that `tokenizer.json` cannot express.
    """
    bos, pad, eos, unk = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "pad_token": pad,
        "eos_token": eos,
        "unk_token": unk,
        "model_max_length": max_positions,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    build_tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", config)


def build_tokenizer(vocabulary: Vocabulary) -> "Tokenizer":
    """The tokenizer; it appends `</s>` and names all tokens but the padding rows. Errors as `write_tokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

    spm = SPM_FORMAT.ModelProto.FromString(vocabulary.spm_model)
    _check(vocabulary, spm)
    tokenizer = Tokenizer(_model(vocabulary, spm))
    steps: list[Any] = []
    if spm.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spm.normalizer_spec.precompiled_charsmap))
    if spm.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spm.normalizer_spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))  # Metaspace's own prefix does not stand before a space
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    prefix = "always" if spm.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prefix)])
    eos = SPECIAL_TOKENS[EOS_ID]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, EOS_ID)]
    )
    blocks = vocabulary.blocks
    named = (*SPECIAL_TOKENS, *blocks["sentinels"], *blocks["languages"], *blocks["tasks"])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in named])
    return tokenizer


def _model(vocabulary: Vocabulary, spm: Any) -> Any:
    """What cuts normalised text into pieces, with our ids."""
    from tokenizers import models

    score_of = {piece.piece: piece.score for piece in spm.pieces}
    byte_fallback = spm.trainer_spec.byte_fallback
    if spm.trainer_spec.model_type == BPE:
        ids = {piece: number for number, piece in enumerate((*SPECIAL_TOKENS, *vocabulary.blocks["pieces"]))}
        merges = _merges(vocabulary.blocks["pieces"], score_of)
        unk = SPECIAL_TOKENS[UNK_ID]
        return models.BPE(ids, merges, unk_token=unk, fuse_unk=True, byte_fallback=byte_fallback)
    lowest = min(score_of[piece] for piece in vocabulary.blocks["pieces"])
    # special tokens must not be likelier than what else their characters could be
    special = [(token, lowest) for token in SPECIAL_TOKENS]
    scored = special + [(piece, score_of[piece]) for piece in vocabulary.blocks["pieces"]]
    return models.Unigram(scored, UNK_ID, byte_fallback)


def _merges(pieces: tuple[str, ...], score_of: dict[str, float]) -> list[tuple[str, str]]:
    """The pairs that BPE may join, in the order in which SentencePiece prefers them: best result first."""
    known = set(pieces)
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    return sorted(pairs, key=lambda pair: -score_of["".join(pair)])


def _check(vocabulary: Vocabulary, spm: Any) -> None:
    """InputError where the result could not be exact."""
    num_never_made, num_lost = vocabulary.piece_differences()
    types = {piece.piece: piece.type for piece in spm.pieces}
    odd = [piece for piece in vocabulary.blocks["pieces"] if types.get(piece) not in (NORMAL, BYTE)]
    if num_never_made or num_lost:
        reason = f"its pieces are not those of its spm.model ({num_never_made} more, {num_lost} fewer)"
    elif odd:
        reason = f"its spm.model has pieces of special types, such as {odd[0]!r}"
    elif spm.trainer_spec.model_type not in (UNIGRAM, BPE):
        reason = "its spm.model is neither unigram nor bpe"
    elif spm.trainer_spec.treat_whitespace_as_suffix:
        reason = "its spm.model puts spaces at the ends of words"
    else:
        return
    raise InputError(f"The vocabulary cannot be written as a tokenizer.json that gives the same ids: {reason}.")
