"""Token shards: the format on disk, its writer, and a memory-mapped reader.

A data set is a directory with `manifest.json` and Arrow IPC files (uncompressed). It holds one or more corpora;
a corpus has one column a side (`source`; `source` and `target`) of ragged rows of token ids, uint16 or uint32 by
vocabulary size, without `</s>` and without tags. The schema metadata of every shard says what it is; the
manifest lists every shard with its size and checksum, and is written last: without it there is no data set.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data.manifest import ROWS_PER_BATCH, CorpusManifest, Manifest, Shard, content_fault, size_fault
from deltalm_ds.data.mapped_shards import MappedShards
from deltalm_ds.errors import DataError
from deltalm_ds.files import atomic_file, sha256_of

ROWS_PER_SHARD = 1_048_576
BYTES_PER_SHARD = 128 << 20  # a shard is put together in memory, so this bounds the writer's memory


# --- writing ---


def ragged_batch(sides: dict[str, tuple[np.ndarray, np.ndarray]], token_type: np.dtype) -> pa.RecordBatch:
    """Rows of token ids as a record batch.

    Args:
        sides: of each side the ids of all rows end to end, [tokens], and the rows' lengths, [rows].
    """
    columns = []
    for tokens, lengths in sides.values():
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int32)
        ids = pa.array(tokens, type=pa.from_numpy_dtype(token_type))
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), ids))
    return pa.record_batch(columns, names=list(sides))


def write_corpus(
    directory: Path,
    manifest: Manifest,
    corpus: CorpusManifest,
    batches: Iterable[pa.RecordBatch],
    rows_per_shard: int = ROWS_PER_SHARD,
) -> CorpusManifest:
    """Write the shards of a corpus, each complete or absent.

    Args:
        directory: of the data set; exists already.
        manifest: of the data set, for what every shard says of itself; its own list of corpora is not looked at.
        corpus: what is written, still without shards.
        batches: its rows, as of `ragged_batch`, in order.
        rows_per_shard: of all shards but the last; fewer where rows are so long that `BYTES_PER_SHARD` is reached.

    Returns:
        `corpus` with its shards. They become part of a data set when a manifest that lists them is written.
    """
    shards = tuple(
        write_shard(directory / f"{corpus.name}.{index:05d}.arrow", manifest, corpus, table)
        for index, table in enumerate(_shard_tables(batches, rows_per_shard))
    )
    return replace(corpus, shards=shards)


def write_shard(path: Path, manifest: Manifest, corpus: CorpusManifest, table: pa.Table) -> Shard:
    """Write one shard, complete or absent.

    Args:
        path: the shard's file.
        manifest: of the data set, for what the shard says of itself.
        corpus: the corpus that the rows belong to.
        table: the rows, in record batches as of `ragged_batch`.
    """
    tokens = {side: sum(len(chunk.flatten()) for chunk in table[side].chunks) for side in corpus.sides}
    schema = manifest.shard_schema(corpus, table.num_rows, tokens)
    with atomic_file(path, "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=ROWS_PER_BATCH)
    return Shard(path.name, table.num_rows, tokens, path.stat().st_size, sha256_of(path))


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


class Corpus:
    """One corpus of a data set, read by row number over all its shards.

    Attributes:
        reader, first_row: what all corpora of the data set are read through, and where there this one begins.
    """

    def __init__(self, corpus: CorpusManifest, first_row: int, reader: MappedShards) -> None:
        self.reader, self.first_row = reader, first_row
        self.name = corpus.name
        self.kind = corpus.kind
        self.languages = corpus.languages
        self.sides = corpus.sides
        self.num_rows = corpus.num_rows
        self.num_tokens = corpus.num_tokens

    def lengths(self, side: str, rows: np.ndarray) -> np.ndarray:
        """The number of tokens of each row, [rows] int64, from the offsets alone.

        Raises:
            IndexError: a row is outside [0, num_rows).
            DataError: a shard cannot be read, or is damaged where it was read.
        """
        return self._spans(side, rows)[1]

    def tokens(self, side: str, rows: np.ndarray, lengths: np.ndarray | None = None) -> RaggedRows:
        """The ids of each row, or the first `lengths` of them, copied; raises as `lengths` does."""
        begins, whole = self._spans(side, rows)
        return self.reader.gather(begins, whole if lengths is None else np.minimum(lengths, whole))

    def _spans(self, side: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_rows:
            raise IndexError(f"Corpus {self.name} has rows 0 to {self.num_rows - 1}; asked for others.")
        return self.reader.spans(self.sides.index(side), rows + self.first_row)


class ShardDataset:
    """A data set that was opened: its manifest and its corpora by name."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        reader = MappedShards(directory, manifest)
        ends = accumulate(corpus.num_rows for corpus in manifest.corpora)
        self.corpora = {
            corpus.name: Corpus(corpus, end - corpus.num_rows, reader)
            for corpus, end in zip(manifest.corpora, ends, strict=True)
        }

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
