"""CSV as spreadsheets write it (RFC 4180): cells with commas, quotes or line ends stand in double quotes."""

import csv
from collections.abc import Iterator
from itertools import chain

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.data_tools.formats.rows import Rows, read_rows
from deltalm_ds.errors import InputError
from deltalm_ds.lines import MAX_TEXT_BYTES, line_blocks, name_of

ROWS_PER_BLOCK = 1024


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the wanted columns."""
    return read_rows(wanted, _rows(wanted))


def _rows(wanted: Wanted) -> Iterator[Rows]:
    csv.field_size_limit(MAX_TEXT_BYTES)  # for the whole process, as the library has it
    lines = (f"{line}\n" for line in chain.from_iterable(line_blocks(wanted.path)))
    reader = csv.reader(lines, strict=True)
    rows, numbers = [], []
    first = 1
    try:
        for cells in reader:
            rows.append(cells)
            numbers.append(first)
            first = reader.line_num + 1
            if len(rows) == ROWS_PER_BLOCK:
                yield Rows(rows, numbers)
                rows, numbers = [], []
    except csv.Error as error:
        raise InputError(
            f"{name_of(wanted.path)}, line {first}: the quotes of the record that begins here are not those of CSV "
            f"({error}): a cell in quotes ends with one, and a quote inside it is doubled."
        ) from None
    if rows:
        yield Rows(rows, numbers)
