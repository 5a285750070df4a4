"""Text to token ids and back: a SentencePiece model, and the named blocks of ids around its pieces.

The layout of ids is that of XLM-R and fairseq [FACTS 1]: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, then the
pieces (SentencePiece id + 1, or the order of a fairseq dict.txt), then the blocks appended here: sentinels,
language tags, task tokens, and padding rows up to a multiple of 64 [FACTS 7].
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, AnyStr

import numpy as np
import sentencepiece
from numpy.typing import ArrayLike

from deltalm_ds.arrays.counter_rng import uniform
from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import atomic_file, read_json, write_json
from deltalm_ds.lines import numbered_lines
from deltalm_ds.token_ids import ROW_MULTIPLE, SPECIAL_TOKENS, UNK_ID

FORMAT_VERSION = 1
BLOCK_NAMES = ("special", "pieces", "sentinels", "languages", "tasks", "padding")
NBEST_SEGMENTATIONS = 64
SENTENCEPIECE_VERSION = "0.2.3"  # of which this module knows an inner function


class Vocabulary:
    """All tokens of a model, in named blocks, with the SentencePiece model that makes pieces from text.

    A vocabulary without a SentencePiece model ("ids only") names ids but cannot encode or decode text.

    Args:
        blocks: the tokens of each block of `BLOCK_NAMES`, in the order of their ids.
        spm_model: the content of the SentencePiece model's file, or None.

    Raises:
        InputError: a token occurs twice, or the SentencePiece model cannot be read.
    """

    def __init__(self, blocks: dict[str, tuple[str, ...]], spm_model: bytes | None = None) -> None:
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
        num_sentinels: int = 100,
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> "Vocabulary":
        """Import a SentencePiece model, its pieces ordered by itself or by a fairseq dict.txt.

        With a dict.txt, a piece that only the model has becomes `<unk>` (see `piece_differences`).

        Raises:
            InputError: a file is missing or malformed, or (without dict.txt) the model does not have
                `<unk>`, `<s>`, `</s>` at 0, 1, 2 as XLM-R's has.
        """
        spm_model = _read_bytes(spm_model_path)
        processor = _load_processor(spm_model, spm_model_path)
        pieces = [processor.id_to_piece(spm_id) for spm_id in range(processor.get_piece_size())]
        if dict_path is not None:
            pieces = read_fairseq_dict(dict_path)
        elif pieces[:3] == ["<unk>", "<s>", "</s>"]:
            pieces = pieces[3:]
        else:
            raise InputError(
                f"{spm_model_path} has {', '.join(pieces[:3])} at ids 0-2 where XLM-R has <unk>, <s>, </s>: "
                "give the fairseq dict.txt that belongs to it, or train a model with `deltalm vocab train`."
            )
        return cls(_make_blocks(pieces, num_sentinels, languages, tasks), spm_model)

    @classmethod
    def from_dict(
        cls,
        dict_path: str | Path,
        num_sentinels: int = 100,
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> "Vocabulary":
        """Import a fairseq dict.txt alone: names for ids, but no encoding of text."""
        return cls(_make_blocks(read_fairseq_dict(dict_path), num_sentinels, languages, tasks))

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
        return tuple(token[2:-2] for token in self.blocks["languages"])

    def language_id(self, language: str) -> int:
        """The id of a language's tag `__xx__`.

        Raises:
            InputError: the language has no tag; the message names those that have.
        """
        if language not in self.languages:
            known = ", ".join(self.languages) or "none"
            raise InputError(f"The vocabulary has no tag for the language {language!r}; it has: {known}.")
        return self._id_of_token[f"__{language}__"]

    def task_id(self, token: str) -> int:
        """The id of a task token such as `[S]`; InputError names the known ones."""
        if token not in self.blocks["tasks"]:
            known = ", ".join(self.blocks["tasks"]) or "none"
            raise InputError(f"The vocabulary has no task token {token!r}; it has: {known}.")
        return self._id_of_token[token]

    @cached_property
    def sentinel_ids(self) -> np.ndarray:
        """[number of sentinels] int64: the id of sentinel 0, 1, …"""
        start = self.block_start("sentinels")
        return np.arange(start, start + len(self.blocks["sentinels"]), dtype=np.int64)

    def token(self, token_id: int) -> str:
        """The name of an id; InputError if there is no such row."""
        if not 0 <= token_id < self.size:
            raise InputError(f"There is no token {token_id}: the vocabulary has ids 0 to {self.size - 1}.")
        return self._tokens[token_id]

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
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        if self._spm_model is None:
            raise InputError("This vocabulary is ids only (no spm.model): it cannot encode or decode text.")
        return _load_processor(self._spm_model, "spm.model")

    @cached_property
    def _id_of_spm_id(self) -> np.ndarray:
        """[SentencePiece ids] int64: our id of each piece; `<unk>` where a dict.txt lacks it."""
        processor, end = self._processor, self.block_start("sentinels")
        pieces = (processor.id_to_piece(spm_id) for spm_id in range(processor.get_piece_size()))
        ids = np.array([self._id_of_token.get(piece, UNK_ID) for piece in pieces], dtype=np.int64)
        return np.where(ids < end, ids, UNK_ID)

    def piece_differences(self) -> tuple[int, int]:
        """How many pieces only the vocabulary has (never produced), and only the model has (`<unk>`)."""
        in_both = int(np.count_nonzero(self._id_of_spm_id >= len(SPECIAL_TOKENS)))
        num_lost = int(np.count_nonzero(self._id_of_spm_id == UNK_ID)) - 1
        return len(self.blocks["pieces"]) - in_both, num_lost

    def encode(self, text: str) -> np.ndarray:
        """[tokens] int64: the ids of one text, without `</s>` or tags."""
        return self.encode_batch([text])[0]

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

        With `sample_alpha` each segmentation is drawn from the 64 best with probability ∝ P^alpha (unigram models
        only): subword regularisation [Kudo18 §3.2]. The draw depends on (seed, number of the text) and the text alone.

        Args:
            numbers: [texts] of each text; 0, 1, … if not given.
        """
        if sample_alpha is None:
            spm_ids = self._segment(list(texts))
        else:
            draws = uniform(seed, np.arange(len(texts)) if numbers is None else numbers)
            spm_ids = [self._sampled_segmentation(text, sample_alpha, u) for text, u in zip(texts, draws, strict=True)]
        rows = list(map(bytes, spm_ids))
        flat = np.frombuffer(b"".join(rows), np.int32)
        return RaggedRows(self._id_of_spm_id[flat], np.fromiter(map(len, rows), np.int64) // flat.itemsize)

    def _segment(self, texts: list[AnyStr]) -> list[np.ndarray]:
        """Of each text the best segmentation: SentencePiece ids in an array (or another buffer) of int32."""
        if sentencepiece.__version__ == SENTENCEPIECE_VERSION:
            # What `encode` makes the arrays from: to make one for each line takes a sixth of the time of encoding it.
            inner: Any = self._processor.__dict__["_processor"]
            return inner._EncodeAsBufferBatch(texts, 1, None, False, 0, 0.0, False, False, False)
        return self._processor.encode(texts, num_threads=1, return_type="numpy")

    def normalize(self, texts: Sequence[AnyStr]) -> list[AnyStr]:
        """Texts (str or UTF-8) as the SentencePiece model sees them: as a rule NFKC, "▁" for a run of white space."""
        return self._processor.normalize(list(texts))

    def _sampled_segmentation(self, text: AnyStr, alpha: float, u: float) -> np.ndarray:
        """SentencePiece ids of the candidate at u ∈ [0, 1) of the distribution; its own sampling cannot be seeded."""
        candidates = self._processor.nbest_encode(text, nbest_size=NBEST_SEGMENTATIONS, return_type="numpy")
        log_p = np.array([self._spm_scores[candidate].sum() for candidate in candidates])
        weights = np.exp(alpha * (log_p - log_p.max())).cumsum()
        return candidates[int(np.searchsorted(weights, u * weights[-1], side="right"))]

    @cached_property
    def _spm_scores(self) -> np.ndarray:
        """[SentencePiece ids] float64: log p of each piece in the unigram model."""
        processor = self._processor
        return np.array([processor.get_score(spm_id) for spm_id in range(processor.get_piece_size())])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; everything but pieces and `<unk>` (shown as ⁇) is left out.

        Raises:
            InputError: an id is outside the vocabulary, or the vocabulary is ids only.
        """
        end = self.block_start("sentinels")
        named = [(token_id, self.token(token_id)) for token_id in map(int, ids)]
        pieces = [name for token_id, name in named if UNK_ID <= token_id < end]
        return self._processor.decode(pieces)


def read_fairseq_dict(path: str | Path) -> list[str]:
    """The tokens of a fairseq dict.txt (`token count` a line); line i, from 0, has id 4 + i [FACTS 1]."""
    tokens = []
    for number, line in numbered_lines(path):
        token, _, count = line.rpartition(" ")
        if not token or not count.isdecimal():
            raise InputError(f"{path}, line {number}: expected 'token count', found {line.rstrip()!r}.")
        tokens.append(token)
    if not tokens:
        raise InputError(f"{path} is empty: expected one 'token count' a line.")
    return tokens


def _make_blocks(
    pieces: Sequence[str], num_sentinels: int, languages: Sequence[str], tasks: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Append the blocks after the pieces; sentinels are named as in T5, padding rows by their number."""
    num_tokens = len(SPECIAL_TOKENS) + len(pieces) + num_sentinels + len(languages) + len(tasks)
    return {
        "special": SPECIAL_TOKENS,
        "pieces": tuple(pieces),
        "sentinels": tuple(f"<extra_id_{index}>" for index in range(num_sentinels)),
        "languages": tuple(f"__{language}__" for language in languages),
        "tasks": tuple(tasks),
        "padding": tuple(f"<padding_{index}>" for index in range(-num_tokens % ROW_MULTIPLE)),
    }


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None


def _load_processor(model: bytes, name: str | Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError):
        raise InputError(f"{name} is not a SentencePiece model.") from None
