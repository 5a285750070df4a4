"""Objects of JSONL, Parquet and JSON files, whose content is checked by whoever reads them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from deltalm_ds.data_tools.formats import jsonl, parquet
from deltalm_ds.data_tools.formats.records import DECODER
from deltalm_ds.data_tools.formats.table import format_name
from deltalm_ds.errors import InputError
from deltalm_ds.lines import text_blocks

Element = TypeVar("Element")


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the position and content of each object of a Parquet or JSONL file; InputError if one is none."""
    read_values = parquet.read_values if format_name(path) == "parquet" else jsonl.read_values
    for position, value in read_values(path):
        if not isinstance(value, dict):
            raise InputError(f"{position}: expected an object.")
        yield position, value


def read_json_document(path: Path) -> Any:
    """The value that a JSON file is, in memory whole; InputError if it is no JSON."""
    text = "".join(text_blocks(path))
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None


def is_list(value: Any, kind: type[Element]) -> TypeGuard[list[Element]]:
    """Whether this is a list with elements of this type alone."""
    return isinstance(value, list) and all(isinstance(element, kind) for element in value)


def unequal(what: str, counts: Mapping[Path, int]) -> InputError:
    """The error of files that belong together and do not have as many lines, segments, …"""
    told = ", ".join(f"{path} has {count:,}" for path, count in counts.items())
    return InputError(f"The files differ in the number of {what}: {told}.")


class Identities:
    """The ids of a file's records, each of which is to stand there once: no record counts twice in a score."""

    def __init__(self) -> None:
        self._positions: dict[str, str] = {}

    def add(self, position: str, identity: object) -> None:
        """InputError where a record before has this id; None is none."""
        if identity is not None and (first := self._positions.setdefault(str(identity), position)) != position:
            raise InputError(f"{position}: the id {identity!r} stands there twice, first at {first}.")
