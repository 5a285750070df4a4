"""The second pass: a part of the text becomes a shard. What is written depends on the part and the settings alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa

from deltalm_ds.arrays.counter_rng import hash_counters, name_key
from deltalm_ds.arrays.ragged import RaggedRows, gather
from deltalm_ds.data.manifest import SIDES, CorpusManifest, Manifest, Shard, size_fault, token_type
from deltalm_ds.data.shards import ragged_batch, write_shard
from deltalm_ds.data_tools.cut import read_part
from deltalm_ds.data_tools.duplicates import duplicates_of_part
from deltalm_ds.data_tools.filters import Settings, count_reasons, text_reasons, token_reasons
from deltalm_ds.data_tools.workers import StoredVocabulary
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json, write_json
from deltalm_ds.vocabulary import Vocabulary

Texts = tuple[list[bytes], ...]
"""Of each side some texts in UTF-8."""


@dataclass(frozen=True)
class EncodePart:
    """The job of encoding one part.

    Attributes:
        shard: the file to write.
        index: of the part in its corpus.
        source, first_record: of the part's first record, the number of its source and its number there.
        duplicates: the files that say which records occurred before.
    """

    corpus: str
    kind: str
    languages: tuple[str, ...]
    part: Path
    shard: Path
    index: int
    source: int
    first_record: int
    num_records: int
    duplicates: tuple[Path, ...]
    vocabulary: StoredVocabulary
    settings: Settings

    @property
    def path(self) -> Path:
        """Of the result, which is there when the shard is."""
        return result_path(self.part)


@dataclass(frozen=True)
class EncodeResult:
    """The shard (None where no record is left), records dropped by reason, and rows truncated by side."""

    shard: Shard | None
    dropped: dict[str, int]
    truncated: dict[str, int]

    @classmethod
    def read(cls, path: Path, shards: Path) -> "EncodeResult | None":
        """The result at `path` where it and its shard in the directory `shards` are whole; else None."""
        try:
            content = read_json(path)
            shard = Shard(**content["shard"]) if content["shard"] else None
            result = cls(shard, content["dropped"], content["truncated"])
        except (InputError, KeyError, TypeError):
            return None
        return None if shard and size_fault(shards / shard.file, shard) else result


def result_path(part: Path) -> Path:
    """Where the result of encoding a part is."""
    return part.with_suffix(".done.json")


def encode_part(job: EncodePart) -> int:
    """Write the shard of a part and then its result; the part goes. Returns the number of its records."""
    encoder = _Encoder(job, job.vocabulary.load())
    table = encoder.table()
    shard = None
    if table.num_rows:
        manifest = Manifest(encoder.vocabulary.hash, encoder.vocabulary.num_tokens)
        shard = write_shard(job.shard, manifest, CorpusManifest(job.corpus, job.kind, job.languages), table)
    write_json(job.path, asdict(EncodeResult(shard, dict(encoder.dropped), dict(+encoder.truncated))))
    job.part.unlink()
    return job.num_records


class _Encoder:
    """Makes the rows of one part, and counts what it leaves out on the way."""

    def __init__(self, job: EncodePart, vocabulary: Vocabulary) -> None:
        self.job = job
        self.settings = job.settings
        self.sides = SIDES[job.kind]
        self.vocabulary = vocabulary
        self.has_documents = job.kind == "mono" and job.settings.window_tokens is not None
        self.dropped: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()

    def table(self) -> pa.Table:
        """All rows of the shard: those of the first sample in the order of the text, those of the second, and so on."""
        token_dtype = token_type(self.vocabulary.num_tokens)
        num_samples = max(1, self.settings.subword_samples)
        blocks: list[list[tuple[RaggedRows, ...]]] = [[] for _ in range(num_samples)]
        for numbers, columns in self._records():
            for sample, of_sample in enumerate(blocks):
                rows = self._cut_to_length(self._encode(columns, numbers, sample))
                of_sample.append(tuple(RaggedRows(side.values.astype(token_dtype), side.lengths) for side in rows))
        columns_of_side = {}
        for index, side in enumerate(self.sides):
            all_rows = [rows[index] for of_sample in blocks for rows in of_sample]
            tokens = np.concatenate([np.empty(0, token_dtype), *(rows.values for rows in all_rows)])
            lengths = np.concatenate([np.empty(0, np.int64), *(rows.lengths for rows in all_rows)])
            if self.has_documents:
                lengths = window_lengths(lengths, self.settings.window_tokens or 1, self.settings.cross_documents)
            columns_of_side[side] = tokens, lengths
        return pa.Table.from_batches([ragged_batch(columns_of_side, token_dtype)])

    def _records(self) -> Iterator[tuple[np.ndarray, Texts]]:
        """Yield the records that no filter of texts leaves out, with their numbers in their source."""
        job, first = self.job, 0
        is_duplicate = duplicates_of_part(job.duplicates, job.index, job.num_records)
        for columns in read_part(job.part):
            end = first + len(columns[0])
            reasons = text_reasons(columns, job.languages, is_duplicate[first:end], self.vocabulary, self.settings)
            if reasons.any():
                self.dropped += count_reasons(reasons)
                columns = tuple(list(compress(texts, reasons == 0)) for texts in columns)
            yield job.first_record + first + np.flatnonzero(reasons == 0), columns
            first = end

    def _encode(self, columns: Texts, numbers: np.ndarray, sample: int) -> list[RaggedRows]:
        if self.has_documents:
            return [self._encode_documents(columns[0])]
        if not self.settings.subword_samples:
            return [self.vocabulary.encode_rows(texts) for texts in columns]
        corpus = name_key(self.job.corpus)
        seeds = [
            hash_counters(self.settings.seed, corpus, self.job.source, sample, side) for side in range(len(columns))
        ]
        return [
            self.vocabulary.encode_rows(texts, self.settings.sample_alpha, seed, numbers)
            for texts, seed in zip(columns, seeds, strict=True)
        ]

    def _encode_documents(self, documents: list[bytes]) -> RaggedRows:
        """Line by line, as pieces do not go over white space anyway."""
        lines = [document.split(b"\n") for document in documents]
        rows = self.vocabulary.encode_rows([line for of_document in lines for line in of_document])
        num_lines = np.fromiter(map(len, lines), np.int64, len(lines))
        ends = np.concatenate([[0], np.cumsum(rows.lengths)])[np.cumsum(num_lines)]
        return RaggedRows(rows.values, np.diff(ends, prepend=0))

    def _cut_to_length(self, rows: list[RaggedRows]) -> list[RaggedRows]:
        """Leave out or truncate what the settings say, and count it."""
        reasons = token_reasons(np.stack([side.lengths for side in rows]), self.settings)
        if reasons.any():
            self.dropped += count_reasons(reasons)
            rows = [side.take(np.flatnonzero(reasons == 0)) for side in rows]
        if self.settings.max_tokens is None:
            return rows
        for name, side in zip(self.sides, rows, strict=True):
            self.truncated[name] += int(np.count_nonzero(side.lengths > self.settings.max_tokens))
        return [gather(side.values, side.starts, np.minimum(side.lengths, self.settings.max_tokens)) for side in rows]


def window_lengths(document_lengths: np.ndarray, window_tokens: int, cross_documents: bool) -> np.ndarray:
    """Lengths of the rows that documents are cut into: whole windows, then what is left of the document (or of all)."""
    if cross_documents:
        document_lengths = document_lengths.sum(keepdims=True)
    num_whole, rest = np.divmod(document_lengths, window_tokens)
    num_rows = num_whole + (rest > 0)
    lengths = np.full(num_rows.sum(), window_tokens, np.int64)
    lengths[np.cumsum(num_rows)[rest > 0] - 1] = rest[rest > 0]
    return lengths
