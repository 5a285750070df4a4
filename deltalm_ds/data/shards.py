"""Token shards: the format on disk, its writer, and a memory-mapped reader.

A data set is a directory with `manifest.json` and Arrow IPC files (uncompressed). It holds one or more corpora;
a corpus has one column a side (`source`; `source` and `target`) of ragged rows of token ids, uint16 or uint32 by
vocabulary size, without `</s>` and without tags. The schema metadata of every shard says what it is; the
manifest lists every shard with its size and checksum, and is written last: without it there is no data set.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from deltalm_ds.data.manifest import MANIFEST, CorpusManifest, Manifest, Shard, content_fault, size_fault
from deltalm_ds.errors import DataError
from deltalm_ds.files import atomic_file, sha256_of

ROWS_PER_BATCH = 65_536
ROWS_PER_SHARD = 1_048_576
BYTES_PER_SHARD = 128 << 20  # a shard is put together in memory, so this bounds the writer's memory


# --- writing ---


def ragged_batch(sides: dict[str, tuple[np.ndarray, np.ndarray]], token_type: pa.DataType) -> pa.RecordBatch:
    """Rows of token ids as a record batch.

    Args:
        sides: of each side the ids of all rows end to end, [tokens], and the rows' lengths, [rows].
    """
    columns = []
    for tokens, lengths in sides.values():
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int32)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens, type=token_type)))
    return pa.record_batch(columns, names=list(sides))


def write_corpus(
    directory: Path,
    manifest: Manifest,
    corpus: CorpusManifest,
    batches: Iterable[pa.RecordBatch],
    rows_per_shard: int = ROWS_PER_SHARD,
) -> CorpusManifest:
    """Write `batches` (as of `ragged_batch`) as the shards of `corpus`, each complete or absent.

    Returns:
        `corpus` with its shards. They become part of a data set when a manifest that lists them is written.
    """
    shards = []
    for index, table in enumerate(_shard_tables(batches, rows_per_shard)):
        path = directory / f"{corpus.name}.{index:05d}.arrow"
        tokens = {side: sum(len(chunk.flatten()) for chunk in table[side].chunks) for side in corpus.sides}
        schema = manifest.shard_schema(corpus, table.num_rows, tokens)
        with atomic_file(path, "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=ROWS_PER_BATCH)
        shards.append(Shard(path.name, table.num_rows, tokens, path.stat().st_size, sha256_of(path)))
    return replace(corpus, shards=tuple(shards))


def _shard_tables(batches: Iterable[pa.RecordBatch], rows_per_shard: int) -> Iterator[pa.Table]:
    """Regroup batches into tables of `rows_per_shard` rows (the last fewer; where rows are long, all fewer)."""
    pending: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        pending.append(batch)
        num_rows += batch.num_rows
        num_bytes += batch.nbytes
        while num_rows >= rows_per_shard or num_bytes >= BYTES_PER_SHARD:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, rows_per_shard)
            rest = table.slice(rows_per_shard)
            pending, num_rows, num_bytes = rest.to_batches(), rest.num_rows, rest.nbytes
    if num_rows:
        yield pa.Table.from_batches(pending)


# --- reading ---


class Ragged(NamedTuple):
    """Views of one side of a record batch: row i is `tokens[offsets[i] : offsets[i + 1]]`."""

    offsets: np.ndarray
    tokens: np.ndarray


def read_record_batches(path: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Map a shard into memory; nothing is copied, and no file stays open.

    Raises:
        DataError: it is not a readable Arrow file; the message names it.
    """
    try:
        # The mapping lives as long as the batches do. Closing the file now keeps the number of open files
        # constant however many shards are read.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable shard (`deltalm data verify` tells more): {error}.") from None
    return reader.schema, batches


def ragged_views(batch: pa.RecordBatch) -> dict[str, Ragged]:
    """Zero-copy numpy views of every side of a record batch."""
    return {
        side: Ragged(column.offsets.to_numpy(zero_copy_only=True), column.values.to_numpy(zero_copy_only=True))
        for side, column in zip(batch.schema.names, batch.columns, strict=True)
    }


class _OpenShard(NamedTuple):
    starts: np.ndarray  # first row of each record batch
    batches: list[dict[str, Ragged]]


