"""The shards of a data set as mapped files: random access to rows, of any number of shards at once.

Nothing is read before it is asked for, nothing outside the files is ever touched, however they are damaged.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deltalm_ds.arrays.mapped_files import MappedFiles
from deltalm_ds.arrays.ragged import RaggedRows, gather
from deltalm_ds.data.manifest import MANIFEST, ROWS_PER_BATCH, Manifest, rows_of_batches, size_fault, token_type
from deltalm_ds.errors import DataError


def read_record_batches(path: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """The schema of a shard and its record batches, which are views of the mapped file.

    Raises:
        DataError: it is not a readable Arrow file; the message names it.
    """
    try:
        with open(path, "rb") as file:
            return _parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (pa.ArrowException, OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise _unreadable(path, error) from None


def _parse(file: Any) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    # From memory: of what it reads through a memory map of its own, pyarrow has the kernel load every page.
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(file)))
    return reader.schema, [reader.get_batch(index) for index in range(reader.num_record_batches)]


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a readable shard (`deltalm data verify` tells more): {error}.")


class MappedShards:
    """Random access to all rows of a data set, numbered through its corpora and shards in the manifest's order.

    A shard is mapped when it is first needed. Of Arrow's view of it only the places of the buffers are kept, three
    numbers a record batch and column; they index all files seen as one array. Offsets are int32 in Arrow; seen as
    unsigned, a negative one is too large, and found by one comparison. Pickling and forking are safe: a pickled copy
    maps its own files, a forked one shares the mappings.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory, self._manifest = directory, manifest
        self._shards = [(corpus, shard) for corpus in manifest.corpora for shard in corpus.shards]
        rows = np.array([shard.rows for _, shard in self._shards], dtype=np.int64)
        num_batches = -(-rows // ROWS_PER_BATCH)
        self._first_row, self._first_batch = np.cumsum(rows) - rows, np.cumsum(num_batches) - num_batches
        self._is_mapped = np.zeros(len(rows), dtype=bool)
        self._first_offset, self._first_token, self._num_tokens = np.zeros((3, 2, num_batches.sum()), dtype=np.int64)
        self._files = MappedFiles([shard.bytes for _, shard in self._shards])
        self._offsets = self._files.bytes.view(np.uint32)
        self._tokens = self._files.bytes.view(token_type(manifest.vocabulary_num_tokens))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedShards, (self._directory, self._manifest)

    def spans(self, column: int | np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where rows begin, as `gather` takes it, and their lengths; [rows] int64 each.

        Args:
            column: 0 or 1, the column of all rows or of each.
            rows: counted through all corpora.

        Raises:
            DataError: a shard cannot be read, or is damaged where it was read.
        """
        shard = np.searchsorted(self._first_row, rows, side="right") - 1
        if not (mapped := self._is_mapped[shard]).all():
            for number in np.unique(shard[~mapped]).tolist():
                self._map(number)
        batch, row = np.divmod(rows - self._first_row[shard], ROWS_PER_BATCH)
        batch += self._first_batch[shard]
        row += self._first_offset[column, batch]
        begins, ends = self._offsets[row], self._offsets[row + 1]
        if (wrong := (begins > ends) | (ends > self._num_tokens[column, batch])).any():
            raise self._damaged(int(shard[wrong.argmax()]))
        return self._first_token[column, batch] + begins, (ends - begins).astype(np.int64)

    def gather(self, begins: np.ndarray, lengths: np.ndarray) -> RaggedRows:
        """The ids of rows by their `spans`, or fewer of each, copied."""
        return gather(self._tokens, begins, lengths)

    def _path(self, number: int) -> Path:
        return self._directory / self._shards[number][1].file

    def _damaged(self, number: int) -> DataError:
        return DataError(f"{self._path(number)} is damaged: run `deltalm data verify`.")

    def _map(self, number: int) -> None:
        corpus, shard = self._shards[number]
        path = self._path(number)
        try:
            schema, batches = _parse(self._files.map(number, path))
        except (pa.ArrowException, OSError) as error:
            if fault := size_fault(path, shard):
                raise DataError(f"{fault}: build the data set again.") from None
            raise _unreadable(path, error) from None
        if not schema.equals(self._manifest.shard_schema(corpus, shard.rows, shard.tokens), check_metadata=True):
            raise DataError(f"{path} is not the shard that {MANIFEST} describes: run `deltalm data verify`.")
        if [batch.num_rows for batch in batches] != rows_of_batches(shard.rows):
            raise self._damaged(number)
        for index, batch in enumerate(batches, start=int(self._first_batch[number])):
            for column in range(batch.num_columns):
                self._find(number, column, index, batch)
        self._is_mapped[number] = True

    def _find(self, number: int, column: int, index: int, batch: pa.RecordBatch) -> None:
        """Note where offsets and ids of a column of record batch `index` lie; nothing of them is read."""
        _, offsets, _, tokens = batch.column(column).buffers()
        num_tokens = tokens.size // self._tokens.itemsize if tokens is not None else 0
        self._first_offset[column, index] = self._place(number, offsets, self._offsets.itemsize, batch.num_rows + 1)
        self._first_token[column, index] = self._place(number, tokens, self._tokens.itemsize, num_tokens)
        self._num_tokens[column, index] = num_tokens

    def _place(self, number: int, buffer: pa.Buffer | None, item_bytes: int, num_items: int) -> int:
        """The index of the first item of `buffer` among all files, having made sure that all lie inside its file."""
        if num_items == 0:
            return 0
        if buffer is None or buffer.size < num_items * item_bytes:
            raise self._damaged(number)
        begin = buffer.address - self._files.bytes.ctypes.data
        first = int(self._files.begins[number])
        last = first + self._shards[number][1].bytes
        if begin % item_bytes or not first <= begin <= last - num_items * item_bytes:
            raise self._damaged(number)
        return begin // item_bytes
