"""What a format of raw text is to the rest: names that tell it, a function that reads it, and what may be done with it.

A format is one file of this folder with a function `read`, and one row in `table.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Columns = tuple[Sequence[str | None], ...]
"""Some records: of each side the texts; None where a record has null."""

RECORD_FIELDS = {1: ("text",), 2: ("source", "target")}


@dataclass(frozen=True)
class Wanted:
    """What to read of a file.

    Attributes:
        num_sides: texts of a record.
        fields: as many names of fields (or numbers of columns) as there are sides, or None where the user named none
            and the format has none by itself.
        span: of a divisible format, the bytes in which the records begin (see `line_blocks`); None for the whole file.
    """

    path: Path
    num_sides: int
    fields: tuple[str, ...] | None = None
    span: tuple[int, int] | None = None


Read = Callable[[Wanted], Iterator[Columns]]
"""Yields all records in order, some at a time; InputError names file and place of whatever is wrong."""


@dataclass(frozen=True)
class InputFormat:
    """A row of the table of formats.

    Attributes:
        description: what such a file is, for help and documentation.
        suffixes: the ends of names, in lower case, that tell this format.
        read: reads the records of one file.
        divisible: whether every line is a record, whatever it has in it, so that several workers may each read a range
            of the file.
        fields: the fields that are read where the user names none, by the number of sides.
        has_fields: whether fields (or columns) of a record can be named.
        may_have_header: whether the first record may be the names of columns (see `header.py`).
        read_documents: reads documents, where these are not simply the records.
    """

    description: str
    suffixes: tuple[str, ...]
    read: Read
    divisible: bool = False
    fields: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: RECORD_FIELDS)
    has_fields: bool = True
    may_have_header: bool = False
    read_documents: Read | None = None
