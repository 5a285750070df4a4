"""The manifest of a shard data set: what `manifest.json` says, and what every shard says of itself."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json, sha256_of, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METADATA_KEY = b"deltalm"
ROWS_PER_BATCH = 65_536  # of every record batch of a shard but the last: where a row lies follows from its number
SIDES = {"mono": ("source",), "parallel": ("source", "target"), "task": ("source", "target")}


def token_type(vocabulary_num_tokens: int) -> np.dtype:
    """The type of a token id on disk: uint16 where every id fits, else uint32."""
    return np.dtype(np.uint16 if vocabulary_num_tokens <= 1 << 16 else np.uint32)


def rows_of_batches(num_rows: int) -> list[int]:
    """The rows of each record batch of a shard of `num_rows`."""
    return [min(ROWS_PER_BATCH, num_rows - begin) for begin in range(0, num_rows, ROWS_PER_BATCH)]


@dataclass(frozen=True)
class Shard:
    """One file of a corpus: rows, tokens of each side, size and checksum."""

    file: str
    rows: int
    tokens: dict[str, int]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CorpusManifest:
    """What the manifest says of one corpus.

    Attributes:
        kind: `mono`, `parallel` or `task`.
        languages: one of each side, `("en", "de")` or `("de",)`.
        dropped: rows left out when it was built, by reason.
        truncated: rows cut to the maximum length when it was built, by side.
    """

    name: str
    kind: str
    languages: tuple[str, ...]
    shards: tuple[Shard, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[str, ...]:
        """The names of its columns."""
        return SIDES[self.kind]

    @cached_property
    def num_rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @cached_property
    def num_tokens(self) -> dict[str, int]:
        """Tokens in all shards, by side."""
        return {side: sum(shard.tokens[side] for shard in self.shards) for side in self.sides}

    @property
    def num_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`: the vocabulary that the ids belong to, and the corpora."""

    vocabulary_hash: str
    vocabulary_num_tokens: int
    corpora: tuple[CorpusManifest, ...] = ()

    def shard_schema(self, corpus: CorpusManifest, rows: int, tokens: dict[str, int]) -> pa.Schema:
        """The schema of one shard of `corpus`; its metadata says what the shard is and holds."""
        description = {
            "format_version": FORMAT_VERSION,
            "vocabulary_hash": self.vocabulary_hash,
            "corpus": corpus.name,
            "kind": corpus.kind,
            "languages": corpus.languages,
            "rows": rows,
            "tokens": tokens,
        }
        row = pa.list_(pa.from_numpy_dtype(token_type(self.vocabulary_num_tokens)))
        return pa.schema(
            [pa.field(side, row) for side in corpus.sides], {METADATA_KEY: json.dumps(description).encode()}
        )

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all that the manifest says, checksums of the shards included: equal exactly for the same rows."""
        return _json_checksum({"format_version": FORMAT_VERSION, **asdict(self)})

    @property
    def num_rows(self) -> int:
        """Rows in all corpora."""
        return sum(corpus.num_rows for corpus in self.corpora)

    def write(self, directory: Path) -> None:
        """Write `manifest.json` atomically, with its checksum."""
        content = {"format_version": FORMAT_VERSION, **asdict(self), "checksum": self.checksum}
        write_json(directory / MANIFEST, content)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read and check `manifest.json`; the shards are not looked at.

        Raises:
            InputError: there is none, so this is not a (complete) data set.
            DataError: it was altered, or has another format version.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise InputError(f"{directory} is not a shard data set: it has no {MANIFEST}, or was not built to the end.")
        try:
            content = read_json(path)
            checksum = content.pop("checksum")
            version = content.pop("format_version")
        except (InputError, AttributeError, KeyError, TypeError):
            raise DataError(f"{path} is damaged: build the data set again.") from None
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}; this program reads version {FORMAT_VERSION}.")
        if _json_checksum({"format_version": version, **content}) != checksum:
            raise DataError(f"{path} was altered: its content does not have the checksum it states.")
        try:
            corpora = tuple(_corpus_from_json(corpus) for corpus in content.pop("corpora"))
            manifest = cls(corpora=corpora, **content)
            is_sound = _is_sound(manifest)
        except (AttributeError, KeyError, TypeError):
            is_sound = False
        if not is_sound:
            raise DataError(f"{path} is not what a build writes: build the data set again.")
        return manifest


def _corpus_from_json(value: dict[str, Any]) -> CorpusManifest:
    shards = tuple(Shard(**shard) for shard in value.pop("shards"))
    return CorpusManifest(**{**value, "languages": tuple(value["languages"]), "shards": shards})


def _is_sound(manifest: Manifest) -> bool:
    """Whether names and numbers can be those of a data set; a file's name must not lead out of its directory."""
    shards = [(corpus, shard) for corpus in manifest.corpora for shard in corpus.shards]
    counts = [count for _, shard in shards for count in (shard.rows, shard.bytes, *shard.tokens.values())]
    return (
        all(isinstance(count, int) and count >= 0 for count in (manifest.vocabulary_num_tokens, *counts))
        and all(len(corpus.languages) == len(corpus.sides) for corpus in manifest.corpora)
        and all(tuple(shard.tokens) == corpus.sides for corpus, shard in shards)
        and all(Path(shard.file).name == shard.file for _, shard in shards)
        and len({shard.file for _, shard in shards}) == len(shards)
    )


def _json_checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def size_fault(path: Path, shard: Shard) -> str | None:
    """What is wrong with the size of a shard's file, if anything."""
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        return f"{path} is missing"
    if num_bytes != shard.bytes:
        return f"{path} has {num_bytes:,} bytes where {MANIFEST} says {shard.bytes:,}"
    return None


def content_fault(path: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, if anything; reads all of it."""
    if fault := size_fault(path, shard):
        return fault
    if sha256_of(path) != shard.sha256:
        return f"{path} was altered: its content does not have the checksum that {MANIFEST} states"
    return None
