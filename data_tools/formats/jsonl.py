"""JSON lines: a line is an object, a record with named fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.data_tools.formats.records import DECODER, texts_of
from deltalm_ds.errors import InputError
from deltalm_ds.lines import line_blocks, name_of


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the texts of the wanted fields; of a blank line empty ones."""
    assert wanted.fields is not None
    blank = [""] * len(wanted.fields)
    for values in _blocks(wanted.path, wanted.span):
        records = [
            blank if value is None else texts_of(wanted.path, position, value, wanted.fields)
            for position, value in values
        ]
        yield tuple(zip(*records, strict=True))


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the value of each line that is not blank."""
    for values in _blocks(path):
        yield from ((position, value) for position, value in values if value is not None)


def _blocks(path: Path, span: tuple[int, int] | None = None) -> Iterator[list[tuple[str, Any]]]:
    """Some lines at a time: position and value; None for a blank line."""
    first = 1
    for lines in line_blocks(path, span):
        yield [_value(f"{name_of(path)}, line {number}", line) for number, line in enumerate(lines, start=first)]
        first += len(lines)


def _value(position: str, line: str) -> tuple[str, Any]:
    line = line.strip()
    try:
        return position, DECODER.decode(line) if line else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{position}: not valid JSON ({error}).") from None