class Corpus:
    """One corpus of a data set, read by row number over all its shards.

    Shards are mapped when first used. Pickling and forking are safe: a copy maps its own.
    """

    def __init__(self, directory: Path, manifest: Manifest, corpus: CorpusManifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._corpus = corpus
        self._starts = _starts([shard.rows for shard in corpus.shards])
        self._open: dict[int, _OpenShard] = {}
        self.name = corpus.name
        self.kind = corpus.kind
        self.languages = corpus.languages
        self.sides = corpus.sides
        self.num_rows = corpus.num_rows
        self.num_tokens = corpus.num_tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def lengths(self, side: str, rows: np.ndarray) -> np.ndarray:
        """The number of tokens of each row, [rows] int32, from the offsets alone.

        Raises:
            IndexError: a row is outside [0, num_rows).
            DataError: a shard cannot be read.
        """
        lengths = np.empty(len(rows), np.int32)
        for ragged, where, local_rows in self._locate(side, rows):
            lengths[where] = ragged.offsets[local_rows + 1] - ragged.offsets[local_rows]
        return lengths

    def tokens(self, side: str, rows: np.ndarray) -> list[np.ndarray]:
        """The ids of each row, read-only views of uint16 or uint32; raises as `lengths` does."""
        views: list[Any] = [None] * len(rows)
        for ragged, where, local_rows in self._locate(side, rows):
            begins, ends = ragged.offsets[local_rows].tolist(), ragged.offsets[local_rows + 1].tolist()
            tokens = ragged.tokens
            for index, begin, end in zip(where.tolist(), begins, ends, strict=True):
                views[index] = tokens[begin:end]
        return views

    def record_batches(self) -> Iterator[dict[str, Ragged]]:
        """All rows in order, a record batch at a time, without keeping the shards mapped."""
        for shard in self._corpus.shards:
            yield from self._map_shard(shard).batches

    def _locate(self, side: str, rows: np.ndarray) -> Iterator[tuple[Ragged, np.ndarray, np.ndarray]]:
        """Split `rows` by record batch: its arrays, the places in `rows`, and the rows inside the batch."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_rows:
            raise IndexError(f"Corpus {self.name} has rows 0 to {self.num_rows - 1}; asked for others.")
        for shard_index, in_shard, shard_rows in _split_by_start(self._starts, rows):
            if shard_index not in self._open:
                self._open[shard_index] = self._map_shard(self._corpus.shards[shard_index])
            shard = self._open[shard_index]
            for batch_index, in_batch, local_rows in _split_by_start(shard.starts, shard_rows):
                yield shard.batches[batch_index][side], in_shard[in_batch], local_rows

    def _map_shard(self, shard: Shard) -> _OpenShard:
        path = self._directory / shard.file
        schema, batches = read_record_batches(path)
        if not schema.equals(self._manifest.shard_schema(self._corpus, shard.rows, shard.tokens), check_metadata=True):
            raise DataError(f"{path} is not the shard that {MANIFEST} describes: run `deltalm data verify`.")
        return _OpenShard(_starts([batch.num_rows for batch in batches]), [ragged_views(batch) for batch in batches])


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))[: len(counts)]


def _split_by_start(starts: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Group rows by the part they lie in: (index of the part, places in `rows`, rows counted from its start)."""
    if len(rows) == 0:
        return
    parts = np.searchsorted(starts, rows, side="right") - 1
    # numpy sorts 16-bit integers by radix, ten times as fast.
    order = np.argsort(parts.astype(np.uint16) if len(starts) <= 1 << 16 else parts, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
        part = int(parts[places[0]])
        yield part, places, rows[places] - starts[part]


class ShardDataset:
    """A data set that was opened: its manifest and its corpora by name."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.corpora = {corpus.name: Corpus(directory, manifest, corpus) for corpus in manifest.corpora}

    @classmethod
    def open(cls, directory: str | Path, vocabulary_hash: str | None = None) -> "ShardDataset":
        """Open a data set; looks at the size of every shard but reads none.

        Args:
            vocabulary_hash: where given, the ids must belong to the vocabulary of this hash.

        Raises:
            InputError: the directory is not a data set.
            DataError: a shard is missing or cut short, or the vocabulary is another one.
        """
        directory = Path(directory)
        manifest = Manifest.read(directory)
        for corpus in manifest.corpora:
            for shard in corpus.shards:
                if fault := size_fault(directory / shard.file, shard):
                    raise DataError(f"{fault}: build the data set again.")
        if vocabulary_hash not in (None, manifest.vocabulary_hash):
            raise DataError(
                f"{directory} was built with the vocabulary {manifest.vocabulary_hash}, not with {vocabulary_hash}: "
                "use the vocabulary it was built with, or build it again."
            )
        return cls(directory, manifest)

    def check_content(self) -> None:
        """Read every shard and compare its checksum.

        Raises:
            DataError: naming the first shard that is not as it was written.
        """
        for corpus in self.manifest.corpora:
            for shard in corpus.shards:
                if fault := content_fault(self.directory / shard.file, shard):
                    raise DataError(f"{fault}: build the data set again.")
