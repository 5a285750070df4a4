"""JSON lines: a line is an object, a record with named fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.data_tools.formats.records import DECODER, texts_of
from deltalm_ds.errors import InputError
from deltalm_ds.lines import line_blocks, name_of, numbered_lines


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the texts of the wanted fields; of a blank line empty ones."""
    number = 0
    for lines in line_blocks(wanted.path, wanted.span):
        records = []
        for line in lines:
            number += 1
            try:
                records.append(_texts(line, wanted))
            except ValueError as error:
                raise InputError(f"{name_of(wanted.path)}, line {number}: {error}") from None
        yield tuple(zip(*records, strict=True))


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the value of each line that is not blank."""
    for number, line in numbered_lines(path):
        position = f"{name_of(path)}, line {number}"
        if line and not line.isspace():
            try:
                yield position, _decode(line)
            except ValueError as error:
                raise InputError(f"{position}: {error}") from None


def _texts(line: str, wanted: Wanted) -> list[str | None]:
    if not line or line.isspace():
        return [""] * wanted.num_sides
    return texts_of(_decode(line), wanted)


def _decode(line: str) -> Any:
    try:
        return DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}).") from None
