"""Text to the ids of models that are not ours, and back, by the tokenizer in their directory."""

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deltalm_ds.errors import DataError, InputError, nearest
from deltalm_ds.files import read_json
from deltalm_ds.generation.foreign.directories import (
    CTRANSLATE2,
    foreign_format,
    read_config,
    tokenizer_class,
    transformers_config,
)
from deltalm_ds.generation.foreign.families import Family, family_of_tokens
from deltalm_ds.languages import find_language, is_code
from deltalm_ds.vocabulary.segmenter import Segmenter
from deltalm_ds.vocabulary.vocabulary import on_one_line

UNKNOWN = "<unk>"
NAMED = 12  # languages that a message names


class Segmentation(Protocol):
    """Text to the names of tokens and back, without any that begin or end a sequence."""

    begin: tuple[str, ...]  # tokens that every source begins with

    def pieces(self, text: str, is_output: bool) -> list[str]:
        """The tokens of a text of the source or the target side."""
        ...

    def join(self, pieces: Sequence[str]) -> str:
        """The text that tokens of the target side make."""
        ...


class SentencePieces:
    """SentencePiece models alone: one for both sides, or one for each."""

    begin: tuple[str, ...] = ()

    def __init__(self, source: Path, target: Path) -> None:
        self._segmenters = [Segmenter(path.read_bytes(), path) for path in (source, target)]

    def pieces(self, text: str, is_output: bool) -> list[str]:
        """See `Segmentation`."""
        segmenter = self._segmenters[is_output]
        return [segmenter.pieces[number] for number in np.frombuffer(bytes(segmenter.segment([text])[0]), np.int32)]

    def join(self, pieces: Sequence[str]) -> str:
        """See `Segmentation`."""
        return self._segmenters[1].join(list(pieces))


