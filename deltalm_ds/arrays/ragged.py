"""Rows of different lengths in one flat array: what the feeding code computes on, without a loop over rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class RaggedRows:
    """N rows stored end to end.

    Attributes:
        values: [T] the rows' elements, one row after the other.
        lengths: [N] int64, sums to T.
    """

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_rows(cls, rows: list[np.ndarray]) -> "RaggedRows":
        """Copy a list of arrays into one of int64 values."""
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        values = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return cls(values.astype(np.int64), lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """[N] index of each row's first element in `values`."""
        return np.cumsum(self.lengths) - self.lengths

    def __iter__(self) -> Iterator[np.ndarray]:
        """The rows, as views."""
        return (self.values[start : start + length] for start, length in zip(self.starts, self.lengths, strict=True))

    def row(self, index: int) -> np.ndarray:
        """One row, a view."""
        return self.values[self.starts[index] : self.starts[index] + self.lengths[index]]

    def take(self, order: np.ndarray) -> "RaggedRows":
        """The rows `order` [M], copied in that order."""
        return gather(self.values, self.starts[order], self.lengths[order])


def gather(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> RaggedRows:
    """The runs of `values` that begin at `starts` [N] and have `lengths` [N], copied.

    A run may go beyond the ends of `values`: it then has some value there, for the caller to replace.
    """
    indices = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    indices += np.arange(len(indices))
    return RaggedRows(values.take(indices, mode="clip"), lengths)


def stack(parts: Sequence[RaggedRows]) -> RaggedRows:
    """All rows of the first part, then all rows of the second, and so on; of a single part no copy is made."""
    if len(parts) == 1:
        return parts[0]
    return RaggedRows(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]))


def join_rows(*parts: RaggedRows) -> RaggedRows:
    """Row by row concatenation: row i of the result is row i of the first part, then of the second, and so on."""
    num_rows = len(parts[0].lengths)
    interleaved = np.arange(len(parts) * num_rows).reshape(len(parts), num_rows).T
    joined = stack(parts).take(interleaved.ravel())
    return RaggedRows(joined.values, joined.lengths.reshape(num_rows, len(parts)).sum(axis=1))


def quickly_sorted(numbers: np.ndarray) -> np.ndarray:
    """Numbers >= 0 in 16 bits where they fit: in a stable sort numpy then sorts by radix, ten times as fast."""
    return numbers if numbers.max(initial=0) >> 16 else numbers.astype(np.uint16)


def groups(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each label >= 0 that occurs in [N], in ascending order, with the places where it stands, in order."""
    if len(labels) == 0:
        return
    order, ordered = np.arange(len(labels)), labels
    if (labels[1:] < labels[:-1]).any():
        order = np.argsort(quickly_sorted(labels), kind="stable")
        ordered = labels[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for begin, end in pairwise([0, *cuts.tolist(), len(labels)]):
        yield int(ordered[begin]), order[begin:end]
