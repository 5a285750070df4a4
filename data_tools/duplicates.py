"""Exact duplicates of a corpus, in bounded memory: hash every record, then look at one range of hash values at a time.

Two records are duplicates if their texts are equal after the SentencePiece model's normalisation. The first in the
order of the corpus stays. Equality is that of 64-bit hashes: among 10⁹ different records about 0.03 are taken for
duplicates by accident.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalm_ds.arrays.counter_rng import name_key
from deltalm_ds.data_tools.cut import read_part
from deltalm_ds.data_tools.workers import StoredVocabulary
from deltalm_ds.files import atomic_file

RECORDS_PER_RANGE = 1 << 22


@dataclass(frozen=True)
class HashPart:
    """The job of hashing one part; the result is [2, records] uint64: sorted hashes, and the records they are of."""

    part: Path
    vocabulary: StoredVocabulary

    @property
    def path(self) -> Path:
        """Of the result."""
        return self.part.with_suffix(".hashes.npy")


@dataclass(frozen=True)
class FindDuplicates:
    """The job of finding the duplicates in one range of hash values.

    Attributes:
        hashes: the results of hashing all parts of a corpus, in their order.
        path: of the result, [2, duplicates] uint64: part and record, sorted.
    """

    hashes: tuple[Path, ...]
    index: int
    num_ranges: int
    path: Path


def hash_part(job: HashPart) -> None:
    """Write the hashes of a part, if they are not there yet."""
    if job.path.exists():
        return
    vocabulary = job.vocabulary.load()
    hashes = []
    for columns in read_part(job.part):
        normal = [vocabulary.normalize(texts) for texts in columns]
        hashes += [name_key(b"\0".join(record).decode()) for record in zip(*normal, strict=True)]
    values = np.array(hashes, np.uint64)
    order = np.argsort(values, kind="stable")
    _save(job.path, np.stack([values[order], order.astype(np.uint64)]))


def find_duplicates(job: FindDuplicates) -> None:
    """Write the later ones of equal records, if that was not done yet."""
    if job.path.exists():
        return
    width = (1 << 64) // job.num_ranges
    first, last = job.index * width, (job.index + 1) * width - 1
    if job.index == job.num_ranges - 1:
        last = (1 << 64) - 1
    found = []
    for part, path in enumerate(job.hashes):
        hashes = np.load(path, mmap_mode="r")
        begin = np.searchsorted(hashes[0], np.uint64(first), side="left")
        end = np.searchsorted(hashes[0], np.uint64(last), side="right")
        found.append(np.stack([np.full(end - begin, part, np.uint64), hashes[1, begin:end], hashes[0, begin:end]]))
    records = np.concatenate(found, axis=1)
    records = records[:, np.lexsort((records[1], records[0]))]  # the order of the corpus
    is_duplicate = np.ones(records.shape[1], bool)
    is_duplicate[np.unique(records[2], return_index=True)[1]] = False
    _save(job.path, records[:2, is_duplicate])


def duplicates_of_part(paths: tuple[Path, ...], part: int, num_records: int) -> np.ndarray:
    """[records] bool: whether a record of the part is a duplicate, by the results of all ranges."""
    is_duplicate = np.zeros(num_records, bool)
    for path in paths:
        parts, records = np.load(path, mmap_mode="r")
        begin, end = np.searchsorted(parts, np.array([part, part + 1], np.uint64))
        is_duplicate[records[begin:end].astype(np.int64)] = True
    return is_duplicate


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_file(path, "wb") as file:
        np.save(file, array)
