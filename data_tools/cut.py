"""The first pass over raw text: check it, and cut each source into parts that will become one shard each.

A part is an uncompressed Arrow file with one column a side; a row is some records, their texts in UTF-8 with a NUL
(which no text has) between them. It is all that the second pass needs, whatever the source was (compressed, piped,
Parquet), and it goes when its shard is written. Where parts end depends on the records alone.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deltalm_ds.data.manifest import SIDES
from deltalm_ds.data_tools.sources import Texts, TextSource, read_columns
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file, read_json, write_json
from deltalm_ds.lines import STDIN, file_of

SEPARATOR = "\0"


@dataclass(frozen=True)
class Cut:
    """The job of cutting one source, and its result once that is there.

    Attributes:
        index: of the source in its corpus.
        documents: whether a record is a document.
        max_records, max_characters: of a part; of characters it may have more by less than one record.
        directory: where the parts go.
    """

    corpus: str
    kind: str
    languages: tuple[str, ...]
    index: int
    source: TextSource
    documents: bool
    max_records: int
    max_characters: int
    directory: Path

    @property
    def name(self) -> str:
        """The start of the names of all files made of this source."""
        return f"{self.corpus}.source{self.index:05d}"

    @property
    def path(self) -> Path:
        """Of the result: the fingerprint, the records of each part, and what was dropped."""
        return self.directory / f"{self.name}.json"

    def part_path(self, part: int) -> Path:
        """The file of a part's text."""
        return self.directory / f"{self.name}.part{part:05d}.arrow"

    @cached_property
    def num_bytes(self) -> int:
        """How much of the source's files it reads."""
        start, end = self.source.span or (0, source_bytes(self.source))
        return end - start

    def fingerprint(self) -> dict[str, Any]:
        """What tells whether a result belongs to this job: files with size and time, format, and limits.

        Raises:
            InputError: a file is missing.
        """
        return {
            "files": [_file_fingerprint(path) for path in self.source.files],
            "format": self.source.resolved_format,
            "fields": list(self.source.fields or ()),
            "languages": list(self.languages),
            "span": list(self.source.span or ()),
            "documents": self.documents,
            "limits": [self.max_records, self.max_characters],
        }

    def result(self) -> "CutResult | None":
        """The result, where the source was cut as it is now."""
        try:
            content = read_json(self.path)
            if content["fingerprint"] == self.fingerprint():
                return CutResult(tuple(content["records"]), content["dropped"])
        except (InputError, KeyError, TypeError):
            pass
        return None


@dataclass(frozen=True)
class CutResult:
    """Records of each part of a source, and how many were dropped, by reason."""

    records: tuple[int, ...]
    dropped: dict[str, int]


def source_bytes(source: TextSource) -> int:
    """Size of a source's files, 0 for standard input; InputError if one is missing."""
    return sum(_file_fingerprint(path)[1] for path in source.files)


def _file_fingerprint(path: Path) -> list[Any]:
    if path == STDIN:
        return [str(path), 0, 0]
    try:
        status = file_of(path).stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def cut_source(job: Cut) -> Cut:
    """Write the parts of a source and then its result; what an earlier try left of it goes.

    Raises:
        InputError: the text is wrong (see `read_columns`), or changed while it was read.
    """
    for path in [*job.directory.glob(f"{job.name}.*"), *job.directory.glob(f"{job.corpus}.duplicates*")]:
        path.unlink()
    fingerprint = job.fingerprint()
    num_sides = len(SIDES[job.kind])
    schema = pa.schema([(side, pa.binary()) for side in SIDES[job.kind]])
    dropped: Counter[str] = Counter()
    records = []
    columns = read_columns(job.source, num_sides, dropped, job.documents, job.languages)
    for part, blocks in groupby(_number_by_part(columns, job.max_records, job.max_characters), key=itemgetter(0)):
        num_records = 0
        with atomic_file(job.part_path(part), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for _, block in blocks:
                row = [[SEPARATOR.join(texts).encode()] for texts in block]
                writer.write_batch(pa.record_batch(row, schema=schema))
                num_records += len(block[0])
        records.append(num_records)
    if job.fingerprint() != fingerprint:
        raise InputError(f"{job.source} changed while it was read: build when nobody writes to it.")
    write_json(job.path, {"fingerprint": fingerprint, "records": records, "dropped": dict(dropped)})
    return job


def _number_by_part(blocks: Iterator[Texts], max_records: int, max_characters: int) -> Iterator[tuple[int, Texts]]:
    """Yield (number of the part, some of its records); a part ends with the record that makes it full."""
    part, records_left, characters_left = 0, max_records, max_characters
    for block in blocks:
        while num_records := len(block[0]):
            lengths = sum(np.fromiter(map(len, texts), np.int64, num_records) for texts in block)
            ends = np.cumsum(lengths)
            count = min(num_records, records_left, int(np.searchsorted(ends, characters_left)) + 1)
            yield part, tuple(texts[:count] for texts in block)
            records_left, characters_left = records_left - count, characters_left - int(ends[count - 1])
            if records_left == 0 or characters_left <= 0:
                part, records_left, characters_left = part + 1, max_records, max_characters
            block = tuple(texts[count:] for texts in block)


def read_part(path: Path) -> Iterator[tuple[list[bytes], ...]]:
    """The records of a part, some at a time: of each side the texts in UTF-8."""
    with pa.memory_map(os.fsencode(path)) as file:  # a name need not be UTF-8
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            row = reader.get_batch(index)
            yield tuple(column[0].as_py().split(SEPARATOR.encode()) for column in row.columns)
