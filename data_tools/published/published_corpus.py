"""What a published corpus is to `deltalm data convert`. One is a file of this folder and a row in `table.py`."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Item = tuple[str, Sequence[str]]
"""A source and its targets: several where there are several references; "" for a reference that is missing."""


@dataclass(frozen=True)
class PublishedCorpus:
    """A row of the table of published corpora.

    Attributes:
        files: the files it comes in, as a user names them.
        read: from files to items, as a stream; what is left out is counted by reason, and whatever is not as expected
            is an InputError that names file and position.
        min_files, max_files: how many files it takes; None for any number.
    """

    files: str
    read: Callable[[Sequence[Path], Counter[str]], Iterator[Item]]
    min_files: int = 1
    max_files: int | None = None