class TransformersTokenizer:
    """A tokenizer of transformers; special tokens written out in a text are text, or `<unk>` if it knows no better."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = _open_tokenizer(directory)
        self._has_two = hasattr(self._tokenizer, "spm_target")
        self._lock = threading.Lock()  # it changes state while it works
        self.unknown: str = self._tokenizer.unk_token or UNKNOWN
        self._special = {*self._tokenizer.all_special_tokens} - {self.unknown}
        whole, bare = self._ids("a", True), self._ids("a", False)
        num_before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        self.begin: tuple[str, ...] = tuple(self._tokenizer.convert_ids_to_tokens(whole[:num_before]))

    def names(self) -> list[str]:
        """The tokens in the order of their ids; empty where there is none."""
        ids = dict(self._tokenizer.get_vocab()) | getattr(self._tokenizer, "lang_token_to_id", {})
        names = [""] * (max(ids.values()) + 1)
        for name, token_id in ids.items():
            names[token_id] = name
        return names

    def pieces(self, text: str, is_output: bool) -> list[str]:
        """See `Segmentation`."""
        with self._lock:
            side = {"text_target": text} if is_output and self._has_two else {"text": text}
            ids = self._tokenizer(**side, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            names = self._tokenizer.convert_ids_to_tokens(ids)
        return [self.unknown if name in self._special else name for name in names]

    def join(self, pieces: Sequence[str]) -> str:
        """See `Segmentation`."""
        with self._lock:
            ids = self._tokenizer.convert_tokens_to_ids(list(pieces))
            options = {"use_source_tokenizer": False} if self._has_two else {}
            return self._tokenizer.decode(ids, skip_special_tokens=True, **options)

    def _ids(self, text: str, special: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=special)["input_ids"]


class ForeignVocabulary:
    """A `ModelVocabulary` of a model that is not ours.

    Args:
        family: how the model is told languages.
        segmentation: of text.
        source_tokens, target_tokens: the names of ids on either side.
        unknown: that of what has no other.
        tasks: language translated into -> language of the source -> what a source begins with, of models that are
            told languages in words.
    """

    def __init__(
        self,
        family: Family,
        segmentation: Segmentation,
        source_tokens: Sequence[str],
        target_tokens: Sequence[str],
        unknown: str = UNKNOWN,
        tasks: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._family, self._segmentation, self._tasks = family, segmentation, tasks or {}
        self._names, self._unknown = (source_tokens, target_tokens), unknown
        self._ids = [{name: number for number, name in enumerate(side)} for side in self._names]
        self._token_of = family.languages(target_tokens if family.target != "encoder" else source_tokens)
        self._tags = frozenset(self._token_of.values())
        self.needs_source_lang = family.source is not None and bool(self._token_of)

    @property
    def languages(self) -> tuple[str, ...]:
        """The model's own codes of the languages that it can be told to translate into."""
        return tuple(self._token_of or self._tasks)

    def source_tag(self, target_lang: str | None, source_lang: str | None = None) -> list[int]:
        """See `ModelVocabulary`."""
        if not self.languages:
            if target_lang is not None:
                raise InputError(
                    f"This {self._family.title} model has no tokens of languages: it translates as it was trained to; "
                    "leave --target-lang out."
                )
            first = [self._family.first] if self._family.first else []
            return [*self._with_ids(first, side=1), *self._with_ids(self._segmentation.begin)]
        if target_lang is None:
            raise InputError(f"Name the language to translate into (--target-lang): {_some(self.languages)}.")
        target = self._code(target_lang, self.languages)
        if self._tasks:
            return self._task(target, source_lang)
        tag = self._with_ids([self._token_of[target]], side=int(self._family.target != "encoder"))
        if self.needs_source_lang:
            if source_lang is None:
                raise InputError(
                    f"{self._family.title} must be told the language of its sources (--source-lang): "
                    f"{_some(self.languages)}."
                )
            tag += self._with_ids([self._token_of[self._code(source_lang, self.languages)]])
        return tag

    def encode(self, text: str) -> np.ndarray:
        """See `ModelVocabulary`."""
        return np.array(self._with_ids(self._segmentation.pieces(text, False)), dtype=np.int64)

    def encode_output(self, text: str) -> np.ndarray:
        """See `ModelVocabulary`."""
        return np.array(self._with_ids(self._segmentation.pieces(text, True), side=1), dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """See `ModelVocabulary`; languages, and rows of the model that no token has, are left out."""
        names = self._names[1]
        pieces = [names[token_id] for token_id in map(int, ids) if token_id < len(names)]
        return on_one_line(self._segmentation.join([piece for piece in pieces if piece and piece not in self._tags]))

    def _with_ids(self, names: Iterable[str], side: int = 0) -> list[int]:
        ids = self._ids[side]
        return [ids.get(name, ids.get(self._unknown, 0)) for name in names]

    def _task(self, target: str, source_lang: str | None) -> list[int]:
        """The ids of words such as `translate English to German:`."""
        by_source = self._tasks[target]
        if source_lang is None and len(by_source) > 1:
            raise InputError(f"Name the language of the sources (--source-lang): {_some(tuple(by_source))}.")
        source = next(iter(by_source)) if source_lang is None else self._code(source_lang, tuple(by_source))
        return self.encode(by_source[source]).tolist()

    def _code(self, language: str, known: Sequence[str]) -> str:
        found = find_language(language, known) if language in known or is_code(language) else []
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"The language {language!r} could be each of these: {', '.join(found)}. Name one of them.")
        raise InputError(
            f"This {self._family.title} model has no language {language!r}: the nearest is "
            f"{nearest(language, known)!r}; it has {_some(known)}."
        )


def _some(codes: Sequence[str]) -> str:
    more = f" and {len(codes) - NAMED} more" if len(codes) > NAMED else ""
    return ", ".join(codes[:NAMED]) + more


