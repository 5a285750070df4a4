"""Records with named fields, as JSON has them: `title`, or `translation.en` for a field of an object inside."""

import json
from collections.abc import Iterator
from typing import Any

from deltalm_ds.data_tools.formats.input_format import Wanted

JSON_TYPES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
MISSING = object()


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)
"""Refuses an object in which a key is there twice, with a ValueError, as it does text that is no JSON."""


def texts_of(record: Any, wanted: Wanted) -> list[str | None]:
    """The texts of a record's wanted fields; None where there is null.

    A name with dots is that of a field with just this name, or else of a field in an object.

    Raises:
        ValueError: the record is no object, or has something else than text there; the message names what has text.
    """
    assert wanted.fields is not None
    values = [_find(record, field) for field in wanted.fields]
    for field, value in zip(wanted.fields, values, strict=True):
        if value is not None and not isinstance(value, str):
            found = f"there is no {field!r}" if value is MISSING else f"{field!r} is {JSON_TYPES[type(value)]}"
            raise ValueError(
                f"expected an object with text in {' and '.join(map(repr, wanted.fields))}, but {found}"
                f"{_hint(wanted, list(_text_fields(record)))}."
            )
    return values


def _find(record: Any, field: str) -> Any:
    if not isinstance(record, dict):
        return MISSING
    if field in record:
        return record[field]
    first, _, rest = field.partition(".")
    if not rest or first not in record:
        return MISSING
    return None if record[first] is None else _find(record[first], rest)


def _text_fields(record: Any, prefix: str = "") -> Iterator[str]:
    """The names of all fields with text."""
    for name, value in record.items() if isinstance(record, dict) else ():
        if isinstance(value, str):
            yield f"{prefix}{name}"
        else:
            yield from _text_fields(value, f"{prefix}{name}.")


def _hint(wanted: Wanted, known: list[str]) -> str:
    """The end of a message that says which fields there are, and how to name them."""
    if not known:
        return ", and no text at all"
    listed = f"; text is in {', '.join(known[:10])}"
    if len(known) < wanted.num_sides:
        return listed
    return f"{listed}: name the fields to read, as in {wanted.path.name}:{','.join(known[: wanted.num_sides])}"
