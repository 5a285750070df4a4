"""TSV: a line is a record, tabs separate its columns, and nothing is quoted: a quote is a character like any other."""

from collections.abc import Iterator

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.data_tools.formats.rows import Rows, read_rows
from deltalm_ds.lines import line_blocks


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the wanted columns."""
    header = None
    if wanted.span and wanted.span[0]:
        header = next(_rows(Wanted(wanted.path, wanted.num_sides, span=(0, 1)))).cells[0]
    return read_rows(wanted, _rows(wanted), header)


def _rows(wanted: Wanted) -> Iterator[Rows]:
    first = 1
    for lines in line_blocks(wanted.path, wanted.span):
        yield Rows([line.split("\t") for line in lines], range(first, first + len(lines)))
        first += len(lines)
