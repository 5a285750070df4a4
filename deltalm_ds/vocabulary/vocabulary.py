"""All tokens of a model, by id and by name, and text as their ids."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import AnyStr

import numpy as np
from numpy.typing import ArrayLike

from deltalm_ds.arrays.counter_rng import uniform
from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import atomic_file, read_json, write_json
from deltalm_ds.languages import find_language
from deltalm_ds.token_ids import SPECIAL_TOKENS, UNK_ID
from deltalm_ds.vocabulary.blocks import BLOCK_NAMES, Blocks, language_of, make_blocks, sentinel, tag_of
from deltalm_ds.vocabulary.fairseq_dict import read_fairseq_dict
from deltalm_ds.vocabulary.segmenter import Segmenter
from deltalm_ds.vocabulary.task_tokens import TaskTokens

FORMAT_VERSION = 1
# What ends a line somewhere, and other control characters but the tab: pieces of single bytes can make any of them.
_CONTROL = re.compile("\r\n|[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029]")


def on_one_line(text: str) -> str:
    """Text without line breaks of any kind (those of Unicode too) and control characters other than the tab."""
    return _CONTROL.sub(" ", text)


class Vocabulary:
    """All tokens of a model, in named blocks, with the SentencePiece model that makes pieces from text.

    A vocabulary without a SentencePiece model ("ids only") names ids but cannot encode or decode text.

    Args:
        blocks: the tokens of each block of `BLOCK_NAMES`, in the order of their ids.
        spm_model: the content of the SentencePiece model's file, or None.

    Raises:
        InputError: a token occurs twice, or the SentencePiece model cannot be read.
    """

    def __init__(self, blocks: Blocks, spm_model: bytes | None = None) -> None:
        assert tuple(blocks) == BLOCK_NAMES
        self.blocks = blocks
        self._spm_model = spm_model
        self._tokens = tuple(token for tokens in blocks.values() for token in tokens)
        self._id_of_token = {token: token_id for token_id, token in enumerate(self._tokens)}
        if len(self._id_of_token) != len(self._tokens):
            twice = next(token for i, token in enumerate(self._tokens) if self._id_of_token[token] != i)
            raise InputError(f"The token {twice!r} would stand in the vocabulary twice: choose other names.")

    def __reduce__(self) -> tuple[object, ...]:
        return Vocabulary, (self.blocks, self._spm_model)

    @classmethod
    def from_spm(
        cls,
        spm_model_path: str | Path,
        dict_path: str | Path | None = None,
        num_sentinels: int | None = None,
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> "Vocabulary":
        """Import a SentencePiece model, its pieces ordered by itself or by a fairseq dict.txt.

        With a dict.txt, a piece that only the model has becomes `<unk>` (see `piece_differences`).

        Args:
            num_sentinels, languages, tasks: the blocks behind the pieces, see `make_blocks`.

        Raises:
            InputError: a file is missing or malformed, or (without dict.txt) the model does not have
                `<unk>`, `<s>`, `</s>` at 0, 1, 2 as XLM-R's has.
        """
        spm_model = _read_bytes(spm_model_path)
        pieces: Sequence[str] = Segmenter(spm_model, spm_model_path).pieces
        if dict_path is not None:
            pieces = read_fairseq_dict(dict_path)
        elif tuple(pieces[:3]) == ("<unk>", "<s>", "</s>"):
            pieces = pieces[3:]
        else:
            raise InputError(
                f"{spm_model_path} has {', '.join(pieces[:3])} at ids 0-2 where XLM-R has <unk>, <s>, </s>: "
                "give the fairseq dict.txt that belongs to it, or train a model with `deltalm vocab train`."
            )
        return cls(make_blocks(pieces, num_sentinels, languages, tasks), spm_model)

    @classmethod
    def from_dict(
        cls,
        dict_path: str | Path,
        num_sentinels: int | None = None,
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> "Vocabulary":
        """Import a fairseq dict.txt alone: names for ids, but no encoding of text; see `from_spm`."""
        return cls(make_blocks(read_fairseq_dict(dict_path), num_sentinels, languages, tasks))

    @classmethod
    def load(cls, directory: str | Path) -> "Vocabulary":
        """Read `vocabulary.json` and, where it names one, `spm.model`.

        Raises:
            InputError: a file is missing.
            DataError: a file was altered since it was saved.
        """
        path = Path(directory) / "vocabulary.json"
        content = read_json(path)
        try:
            if content["format_version"] != FORMAT_VERSION:
                raise DataError(f"{path} has format version {content['format_version']}, not {FORMAT_VERSION}.")
            blocks = {block["name"]: tuple(block["tokens"]) for block in content["blocks"]}
            spm_sha256, expected_hash = content["spm_sha256"], content["hash"]
        except (KeyError, TypeError):
            raise DataError(f"{path} is not a vocabulary of deltalm.") from None
        spm_model = None
        if spm_sha256 is not None:
            spm_model = _read_bytes(path.with_name("spm.model"))
            if hashlib.sha256(spm_model).hexdigest() != spm_sha256:
                raise DataError(f"{path.with_name('spm.model')} is not the one that {path} was made with.")
        if tuple(blocks) != BLOCK_NAMES:
            raise DataError(f"{path} has the blocks {', '.join(blocks)}; expected {', '.join(BLOCK_NAMES)}.")
        vocabulary = cls(blocks, spm_model)
        if vocabulary.hash != expected_hash:
            raise DataError(f"{path} was altered: its tokens do not give the hash it states.")
        return vocabulary

    def save(self, directory: str | Path) -> None:
        """Write `vocabulary.json` and `spm.model` into `directory` (created if need be)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self._spm_model is not None:
            with atomic_file(directory / "spm.model", "wb") as file:
                file.write(self._spm_model)
        write_json(directory / "vocabulary.json", self._description())

    def _description(self) -> dict[str, object]:
        blocks = [
            {"name": name, "start": self.block_start(name), "count": len(tokens), "tokens": tokens}
            for name, tokens in self.blocks.items()
        ]
        return {
            "format_version": FORMAT_VERSION,
            "hash": self.hash,
            "spm_sha256": self._spm_sha256,
            "num_tokens": self.num_tokens,
            "size": self.size,
            "blocks": blocks,
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the SentencePiece model and all tokens: equal exactly when ids mean the same."""
        content = json.dumps([self._spm_sha256, list(self.blocks.items())], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def _spm_sha256(self) -> str | None:
        return None if self._spm_model is None else hashlib.sha256(self._spm_model).hexdigest()

    # --- ids and their names ---

    @property
    def size(self) -> int:
        """Rows of the embedding, padding rows included: a multiple of 64."""
        return len(self._tokens)

    @property
    def num_tokens(self) -> int:
        """Rows that mean something: all but the padding rows, which come last."""
        return self.size - len(self.blocks["padding"])

    def block_start(self, name: str) -> int:
        """The first id of a block."""
        return sum(len(self.blocks[before]) for before in BLOCK_NAMES[: BLOCK_NAMES.index(name)])

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that have a tag, in the order of their ids."""
        return tuple(map(language_of, self.blocks["languages"]))

    def language_id(self, language: str) -> int:
        """The id of a language's tag `__xx__`, also by another spelling of the code (see `find_language`).

        Raises:
            InputError: no tag is that language's, or several could be; the message names them.
        """
        found = find_language(language, self.languages)
        if len(found) > 1:
            raise InputError(f"The language {language!r} could be each of these: {', '.join(found)}. Name one of them.")
        if not found:
            known = ", ".join(self.languages) or "none"
            raise InputError(f"The vocabulary has no tag for the language {language!r}; it has: {known}.")
        return self._id_of_token[tag_of(found[0])]

    needs_source_lang = False  # a tag of the target alone is what sources have

    def source_tag(self, target_lang: str | None, source_lang: str | None = None) -> list[int]:
        """The ids that a source begins with: the target language's tag, or none without tags [facts: language tag].

        Args:
            target_lang: the language to translate into.
            source_lang: is not looked at.

        Raises:
            InputError: the language is unknown, or none is given where there are tags.
        """
        if target_lang is not None:
            return [self.language_id(target_lang)]
        if self.languages:
            raise InputError(f"Name the language to translate into (--target-lang): {', '.join(self.languages)}.")
        return []

    @cached_property
    def sentinel_ids(self) -> np.ndarray:
        """[number of sentinels] int64: the id of sentinel 0, 1, …"""
        names = map(sentinel, range(len(self.blocks["sentinels"])))
        return np.array([self._id_of_token[name] for name in names], dtype=np.int64)

    def token(self, token_id: int) -> str:
        """The name of an id; InputError if there is no such row."""
        if not 0 <= token_id < self.size:
            raise InputError(f"There is no token {token_id}: the vocabulary has ids 0 to {self.size - 1}.")
        return self._tokens[token_id]

    def is_piece(self, token_id: int) -> bool:
        """Whether it is part of a text: a piece, or `<unk>` in place of one."""
        return UNK_ID <= token_id < self._end_of_pieces

    @cached_property
    def _end_of_pieces(self) -> int:
        return self.block_start("sentinels")

    # --- text ---

    @property
    def has_text(self) -> bool:
        """Whether there is a SentencePiece model, so that text can be encoded and decoded."""
        return self._spm_model is not None

    @property
    def spm_model(self) -> bytes | None:
        """The content of the SentencePiece model's file."""
        return self._spm_model

    @cached_property
    def _segmenter(self) -> Segmenter:
        if self._spm_model is None:
            raise InputError("This vocabulary is ids only (no spm.model): it cannot encode or decode text.")
        return Segmenter(self._spm_model)

    @cached_property
    def _id_of_spm_id(self) -> np.ndarray:
        """[SentencePiece ids] int64: our id of each piece; `<unk>` where a dict.txt lacks it."""
        ids = np.array([self._id_of_token.get(piece, UNK_ID) for piece in self._segmenter.pieces], dtype=np.int64)
        return np.where(ids < self.block_start("sentinels"), ids, UNK_ID)

    def piece_differences(self) -> tuple[int, int]:
        """How many pieces only the vocabulary has (never produced), and only the model has (`<unk>`)."""
        in_both = int(np.count_nonzero(self._id_of_spm_id >= len(SPECIAL_TOKENS)))
        num_lost = int(np.count_nonzero(self._id_of_spm_id == UNK_ID)) - 1
        return len(self.blocks["pieces"]) - in_both, num_lost

    def encode(self, text: str) -> np.ndarray:
        """[tokens] int64: the ids of one text, without `</s>` or tags."""
        return self.encode_batch([text])[0]

    def encode_output(self, text: str) -> np.ndarray:
        """The ids of an output: both sides of a model have one vocabulary."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str], sample_alpha: float | None = None, seed: int = 0) -> list[np.ndarray]:
        """The ids of each text, [tokens] int64; see `encode_rows`."""
        return list(self.encode_rows(texts, sample_alpha, seed))

    def encode_rows(
        self,
        texts: Sequence[AnyStr],
        sample_alpha: float | None = None,
        seed: ArrayLike = 0,
        numbers: np.ndarray | None = None,
    ) -> RaggedRows:
        """The ids of each text (str or UTF-8), int64, without `</s>` or tags, end to end.

        A task token that is written out in a text (`answer [S] passage`) is that token, and what stands on either side
        of it a text of its own; sentinels, tags and special tokens that are written out are text like any other.

        Args:
            texts: without line breaks.
            sample_alpha: draw each segmentation (unigram models only): subword regularisation, see `Segmenter.sample`.
            seed: of the draws, which depend on it, the number of the text and the text alone.
            numbers: [texts] of each text; 0, 1, … if not given.
        """
        number_of_text = np.arange(len(texts)) if numbers is None else numbers

        def encode(segments: list[AnyStr], text_of_segment: np.ndarray, place: np.ndarray) -> RaggedRows:
            if sample_alpha is None:
                return self._rows(self._segmenter.segment(segments))
            number = number_of_text[text_of_segment]
            draws = np.where(place == 0, uniform(seed, number), uniform(seed, number, place))
            sample = self._segmenter.sample
            return self._rows([sample(text, sample_alpha, u) for text, u in zip(segments, draws, strict=True)])

        if self._task_tokens is None:
            return encode(list(texts), np.arange(len(texts)), np.zeros(len(texts), np.int64))
        return self._task_tokens.encode(texts, encode)

    @cached_property
    def _task_tokens(self) -> TaskTokens | None:
        tasks = self.blocks["tasks"]
        return TaskTokens({token: self._id_of_token[token] for token in tasks}) if tasks else None

    def _rows(self, spm_ids: list[np.ndarray]) -> RaggedRows:
        """The ids of texts from those of SentencePiece, int32."""
        rows = list(map(bytes, spm_ids))
        flat = np.frombuffer(b"".join(rows), np.int32)
        return RaggedRows(self._id_of_spm_id[flat], np.fromiter(map(len, rows), np.int64) // flat.itemsize)

    def normalize(self, texts: Sequence[AnyStr]) -> list[AnyStr]:
        """Texts (str or UTF-8) as the SentencePiece model sees them: as a rule NFKC, "▁" for a run of white space."""
        return self._segmenter.normalize(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, on one line; everything but pieces and `<unk>` (shown as ⁇) is left out.

        Line breaks of every kind (those of Unicode too) and control characters other than the tab, which pieces of
        single bytes can make, become a space: outputs are written one a line.

        Raises:
            InputError: an id is outside the vocabulary, or the vocabulary is ids only.
        """
        named = [(token_id, self.token(token_id)) for token_id in map(int, ids)]
        pieces = [name for token_id, name in named if self.is_piece(token_id)]
        return on_one_line(self._segmenter.join(pieces))


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