def load_foreign_vocabulary(directory: Path) -> ForeignVocabulary:
    """The vocabulary of a directory of transformers or CTranslate2 that is not ours.

    Raises:
        InputError: the tokenizer or a package is missing. DataError: a file is damaged.
    """
    if foreign_format(directory) == CTRANSLATE2:
        return _of_ctranslate2(directory)
    config, family = transformers_config(directory)
    tokenizer = TransformersTokenizer(directory)
    names = tokenizer.names()
    return ForeignVocabulary(family, tokenizer, names, names, tokenizer.unknown, tasks_of(config))


def tasks_of(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Of T5's `task_specific_params` those of translation: target -> source -> the words that a text begins with."""
    found: dict[str, dict[str, str]] = {}
    for name, task in (config.get("task_specific_params") or {}).items():
        parts = name.split("_")
        if len(parts) == 4 and parts[0] == "translation" and parts[2] == "to" and task.get("prefix"):
            found.setdefault(parts[3], {})[parts[1]] = task["prefix"].strip()
    return found


def tokens_of_ctranslate2(directory: Path) -> tuple[list[str], list[str]]:
    """The tokens of the source and of the target side, in the order of their ids.

    Raises:
        InputError: there are no such files.
    """
    sides = []
    for side in ("source", "target"):
        names = [f"{which}_vocabulary.{kind}" for which in ("shared", side) for kind in ("json", "txt")]
        path = next((path for name in names if (path := directory / name).is_file()), None)
        if path is None:
            raise InputError(f"{directory} has no vocabulary: one of {', '.join(names)} belongs to the model.")
        sides.append(read_json(path) if path.suffix == ".json" else path.read_text(encoding="utf-8").split("\n")[:-1])
    return sides[0], sides[1]


def family_of_ctranslate2(directory: Path) -> Family:
    """How the model of a directory of CTranslate2 is told languages; errors as `tokens_of_ctranslate2`."""
    start = read_config(directory).get("decoder_start_token", "<s>")
    has_two = len(set(sentencepiece_models(directory))) == 2
    return family_of_tokens(tokens_of_ctranslate2(directory)[1], tokenizer_class(directory), start, has_two)


def sentencepiece_models(directory: Path) -> tuple[Path, ...]:
    """Of the source and of the target side; nothing where there are none, or it is not clear which is which."""
    found = sorted(path for path in directory.iterdir() if path.suffix in (".model", ".spm"))
    source, target = (
        [path for path in found if path.name.startswith(begins)] for begins in (("source", "src"), ("target", "tgt"))
    )
    if len(source) == len(target) == 1:
        return source[0], target[0]
    return (found[0], found[0]) if len(found) == 1 else ()


def _of_ctranslate2(directory: Path) -> ForeignVocabulary:
    source_tokens, target_tokens = tokens_of_ctranslate2(directory)
    segmentation: Segmentation
    if any((directory / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        segmentation = TransformersTokenizer(directory)
    elif models := sentencepiece_models(directory):
        segmentation = SentencePieces(*models)
    else:
        raise InputError(
            f"{directory} has no tokenizer: put those of the original model beside model.bin: tokenizer.json with "
            "tokenizer_config.json, or its SentencePiece model (*.model, or source.spm and target.spm)."
        )
    unknown = read_config(directory).get("unk_token") or UNKNOWN
    return ForeignVocabulary(family_of_ctranslate2(directory), segmentation, source_tokens, target_tokens, unknown)


def _open_tokenizer(directory: Path) -> Any:
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    except ModuleNotFoundError:
        raise InputError(
            f"The tokenizer in {directory} needs the package transformers: pip install 'deltalm-ds[export]'."
        ) from None
    has_config = (directory / "tokenizer_config.json").is_file()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Marian's recommends a package of which it makes no use
            if has_config or not (directory / "tokenizer.json").is_file():
                tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            else:
                tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    except Exception as error:  # whatever a tokenizer of any class finds wrong with its files
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"The tokenizer in {directory} cannot be opened ({reason}): are all its files there?") from None
    if getattr(tokenizer, "separate_vocabs", False):
        raise InputError(f"The tokenizer in {directory} has other ids for each side, which is not supported here.")
    return tokenizer
