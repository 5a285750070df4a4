"""What TSV and CSV have in common: rows of cells, of which some columns are read, by number or by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.errors import InputError
from deltalm_ds.lines import name_of


@dataclass(frozen=True)
class Rows:
    """Some rows of a file: the cells of each, and the line in which each begins."""

    cells: Sequence[list[str]]
    lines: Sequence[int]


def read_rows(wanted: Wanted, blocks: Iterator[Rows], header: list[str] | None = None) -> Iterator[Columns]:
    """Yield the wanted columns of all rows; blank rows have empty texts.

    Columns named by anything but numbers are those of which the first row has the names. Without names or numbers a
    file must have as many columns as the corpus has sides.

    Args:
        header: the first row of the file, where the blocks begin later.

    Raises:
        InputError: a row has too few columns (or too many, where none were named), or there is no such column.
    """
    path, fields = wanted.path, wanted.fields
    if fields and not all(field.isdecimal() for field in fields):
        if header is None:
            header, blocks = _split_header(blocks)
        numbers = [_number_of_name(path, name, header) for name in fields]
    else:
        numbers = [_number(path, field) for field in fields] if fields else list(range(wanted.num_sides))
    width = max(numbers) + 1
    for rows in blocks:
        cells = list(rows.cells)
        for index, row in enumerate(cells):
            if len(row) != width and not "".join(row).strip():
                cells[index] = [""] * width
            elif len(row) < width and fields:
                raise InputError(f"{name_of(path)}, line {rows.lines[index]}: has no column {width}, only {len(row)}.")
            elif len(row) != width and not fields:
                raise InputError(
                    f"{name_of(path)}, line {rows.lines[index]}: found {len(row)} columns, expected {width}"
                    f"{_hint_for_width(path, len(row), width)}."
                )
        yield tuple([row[number] for row in cells] for number in numbers)


def _hint_for_width(path: Path, found: int, width: int) -> str:
    """What may be the matter where a row has another number of columns than the corpus has sides."""
    if found < width:
        return "; perhaps another character divides them than the file's name says, such as a semicolon"
    numbers = ",".join(map(str, range(2, width + 2)))
    return (
        "; if the file has more, name the ones to read by number, or by their names in its first line, as in "
        f"{path.name}:{numbers}"
    )


def _split_header(blocks: Iterator[Rows]) -> tuple[list[str], Iterator[Rows]]:
    """The first row, and all that comes after it."""
    first = next(blocks, Rows([[]], [1]))
    return first.cells[0], chain([Rows(first.cells[1:], first.lines[1:])], blocks)


def _number(path: Path, field: str) -> int:
    if int(field) == 0:
        raise InputError(f"{name_of(path)}: columns are numbers from 1, or names in its first line.")
    return int(field) - 1


def _number_of_name(path: Path, name: str, header: list[str]) -> int:
    names = [cell.strip() for cell in header]
    if names.count(name) != 1:
        has = f"it has: {', '.join(map(repr, names[:20]))}" if any(names) else "it is empty"
        raise InputError(
            f"{name_of(path)}: its first line names {names.count(name) or 'no'} column {name!r}; {has}. Columns are "
            "numbers from 1, or names in the first line."
        )
    return names.index(name)
