"""JSON: a file is an array of objects, records with named fields; it is read as a stream, whatever its size."""

import json
import re
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.data_tools.formats.records import DECODER, texts_of
from deltalm_ds.errors import InputError
from deltalm_ds.lines import MAX_TEXT_BYTES, name_of, text_blocks

RECORDS_PER_BLOCK = 1024
SPACE = re.compile(r"[ \t\r\n]*")


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the texts of the wanted fields."""
    values = read_values(wanted.path)
    while block := list(islice(values, RECORDS_PER_BLOCK)):
        records = []
        for position, value in block:
            try:
                records.append(texts_of(value, wanted))
            except ValueError as error:
                raise InputError(f"{position}: {error}") from None
        yield tuple(zip(*records, strict=True))


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the value of each element of the array.

    Raises:
        InputError: the file is not one array of objects.
    """
    text = _Text(path)
    if text.next_character() != "[":
        raise InputError(
            f"{text.position}: expected an array, `[` and records with commas between them; for a record a line say "
            "--jsonl, for published corpora like SQuAD see `deltalm data convert`."
        )
    text.take_character()
    for number in count(1):
        if number == 1 and text.next_character() == "]":
            break
        if text.next_character() != "{":
            raise InputError(f"{text.position}: record {number} of the array is no object (in braces).")
        position = f"{text.position}, record {number}"
        yield position, text.take_value(position)
        separator = text.next_character()
        if separator not in (",", "]"):
            raise InputError(f"{text.position}: no comma or `]` after record {number} of the array.")
        if separator == "]":
            break
        text.take_character()
    text.take_character()
    if text.next_character():
        raise InputError(f"{text.position}: there is more after the array's end; for a record a line say --jsonl.")


class _Text:
    """The text of a file from the place that was reached in it; what lies before is not kept."""

    def __init__(self, path: Path) -> None:
        self._name = name_of(path)
        self._blocks = text_blocks(path)
        self._text = ""
        self._place = 0
        self._line = 1

    @property
    def position(self) -> str:
        """File and line."""
        return f"{self._name}, line {self._line}"

    def next_character(self) -> str:
        """The next character that is no white space, before which the place now is; "" at the end."""
        while True:
            match = SPACE.match(self._text, self._place)
            assert match is not None
            self._go_to(match.end())
            if self._place < len(self._text) or not self._read():
                return self._text[self._place : self._place + 1]

    def take_character(self) -> None:
        """Go on by one character."""
        self._go_to(self._place + 1)

    def take_value(self, position: str) -> Any:
        """Decode the value here and go to its end; what cannot be decoded may only want more text."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if len(self._text) - self._place < MAX_TEXT_BYTES and self._read():
                    continue
                raise InputError(f"{position}: not valid JSON ({error.msg}), cut short or very long.") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{position}: not valid JSON ({error}).") from None
            self._go_to(end)
            return value

    def _go_to(self, place: int) -> None:
        self._line += self._text.count("\n", self._place, place)
        self._place = place

    def _read(self) -> bool:
        """Add some text; False at the end of the file."""
        for block in self._blocks:
            if block:
                self._text, self._place = self._text[self._place :] + block, 0
                return True
        return False
